"""Pruning: which weights are zero, by a constraint or by a price."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal, SupportsIndex

import torch
from torch import Tensor, nn

from lc_ext import ops
from lc_ext.nn import NMLinear, PackedLinear, SparseLinear

from ..sizes import gap_coded_bits
from .base import Compression, flat

__all__ = ["GroupPrune", "L0Penalty", "L1Ball", "L1Penalty", "L2Ball", "L2Penalty", "NMPrune", "Prune", "Sparse"]


class Sparse(Compression):
    """Base of the compressions that zero weights: values, with the zeros in place."""

    sparse = True
    trainable = ("values_",)
    values_: list[Tensor]
    mask_: list[Tensor]  # while finetuning

    def decompress(self) -> list[Tensor]:
        if hasattr(self, "mask_"):
            return [t * m for t, m in zip(self.values_, self.mask_, strict=True)]
        return [t.clone() for t in self.values_]

    def start_finetuning(self) -> list[nn.Parameter]:
        """Also freeze the mask."""
        self.mask_ = [t != 0 for t in self.values_]
        return super().start_finetuning()

    def finish_finetuning(self) -> None:
        """Also forget it: a survivor that has become zero is one no more."""
        super().finish_finetuning()
        del self.mask_

    def weight_bits(self) -> int:
        return 32 * sum(int(t.count_nonzero()) for t in self.values_)

    def bits(self) -> int:
        return self.weight_bits() + gap_coded_bits(flat(self.values_) != 0)

    def summary(self) -> dict[str, float]:
        kept, total = sum(int(t.count_nonzero()) for t in self.values_), sum(t.numel() for t in self.values_)
        return {"sparsity": 1 - kept / max(total, 1)}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        matrix = self.values_[i].flatten(1)
        return SparseLinear.from_csr(*ops.dense_to_csr(matrix), matrix.shape[1], bias)


class Prune(Sparse):
    """Keep the largest magnitudes of the whole group, zero the rest: ||theta||_0 <= kappa.

    Parameters
    ----------
    keep : int, the number of survivors; or float in [0, 1], a fraction, rounded.
    per : None: they compete over the whole group. "row": within each row of each tensor, that is the weights of one
        output, ``keep`` being a fraction of a row.

    Examples
    --------
    >>> lc.Prune(2).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-2.,  0.,  0.,  2.]])]
    >>> lc.Prune(0.5, per="row").fit([torch.tensor([[-2.0, -1.0], [0.5, 0.1]])])
    [tensor([[-2.0000,  0.0000],
            [ 0.5000,  0.0000]])]
    >>> lc.Task(nn.Linear, lc.Prune(0.1), joint=True)  # a tenth of all weights together
    Task(targets=<class 'torch.nn.modules.linear.Linear'>, compression=Prune(keep=0.1, per=None), joint=True)
    """

    weighted = True

    def __init__(self, keep: int | float, *, per: Literal["row"] | None = None) -> None:
        if isinstance(keep, bool) or not isinstance(keep, (SupportsIndex, float)):
            raise TypeError(f"keep must be an int or a float, got {type(keep).__name__}")
        if per not in (None, "row"):
            raise ValueError(f"per must be None or 'row', got {per!r}")
        if per == "row" and not isinstance(keep, float):
            raise TypeError(f"keep must be a float, a fraction of each row, with per='row', got {keep!r}")
        self.keep = keep if isinstance(keep, float) else operator.index(keep)
        if not 0 <= self.keep <= (1 if isinstance(keep, float) else math.inf):
            raise ValueError(f"keep must be a count, or a fraction between 0.0 and 1.0, got {keep}")
        self.per = per

    def count(self, n: int) -> int:
        """The number of survivors among n."""
        return round(self.keep * n) if isinstance(self.keep, float) else self.keep

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: the largest magnitudes, or h v^2 with a metric; ties by lowest index."""
        h = None if weights is None else list(weights)
        if self.per is None:
            self.values_ = ops.topk_prune(list(v), self.keep, weights=h, mask=None).values
        else:
            self.values_ = [self._rows(t, None if h is None else h[i]) for i, t in enumerate(v)]
        return self.decompress()

    def _rows(self, t: Tensor, h: Tensor | None) -> Tensor:
        rows = t.flatten(1)
        score = rows.abs() if h is None else h.flatten(1).double() * rows.double().square()
        best = score.sort(dim=1, descending=True, stable=True).indices[:, : self.count(rows.shape[1])]
        return torch.zeros_like(rows).scatter(1, best, rows.gather(1, best)).view(t.shape)

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return super().cost(shapes) / 4


class L1Ball(Sparse):
    """||theta||_1 <= ``radius`` over the whole group: the exact Euclidean projection, which zeroes and shrinks.

    Examples
    --------
    >>> lc.L1Ball(2.5).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.1667, -0.1667,  0.0000,  1.1667]])]
    """

    weighted = True

    def __init__(self, radius: float) -> None:
        if not (radius >= 0 and math.isfinite(radius)):
            raise ValueError(f"radius must be finite and not negative, got {radius}")
        self.radius = float(radius)

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step."""
        self.values_ = ops.l1_ball(list(v), self.radius, weights=None if weights is None else list(weights)).values
        return self.decompress()


class L2Ball(Sparse):
    """||theta||_2 <= ``radius`` over the whole group: it shrinks, and zeroes nothing. A partner in sums.

    Examples
    --------
    >>> lc.L2Ball(2.5).fit([torch.tensor([3.0, 4.0])])
    [tensor([1.5000, 2.0000])]
    """

    def __init__(self, radius: float) -> None:
        if not (radius >= 0 and math.isfinite(radius)):
            raise ValueError(f"radius must be finite and not negative, got {radius}")
        self.radius = float(radius)

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step."""
        self.values_ = ops.l2_ball(list(v), self.radius).values
        return self.decompress()


class _Penalty(Sparse):
    """alpha times a cost of the group: zero at direct compression (mu = 0), where every cost outweighs the distance."""

    weighted = True
    penalised = True

    def __init__(self, alpha: float) -> None:
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        self.alpha = float(alpha)

    def _project(self, v: list[Tensor], ratio: float, weights: list[Tensor] | None) -> list[Tensor]:
        raise RuntimeError(f"{type(self).__name__} does not say how it projects")

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None, mu: float = 0.0) -> list[Tensor]:
        """The C step for penalty parameter ``mu``."""
        if mu == 0:
            self.values_ = [torch.zeros_like(t) for t in v]
        else:
            self.values_ = self._project(list(v), self.alpha / mu, None if weights is None else list(weights))
        return self.decompress()


class L0Penalty(_Penalty):
    """alpha ||theta||_0: a weight survives iff v^2 > 2 alpha / mu, so more of them do as mu grows.

    Examples
    --------
    >>> lc.L0Penalty(1e-4)  # a zero saves 1e-4 of the loss
    L0Penalty(alpha=0.0001)
    """

    def _project(self, v: list[Tensor], ratio: float, weights: list[Tensor] | None) -> list[Tensor]:
        return ops.l0_penalty(v, ratio, weights, mask=None).values


class L1Penalty(_Penalty):
    """alpha ||theta||_1: soft thresholding at alpha / mu.

    Examples
    --------
    >>> lc.L1Penalty(1e-4)
    L1Penalty(alpha=0.0001)
    """

    def _project(self, v: list[Tensor], ratio: float, weights: list[Tensor] | None) -> list[Tensor]:
        return list(ops.l1_penalty(v, ratio, weights))


class L2Penalty(_Penalty):
    """alpha ||theta||_2^2: theta = v mu / (mu + 2 alpha), which zeroes nothing.

    Examples
    --------
    >>> lc.L2Penalty(1e-4)
    L2Penalty(alpha=0.0001)
    """

    def _project(self, v: list[Tensor], ratio: float, weights: list[Tensor] | None) -> list[Tensor]:
        return list(ops.l2_penalty(v, ratio, weights))


class NMPrune(Sparse):
    """Keep the ``n`` largest magnitudes of each ``m`` consecutive weights along a dimension: N:M sparsity.

    Parameters
    ----------
    n, m : 1 <= n < m <= 16.
    dim : along which they are consecutive: -1, the inputs of a linear layer; 1, the input channels of a convolution.

    Examples
    --------
    >>> lc.NMPrune(2, 4).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-2.,  0.,  0.,  2.]])]
    """

    weighted = True

    def __init__(self, n: int, m: int, *, dim: int = -1) -> None:
        if not 1 <= n < m <= 16:
            raise ValueError(f"n and m must be 1 <= n < m <= 16, got {n} and {m}")
        self.n, self.m, self.dim = n, m, dim

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step."""
        hs = [None] * len(v) if weights is None else list(weights)
        self.values_ = [
            ops.nm_prune(t, self.n, self.m, dim=self.dim, weights=h, mask=None).values
            for t, h in zip(v, hs, strict=True)
        ]
        return self.decompress()

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        if self.values_[i].dim() != 2 or self.dim not in (-1, 1):
            return super().linear(i, bias)  # the runs are not in the rows of the matrix
        values, positions = ops.nm_pack(self.values_[i].contiguous(), self.n, self.m)
        return NMLinear.from_packed(values, positions, self.n, self.m, self.values_[i].shape[1], bias)

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return super().cost(shapes) / 4

    def bits(self) -> int:
        """Positions take ceil(log2(m choose n)) bits for each run of m."""
        runs = sum(t.numel() for t in self.values_) // self.m
        return 32 * self.n * runs + math.ceil(math.log2(math.comb(self.m, self.n))) * runs


class GroupPrune(Sparse):
    """Keep the groups of weights of largest norm over the whole group of tensors: rows, filters, columns, blocks.

    Parameters
    ----------
    keep : int, the number of groups; or float in [0, 1], a fraction, rounded.
    groups : "row" or "filter", "column" or "channel", or (a, b) for blocks; see :func:`lc_ext.ops.group_prune`.

    Examples
    --------
    >>> lc.GroupPrune(1).fit([torch.tensor([[3.0, 4.0], [0.0, 1.0]])])
    [tensor([[3., 4.],
            [0., 0.]])]
    """

    weighted = True

    def __init__(self, keep: int | float, *, groups: str | tuple[int, int] = "row") -> None:
        if isinstance(keep, float) and not 0 <= keep <= 1:
            raise ValueError(f"keep must be a count, or a fraction between 0.0 and 1.0, got {keep}")
        self.keep, self.groups = keep, groups

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step."""
        h = None if weights is None else list(weights)
        result = ops.group_prune(list(v), self.keep, groups=self.groups, weights=h)  # type: ignore[arg-type, unused-ignore]
        self.values_ = list(result.values)
        return self.decompress()
