"""Base of the linear layers that store the elements of their weight that are not zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from . import _ops
from .packed import PackedLinear

__all__ = ["ValuesLinear"]


class ValuesLinear(PackedLinear):
    """A packed linear layer with ``values``, floats or, with a ``codebook``, codes.

    Each class has a ``forward`` of its own: torch.compile compiles the code of one only so many times.

    Class attributes
    ----------------
    run : the kernel without its checks: ``run(x, *arguments, out, accumulate, activation)``.
    """

    run: ClassVar[Callable[..., Tensor]]

    values: Tensor
    codebook: Tensor | None

    def arguments(self) -> tuple[Any, ...]:
        """What ``run`` takes after ``x``: the values first, the bias and the codebook last."""
        raise NotImplementedError

    def add_to(self, y: Tensor, x: Tensor, activation: int = 0) -> None:
        arguments = self.arguments()
        if not self.is_plain(x, arguments):
            return super().add_to(y, x, activation)
        self.run(x, *arguments, y, True, activation)

    def plain(self, x: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        """The result by the kernel alone, where :meth:`is_plain` says so."""
        return self.run(x, *arguments, None, False, self._code)

    def is_plain(self, x: Tensor, arguments: tuple[Any, ...]) -> bool:
        values, bias, codebook = arguments[0], arguments[-2], arguments[-1]
        floats = values if codebook is None else codebook
        return _ops.is_plain(x, self.in_features, floats, bias=bias) and values.numel() > 0
