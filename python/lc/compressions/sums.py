"""Sums of compressions of one group, and sparsity and codebook chosen together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lc_ext import ops
from lc_ext.nn import PackedLinear, SumLinear

from .base import Compression, leaves
from .prune import Prune, Sparse

__all__ = ["SparseCodebook", "Sum"]


class Sum(Compression):
    """The sum of compressions of the same group, written ``Quantize(2) + Prune(0.01)``.

    The C step alternates over the parts, each fitted to what the others leave, until the distortion stands. Pruning
    goes first in a turn, so that outliers become corrections before they can capture codewords or ranks.

    Parameters
    ----------
    parts : two compressions or more.
    max_sweeps : bound on the alternations in one C step.
    tol : they end when a sweep lowers the distortion by less than this part of it.

    Notes
    -----
    For a codebook with corrections, :func:`lc_ext.ops.kmeans_plus_sparse` reaches a lower or equal distortion in a
    tenth of the time, and was measured too, trimmed and alternating: as a C step both gave nets with more test error
    (``docs/performance.md``). Here a corrected weight keeps its codeword, there it goes to the nearest one.
    """

    def __init__(self, parts: Sequence[Compression], max_sweeps: int = 30, tol: float = 1e-3) -> None:
        if len(parts) < 2 or not all(isinstance(p, Compression) for p in parts):
            raise ValueError(f"parts must be two compressions or more, got {list(parts)!r}")
        self.parts = [leaf for part in parts for leaf in leaves(part)]
        self.max_sweeps = max_sweeps
        self.tol = tol

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        """Whether all parts know a metric."""
        return all(p.weighted for p in self.parts)

    @property
    def penalised(self) -> bool:  # type: ignore[override]
        """Whether some part has a cost of its own."""
        return any(p.penalised for p in self.parts)

    @property
    def learned(self) -> bool:
        return all(p.learned for p in self.parts)

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None, mu: float = 0.0) -> list[Tensor]:
        """The C step: block-coordinate descent, from the previous one or from zero."""
        deltas = [p.decompress() if p.learned else [torch.zeros_like(t) for t in v] for p in self.parts]
        order = sorted(range(len(self.parts)), key=lambda i: not isinstance(self.parts[i], Sparse))
        before = math.inf
        for _ in range(self.max_sweeps):
            for i in order:
                others = [d for j, d in enumerate(deltas) if j != i]
                options: dict[str, Any] = {} if weights is None else {"weights": weights}
                if self.parts[i].penalised:
                    options["mu"] = mu
                rest = [t - sum(o) for t, *o in zip(v, *others, strict=True)]
                deltas[i] = self.parts[i].fit(rest, **options)
            squares = [(t - sum(d)).square() for t, *d in zip(v, *deltas, strict=True)]
            if weights is not None:
                squares = [s * h for s, h in zip(squares, weights, strict=True)]
            error = sum(float(s.sum()) for s in squares)
            if before - error <= self.tol * error:
                break
            before = error
        return [torch.stack(d).sum(0) for d in zip(*deltas, strict=True)]

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return 10 * sum(p.cost(shapes) for p in self.parts)  # of at most max_sweeps, the usual number

    def decompress(self) -> list[Tensor]:
        return [torch.stack(d).sum(0) for d in zip(*(p.decompress() for p in self.parts), strict=True)]

    def weight_bits(self) -> int:
        return sum(p.weight_bits() for p in self.parts)

    def bits(self) -> int:
        return sum(p.bits() for p in self.parts)

    def summary(self) -> dict[str, float]:
        return {f"{i}/{name}": value for i, p in enumerate(self.parts) for name, value in p.summary().items()}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        layers = [p.linear(i, None) for p in self.parts]
        whole = [layer for layer in layers if layer is not None]
        return SumLinear(whole, bias) if len(whole) == len(layers) else None

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [p.state_dict() for p in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def fresh(self) -> Compression:
        return Sum([p.fresh() for p in self.parts], self.max_sweeps, self.tol)


class SparseCodebook(Sparse):
    """At most ``keep`` nonzeros that share a codebook of ``k`` values: support and codebook are chosen together.

    Parameters
    ----------
    k : nonzero codewords, 1 to 255.
    keep : int, the number of nonzeros; or float in [0, 1], a fraction, rounded.
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
