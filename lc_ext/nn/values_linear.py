"""Base of the linear layers that store the elements of their weight that are not zero."""

from __future__ import annotations

from abc import abstractmethod
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

    @abstractmethod
    def arguments(self) -> tuple[Any, ...]:
        """What ``run`` takes after ``x``: the values first, the bias and the codebook last."""

    def write(self, y: Tensor, x: Tensor, bias: Tensor | None, accumulate: bool, activation: int = 0) -> bool:
        *structure, _, codebook = self.arguments()
        values = structure[0]
        if not self.is_plain(values, codebook, bias):
            return False
        self.run(x, *structure, bias, codebook, y, accumulate, activation)
        return True

    @staticmethod
    def is_plain(values: Tensor, codebook: Tensor | None, bias: Tensor | None) -> bool:
        return values.numel() > 0 and _ops.are_plain(values if codebook is None else codebook, bias)
