"""Compressions: each projects a group of tensors on the set of those that it can represent.

``fit`` is the C step, Theta <- argmin ||v - Delta(Theta)||^2; ``decompress`` is Delta(Theta). Constructors only store
their arguments; what ``fit`` has learned ends in an underscore, and the next ``fit`` starts from it.
"""

from __future__ import annotations

import copy
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from lc_ext import ops
from lc_ext.nn import LowRankLinear, LUTLinear, PackedLinear, SparseLinear, SumLinear

from .sizes import gap_coded_bits

__all__ = ["Compression", "LowRank", "Prune", "Quantize", "Sum", "leaves"]


class Compression(ABC):
    """A way to compress a group of tensors jointly. Subclass it to add one: ``docs/adding_a_compression.md``.

    A subclass whose ``fit`` also takes ``weights``, the metric, says so by ``weighted = True``; one whose ``fit`` takes
    ``mu``, because it minimises (mu/2) ||v - Delta||^2 plus a cost, by ``penalised = True``.
    """

    weighted = False
    penalised = False
    trainable: tuple[str, ...] = ()  # what :class:`lc.Finetuning` may move

    @abstractmethod
    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: learn from float32 tensors ``v`` and return their projections, of the same shapes."""

    @abstractmethod
    def decompress(self) -> list[Tensor]:
        """The projections again, from what was learned."""

    @abstractmethod
    def bits(self) -> int:
        """Size of what was learned in fixed-length code, all of it: codes, codebooks, values, positions, factors."""

    @abstractmethod
    def weight_bits(self) -> int:
        """The paper-style count: bits of the codes, values or factors alone."""

    @abstractmethod
    def linear(self, i: int, bias: Tensor | None) -> PackedLinear:
        """The packed layer for tensor ``i``, a matrix of shape (out_features, in_features)."""

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """The estimated time of ``fit``, by which several processes share out their C steps: passes times weights.

        A ``fit`` of a single pass, which gives the same bits in every process, is cheaper than sending its result.
        """
        return 4.0 * sum(math.prod(shape) for shape in shapes)

    def summary(self) -> dict[str, float]:
        """A few numbers about what was learned, for the history: for example its sparsity or rank."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What was learned: the attributes that end in an underscore."""
        return {name: value for name, value in vars(self).items() if name.endswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        vars(self).update(state)

    def start_finetuning(self) -> list[nn.Parameter]:
        """Turn what is ``trainable`` into parameters, for which ``decompress`` must be differentiable."""
        parameters: list[nn.Parameter] = []
        for name in self.trainable:
            value = getattr(self, name)
            made = [nn.Parameter(t.clone()) for t in (value if isinstance(value, list) else [value])]
            setattr(self, name, made if isinstance(value, list) else made[0])
            parameters += made
        return parameters

    def finish_finetuning(self) -> None:
        """Turn them into plain tensors again."""
        for name in self.trainable:
            value = getattr(self, name)
            setattr(self, name, [t.detach() for t in value] if isinstance(value, list) else value.detach())

    def fresh(self) -> Compression:
        """A copy that has learned nothing."""
        new = copy.copy(self)
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(new, name)
        return new

    def __add__(self, other: Compression) -> Sum:
        if not isinstance(other, Compression):
            return NotImplemented
        return Sum([*leaves(self), *leaves(other)])

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.endswith("_"))
        return f"{type(self).__name__}({args})"


class Quantize(Compression):
    """An adaptive codebook of ``k`` values, one for the whole group.

    Parameters
    ----------
    k : codewords, 2 to 256.
    """

    weighted = True
    trainable = ("codebook_",)
    codebook_: Tensor
    codes_: list[Tensor]

    def __init__(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, SupportsIndex) or not 2 <= operator.index(k) <= 256:
            raise ValueError(f"k must be an int from 2 to 256, got {k!r}")
        self.k = operator.index(k)

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: scalar k-means, warm-started."""
        start = getattr(self, "codebook_", None)
        h = None if weights is None else _flat(weights)
        result = ops.kmeans1d(_flat(v), self.k, weights=h, init=None if start is None else start.to(v[0].device))
        self.codebook_ = result.codebook
        self.codes_ = _split(result.codes, v)
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        if self.codebook_.requires_grad:
            return [self.codebook_[codes.long()] for codes in self.codes_]
        return [ops.decode(codes, self.codebook_) for codes in self.codes_]

    def finish_finetuning(self) -> None:
        """Also sort the codebook again."""
        super().finish_finetuning()
        self.codebook_, order = self.codebook_.sort()
        self.codes_ = [order.argsort().to(torch.uint8)[codes.long()] for codes in self.codes_]

    def weight_bits(self) -> int:
        return math.ceil(math.log2(self.k)) * sum(c.numel() for c in self.codes_)

    def bits(self) -> int:
        return self.weight_bits() + 32 * self.k

    def summary(self) -> dict[str, float]:
        return {"codewords": self.codebook_.unique().numel()}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear:
        return LUTLinear.from_codes(self.codes_[i], self.codebook_, bias)


class Prune(Compression):
    """Keep the largest magnitudes of the whole group, zero the rest.

    Parameters
    ----------
    keep : int, the number of survivors; or float in [0, 1], a fraction, rounded.
    """

    trainable = ("values_",)
    values_: list[Tensor]

    def __init__(self, keep: int | float) -> None:
        if isinstance(keep, bool) or not isinstance(keep, (SupportsIndex, float)):
            raise TypeError(f"keep must be an int or a float, got {type(keep).__name__}")
        self.keep = keep if isinstance(keep, float) else operator.index(keep)
        if not 0 <= self.keep <= (1 if isinstance(keep, float) else math.inf):
            raise ValueError(f"keep must be a count, or a fraction between 0.0 and 1.0, got {keep}")

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: the ``keep`` largest magnitudes, ties by lowest index."""
        self.values_ = ops.topk_prune(list(v), self.keep).values
        return self.decompress()

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return super().cost(shapes) / 4

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
        return self.weight_bits() + gap_coded_bits(_flat(self.values_) != 0)

    def summary(self) -> dict[str, float]:
        kept, total = sum(int(t.count_nonzero()) for t in self.values_), sum(t.numel() for t in self.values_)
        return {"sparsity": 1 - kept / max(total, 1)}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear:
        return SparseLinear.from_csr(*ops.dense_to_csr(self.values_[i]), self.values_[i].shape[1], bias)


class LowRank(Compression):
    """A product of two factors of ``rank`` columns and rows. A tensor of more than two dimensions, such as the kernel
    of a convolution, is taken as the matrix of its first dimension against the rest.

    Parameters
    ----------
    rank : at least 1 and below both sides of the matrix.
    """

    trainable = ("u_", "v_")
    u_: Tensor
    v_: Tensor
    shape_: tuple[int, ...]

    def __init__(self, rank: int) -> None:
        if isinstance(rank, bool) or not isinstance(rank, SupportsIndex) or operator.index(rank) < 1:
            raise ValueError(f"rank must be an int of at least 1, got {rank!r}")
        self.rank = operator.index(rank)

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: truncated SVD, warm-started from the previous right factor.

        A few block steps from there; the next C step goes on from where they ended.
        """
        if len(v) != 1 or v[0].dim() < 2:
            shapes = [tuple(t.shape) for t in v]
            raise ValueError(f"LowRank takes one tensor of two dimensions or more, not joint=True; got {shapes}")
        matrix = v[0].reshape(v[0].shape[0], -1)
        if self.rank >= min(matrix.shape):
            raise ValueError(f"rank must be below {min(matrix.shape)} for shape {tuple(v[0].shape)}, got {self.rank}")
        warm = self.v_.to(v[0].device) if hasattr(self, "v_") else None
        result = ops.truncated_svd(matrix, self.rank, warm=warm, tol=1e-4, max_sweeps=4, exact=False)
        root = result.s.sqrt()
        self.u_, self.v_, self.shape_ = result.u * root, root[:, None] * result.vh, tuple(v[0].shape)
        return self.decompress()

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return super().cost(shapes) * (1 + self.rank)

    def decompress(self) -> list[Tensor]:
        return [(self.u_ @ self.v_).view(self.shape_)]

    def weight_bits(self) -> int:
        return 32 * (self.u_.numel() + self.v_.numel())

    def bits(self) -> int:
        return self.weight_bits()

    def summary(self) -> dict[str, float]:
        return {"rank": self.u_.shape[1]}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear:
        return LowRankLinear.from_factors(self.u_, self.v_, bias)


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
    For a codebook with corrections, trimmed k-means (corrected weights take no part in the codebook) reaches a lower
    distortion, and was measured too: as a C step it gave nets with 0.2 % more test error on each of six seeds
    (``docs/performance.md``).
    """

    def __init__(self, parts: Sequence[Compression], max_sweeps: int = 30, tol: float = 1e-3) -> None:
        if len(parts) < 2 or not all(isinstance(p, Compression) for p in parts):
            raise ValueError(f"parts must be two compressions or more, got {list(parts)!r}")
        self.parts = [leaf for part in parts for leaf in leaves(part)]
        self.max_sweeps = max_sweeps
        self.tol = tol

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: block-coordinate descent, from the previous one or from zero."""
        deltas = [p.decompress() if _learned(p) else [torch.zeros_like(t) for t in v] for p in self.parts]
        order = sorted(range(len(self.parts)), key=lambda i: not isinstance(self.parts[i], Prune))
        before = math.inf
        for _ in range(self.max_sweeps):
            for i in order:
                others = [d for j, d in enumerate(deltas) if j != i]
                deltas[i] = self.parts[i].fit([t - sum(rest) for t, *rest in zip(v, *others, strict=True)])
            error = sum(float((t - sum(d)).square().sum()) for t, *d in zip(v, *deltas, strict=True))
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

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear:
        return SumLinear([p.linear(i, None) for p in self.parts], bias)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [p.state_dict() for p in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def fresh(self) -> Compression:
        return Sum([p.fresh() for p in self.parts], self.max_sweeps, self.tol)


def leaves(compression: Compression) -> list[Compression]:
    """The parts of a sum, or the compression itself."""
    return compression.parts if isinstance(compression, Sum) else [compression]


def _learned(compression: Compression) -> bool:
    return any(name.endswith("_") for name in vars(compression))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]
