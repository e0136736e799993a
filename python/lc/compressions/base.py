"""What all compressions have in common."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lc_ext.nn import PackedLayer, PackedLinear, SumLinear, packed_conv

__all__ = ["Compression", "Sum", "flat", "group_offsets", "leaves", "split"]


class Compression(ABC):
    """A way to compress a group of tensors jointly. Subclass it to add one: ``docs/adding_a_compression.md``.

    A subclass whose ``fit`` also takes ``weights``, the metric, says so by ``weighted = True``; one whose ``fit`` takes
    ``mu``, because it minimises (mu/2) ||v - Delta||^2 plus a cost, by ``penalised = True``.
    """

    weighted = False
    penalised = False
    sparse = False  # whether it is fitted first in a sum: so outliers become corrections, and capture no codewords
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

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        """The packed layer for tensor ``i`` as the matrix of its first dimension against the rest, or None."""
        return None

    def conv(self, i: int, dense: nn.Module, bias: Tensor | None) -> PackedLayer | None:
        """The packed layer for tensor ``i``, the kernel of ``dense``, an ``nn.Conv1d`` or ``nn.Conv2d``, or None."""
        matrix = self.linear(i, bias)
        return None if matrix is None else packed_conv(matrix, dense)

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

    @property
    def learned(self) -> bool:
        """Whether ``fit`` has been called."""
        return any(name.endswith("_") for name in vars(self))

    def __add__(self, other: Compression) -> Sum:
        if not isinstance(other, Compression):
            return NotImplemented
        return Sum([*leaves(self), *leaves(other)])

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.endswith("_"))
        return f"{type(self).__name__}({args})"


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

    Examples
    --------
    >>> (lc.Quantize(2) + lc.Prune(1)).fit([torch.tensor([-1.0, -1.0, 1.0, 1.0, 9.0])])
    [tensor([-1., -1.,  1.,  1.,  9.])]
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
        order = sorted(range(len(self.parts)), key=lambda i: not self.parts[i].sparse)
        before = math.inf
        for _ in range(self.max_sweeps):
            rest: list[Tensor] = []
            for i in order:
                rest = list(v)
                for j, delta in enumerate(deltas):
                    if j != i:
                        rest = [t - d for t, d in zip(rest, delta, strict=True)]
                options: dict[str, Any] = {} if weights is None else {"weights": weights}
                if self.parts[i].penalised:
                    options["mu"] = mu
                deltas[i] = self.parts[i].fit(rest, **options)
            left = [t.sub_(d) for t, d in zip(rest, deltas[order[-1]], strict=True)]
            if weights is not None:
                left = [t.mul_(h.sqrt()) for t, h in zip(left, weights, strict=True)]
            error = sum(float(torch.linalg.vector_norm(t)) ** 2 for t in left)
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


def leaves(compression: Compression) -> list[Compression]:
    """The parts of a sum, or the compression itself."""
    parts: list[Compression] = getattr(compression, "parts", [compression])
    return parts


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements of a group, in order."""
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


def split(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flat`."""
    return [part.view(t.shape) for part, t in zip(values.split([t.numel() for t in like]), like, strict=True)]


def group_offsets(v: Sequence[Tensor], per: str | int | None) -> list[int]:
    """Boundaries, in the flattened group, of the parts that have a codebook or scale each.

    ``per`` None: one part. "row": one for each index of the first dimension of each tensor. An int: that many
    consecutive elements of a row, the last part of a row perhaps fewer.
    """
    total = sum(t.numel() for t in v)
    if per is None:
        return [0, total]
    offsets, start = [0], 0
    for t in v:
        rows = t.shape[0] if t.dim() else 1
        cols = t.numel() // max(rows, 1)
        step = cols if per == "row" else min(int(per), cols)
        for _row in range(rows):
            offsets += [start + min(i + step, cols) for i in range(0, cols, step)]
            start += cols
    return offsets
