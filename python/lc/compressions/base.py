"""What all compressions have in common."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lc_ext.nn import PackedLinear

if TYPE_CHECKING:
    from .sums import Sum

__all__ = ["Compression", "flat", "group_offsets", "leaves", "split"]


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

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        """The packed layer for tensor ``i``, a matrix of shape (out_features, in_features); None if there is none."""
        return None

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
        from .sums import Sum

        if not isinstance(other, Compression):
            return NotImplemented
        return Sum([*leaves(self), *leaves(other)])

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.endswith("_"))
        return f"{type(self).__name__}({args})"


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
