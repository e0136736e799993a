"""Honest sizes: what a compressed model takes, biases, codebooks and positions counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lc_ext import ops

__all__ = ["Size", "gap_coded_bits"]


@dataclass(frozen=True)
class Size:
    """Size of a compressed model in fixed-length code.

    Attributes
    ----------
    dense_bits : the uncompressed model: all parameters and buffers in their dtype.
    bits : the compressed model: what the compressions hold, and everything else as it is.
    ratio : dense_bits / bits.
    weights_only_ratio : the paper-style figure: the compressed weights alone over their codes, values or factors
        alone; no codebooks, positions, biases or statistics.
    """

    dense_bits: int
    bits: int
    ratio: float
    weights_only_ratio: float


def gap_coded_bits(mask: Tensor) -> int:
    """Bits for the positions of the true entries, as gaps in symbols of the best width: :func:`lc_ext.ops.gap_bits`."""
    return ops.gap_bits(mask).bits


def bits_of(tensor: Tensor) -> int:
    """Bits of the elements of a tensor."""
    return 8 * tensor.numel() * torch.empty((), dtype=tensor.dtype).element_size()
