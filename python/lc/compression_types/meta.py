"""The older toolkit's compression of several tensors, each by its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lc_ext.nn import PackedLinear

from ..compressions import Compression
from .base_types import CompressionTypeBase, Native, State, driven, fit

__all__ = ["Mapper"]


class Each(Compression):
    """A compression for each tensor of the group."""

    penalised = True

    def __init__(self, members: Sequence[Compression]) -> None:
        self.members = list(members)

    @property
    def learned(self) -> bool:
        return all(m.learned for m in self.members)

    def fit(self, v: Sequence[Tensor], mu: float = 0.0) -> list[Tensor]:
        """The C step of each."""
        return [fit(m, [t], mu)[0] for m, t in zip(self.members, v, strict=True)]

    def decompress(self) -> list[Tensor]:
        return [m.decompress()[0] for m in self.members]

    def bits(self) -> int:
        return sum(m.bits() for m in self.members)

    def weight_bits(self) -> int:
        return sum(m.weight_bits() for m in self.members)

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        return self.members[i].linear(0, bias)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [m.state_dict() for m in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)


class Mapper(Native):
    """A list of compressions for a list of tensors, one each: for the view ``AsIs`` of several tensors."""

    def __init__(self, list_of_compressions: Sequence[CompressionTypeBase]) -> None:
        super().__init__()
        if not all(isinstance(c, CompressionTypeBase) for c in list_of_compressions):
            raise TypeError(f"list_of_compressions must hold compressions alone, got {list_of_compressions!r}")
        self.list_of_compressions = list(list_of_compressions)
        self.inner = Each([driven(c) for c in self.list_of_compressions])

    def compress(self, data: Sequence[Any]) -> list[Any]:  # type: ignore[override]
        """The C step on each of a list of tensors or arrays."""
        self.prepare(data)
        out = [c.compress(datum) for c, datum in zip(self.list_of_compressions, data, strict=True)]
        self._note()
        return out

    def prepare(self, v: Sequence[Any]) -> None:
        if len(v) != len(self.list_of_compressions):
            raise ValueError(
                f"Mapper has {len(self.list_of_compressions)} compressions, but {len(v)} tensors are given"
            )
        for c, t in zip(self.list_of_compressions, v, strict=True):
            c.mu, c.step_number = self.mu, self.step_number
            if isinstance(c, Native) and isinstance(t, Tensor):
                c.prepare([t])

    def record(self) -> None:
        for c in self.list_of_compressions:
            if isinstance(c, Native):
                c.record()
        self._note()

    def _note(self) -> None:
        found = {f"mapped_compression_{i}": c.info for i, c in enumerate(self.list_of_compressions)}
        self.info.setdefault(self.step_number, []).append(found)

    def _read(self) -> State:
        return {f"mapped_compression_{i}": c.state_dict for i, c in enumerate(self.list_of_compressions)}

    def load_state_dict(self, state_dict: State) -> None:
        for i, c in enumerate(self.list_of_compressions):
            c.load_state_dict(state_dict[f"mapped_compression_{i}"])

    def _write(self, state: State) -> State:
        return state

    def uncompress_state(self) -> list[Any]:  # type: ignore[override]
        """The projections, each as its compression gives it."""
        return [c.uncompress_state() for c in self.list_of_compressions]

    def count_params(self) -> int:
        return sum(c.count_params() for c in self.list_of_compressions)

    def count_param_bits(self) -> int:
        return sum(c.count_param_bits() for c in self.list_of_compressions)
