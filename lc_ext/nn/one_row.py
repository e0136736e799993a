"""The kernel calls of a layer for one row of x, kept: a call of a small layer costs more than its kernel does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native

__all__ = ["NativeCall", "OneRow"]


class NativeCall(NamedTuple):
    """A kernel and what it takes between the addresses of x and of y. What lies at addresses must live: ``held``."""

    name: str
    arguments: tuple[int, ...]
    held: Any = None


class OneRow:
    """Calls that write the output of a layer for one row, for as long as nothing that they rest on has changed.

    Parameters
    ----------
    calls : one after the other, or None: the layer has none.
    rests_on : dictionaries of attributes or buffers, each with a name in it whose value the calls were made from.

    Notes
    -----
    Writing to a tensor is seen by the version that torch counts, and by its address. A copy of a layer, or a pickled
    one, has None in place of this.
    """

    __slots__ = ("_calls", "_held", "_isa_changes", "_others", "_tensors")

    def __init__(self, calls: Iterable[NativeCall] | None, rests_on: Iterable[tuple[dict[str, Any], str]]) -> None:
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self._others: list[tuple[dict[str, Any], str, Any]] = []
        for values, name in rests_on:
            value = values[name]
            if not isinstance(value, Tensor):
                self._others.append((values, name, value))
            elif value.is_inference():  # nothing would tell of a change
                calls = None
            else:
                self._tensors.append((values, name, value, value._version, value.data_ptr()))
        self._isa_changes = _native.isa_changes
        self._held = None if calls is None else list(calls)
        self._calls: list[tuple[Callable[..., None], tuple[int, ...]]] = [
            (_native.cpu_kernel(call.name), call.arguments) for call in self._held or ()
        ]

    def holds(self) -> bool:
        """Whether nothing has changed, and nothing is to learn."""
        learning = torch.is_grad_enabled()
        for values, name, tensor, version, address in self._tensors:
            if (
                values[name] is not tensor
                or tensor._version != version
                or tensor.data_ptr() != address
                or (learning and tensor.requires_grad)
            ):
                return False
        return self._isa_changes == _native.isa_changes and all(
            [values[name] is value for values, name, value in self._others]
        )

    def write(self, y: Tensor, x: Tensor) -> bool:
        """Write the output for ``x``, a plain row, to ``y``. False where there are no calls."""
        from_, to = x.data_ptr(), y.data_ptr()
        for kernel, arguments in self._calls:
            kernel(from_, *arguments, to)
        return self._held is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()


def _none() -> None:
    """In place of addresses, which mean nothing elsewhere."""
