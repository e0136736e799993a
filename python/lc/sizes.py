"""Honest sizes: what a compressed model takes, biases, codebooks and positions counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Bits for the positions of the true entries of a vector, as gaps in symbols of the best width B from 2 to 32.

    A gap g (entries skipped) takes g // (2**B - 1) escape symbols and one more. B is a constant of the format.
    """
    positions = mask.reshape(-1).nonzero().flatten()
    gaps = positions.diff(prepend=positions.new_tensor([-1])) - 1
    symbols = [(width, int((gaps // (2**width - 1) + 1).sum())) for width in range(2, 33)]
    return min(width * count for width, count in symbols)


def bits_of(tensor: Tensor) -> int:
    """Bits of the elements of a tensor."""
    return 8 * tensor.numel() * torch.empty((), dtype=tensor.dtype).element_size()
