"""Sparsity and a codebook chosen together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lc_ext import ops

from .base import Compression
from .prune import Prune, Sparse

__all__ = ["SparseCodebook"]


class SparseCodebook(Sparse):
    """At most ``keep`` nonzeros that share a codebook of ``k`` values: support and codebook are chosen together.

    Parameters
    ----------
    k : nonzero codewords, 1 to 255.
    keep : int, the number of nonzeros; or float in [0, 1], a fraction, rounded.

    Examples
    --------
    >>> lc.SparseCodebook(1, 2).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.5000, -1.5000,  0.0000,  0.0000]])]
    """

    weighted = True
    trainable = ("codebook_",)
    codebook_: Tensor  # zero first
    codes_: list[Tensor]

    def __init__(self, k: int, keep: int | float) -> None:
        if isinstance(k, bool) or not 1 <= k <= 255:
            raise ValueError(f"k must be an int from 1 to 255, got {k!r}")
        self.k = int(k)
        self.keep = Prune(keep).keep

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: k-means with a pinned zero under a count constraint, warm-started."""
        start = self.codebook_[1:].to(v[0].device) if self.learned else None
        kappa = Prune(self.keep).count(sum(t.numel() for t in v))
        h = None if weights is None else list(weights)
        result = ops.sparse_codebook(list(v), self.k, kappa, weights=h, init=start)
        zero = result.codebook.new_zeros(1)
        self.codebook_, self.codes_ = torch.cat([zero, result.codebook]), list(result.codes)
        return self.decompress()

    @property
    def values_(self) -> list[Tensor]:  # type: ignore[override]
        """The weights, with the zeros in place."""
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        codebook = torch.cat([self.codebook_.new_zeros(1), self.codebook_[1:]])  # zero stays zero in finetuning
        return [codebook[codes.long()] for codes in self.codes_]

    def start_finetuning(self) -> list[torch.nn.Parameter]:
        """The codes are the mask."""
        return Compression.start_finetuning(self)

    def finish_finetuning(self) -> None:
        """The order of the codewords is of no account here."""
        Compression.finish_finetuning(self)

    def weight_bits(self) -> int:
        return math.ceil(math.log2(max(self.k, 2))) * sum(int(c.count_nonzero()) for c in self.codes_)

    def bits(self) -> int:
        return super().bits() + 32 * self.k
