"""Layouts that kernels compute on: derived from stored tensors on first use, kept while those live, never saved."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

__all__ = ["Layouts"]

_T = TypeVar("_T")


class Layouts(Generic[_T]):
    """What was derived from some tensors, by the tensors.

    A layout is derived again when one of its tensors has been written to or replaced. Writing is seen by the version
    that torch counts; ``tensor.data`` and numpy views bypass it, and inference tensors have none.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, Any], tuple[tuple[weakref.ref[Tensor], ...], list[tuple[int, int]], _T]] = {}

    def get(self, tensors: tuple[Tensor, ...], settings: tuple[Any, ...], derive: Callable[[], _T]) -> _T:
        """The layout of ``tensors`` with these settings: the one that is held, or what ``derive`` returns."""
        key = (id(tensors[0]), settings)
        held = self._held.get(key)
        state = [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]
        if held is not None and held[1] == state and all([r() is t for r, t in zip(held[0], tensors, strict=False)]):
            return held[2]
        layout = derive()

        def forget(reference: weakref.ref[Tensor]) -> None:
            now = self._held.get(key)
            if now is not None and now[0][0] is reference:
                del self._held[key]

        references = (weakref.ref(tensors[0], forget), *[weakref.ref(t) for t in tensors[1:]])
        self._held[key] = (references, state, layout)
        return layout
