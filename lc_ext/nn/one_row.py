"""The kernel calls of a layer for one row of x, kept: a call of a small layer costs more than its kernel does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native

__all__ = ["NativeCall", "OneRow", "Unchanged"]


class NativeCall(NamedTuple):
    """A kernel and what it takes between the addresses of x and of y. What lies at addresses must live: ``held``."""

    name: str
    arguments: tuple[int, ...]
    held: Any = None


class Unchanged:
    """Tells whether the values that something was made from are what they were, and none of them is to learn.

    Parameters
    ----------
    rests_on : dictionaries of attributes or buffers, each with a name in it whose value counts.

    Attributes
    ----------
    told : whether writing to any of the tensors would be seen: it is not where one is an inference tensor.

    Notes
    -----
    Writing to a tensor is seen by the version that torch counts, and by its address. A copy of a layer, or a pickled
    one, has None in place of this.
    """

    __slots__ = ("_isa_changes", "_others", "_tensors", "told")

    def __init__(self, rests_on: Iterable[tuple[dict[str, Any], str]]) -> None:
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self._others: list[tuple[dict[str, Any], str, Any]] = []
        self.told = True
        for values, name in rests_on:
            value = values[name]
            if isinstance(value, Tensor):
                version = -1 if value.is_inference() else value._version
                self.told = self.told and version >= 0
                self._tensors.append((values, name, value, version, value.data_ptr()))
            else:
                self._others.append((values, name, value))
        self._isa_changes = _native.isa_changes

    def holds(self) -> bool:
        learning = torch.is_grad_enabled()
        for values, name, tensor, version, address in self._tensors:
            if (
                values[name] is not tensor
                or (version >= 0 and tensor._version != version)
                or tensor.data_ptr() != address
                or (learning and tensor.requires_grad)
            ):
                return False
        return self._isa_changes == _native.isa_changes and all(
            [values[name] is value for values, name, value in self._others]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()


class OneRow(Unchanged):
    """Calls that write the output of a layer for one row, for as long as nothing that they rest on has changed.

    Parameters
    ----------
    calls : one after the other, or None: the layer has none.
    rests_on : what they were made from.
    """

    __slots__ = ("_calls", "_held")

    def __init__(self, calls: Iterable[NativeCall] | None, rests_on: Iterable[tuple[dict[str, Any], str]]) -> None:
        super().__init__(rests_on)
        self._held = list(calls) if calls is not None and self.told else None
        self._calls: list[tuple[Callable[..., None], tuple[int, ...]]] = [
            (_native.cpu_kernel(call.name), call.arguments) for call in self._held or ()
        ]

    def write(self, y: Tensor, x: Tensor) -> bool:
        """Write the output for ``x``, a plain row, to ``y``. False where there are no calls."""
        from_, to = x.data_ptr(), y.data_ptr()
        for kernel, arguments in self._calls:
            kernel(from_, *arguments, to)
        return self._held is not None


def _none() -> None:
    """In place of addresses, which mean nothing elsewhere."""
