"""Shape and options of a convolution, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import _check

__all__ = ["Geometry"]

_CLASSES = {1: nn.Conv1d, 2: nn.Conv2d}
_CONVOLVE = {1: F.conv1d, 2: F.conv2d}
_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Geometry:
    """What ``nn.Conv1d`` and ``nn.Conv2d`` take, each size a tuple."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def checked(
        cls,
        dims: int,
        in_channels: object,
        out_channels: int,
        kernel_size: object,
        stride: object,
        padding: object,
        dilation: object,
        groups: object,
        padding_mode: object,
    ) -> Geometry:
        """The options of a convolution of ``dims`` dimensions.

        Raises
        ------
        TypeError, ValueError : naming the option that is not one.
        """
        inputs = _check.integer(in_channels, "in_channels", 1)
        parts = _check.integer(groups, "groups", 1)
        if inputs % parts or out_channels % parts:
            raise ValueError(f"groups must divide {inputs} and {out_channels} channels, got {parts}")
        steps = _sizes(stride, "stride", dims, 1)
        if isinstance(padding, str):
            if padding not in ("valid", "same"):
                raise ValueError(f"padding must be sizes, 'valid' or 'same', got {padding!r}")
            if padding == "same" and max(steps) > 1:
                raise ValueError(f"padding='same' calls for stride 1, got {steps}")
        if padding_mode not in _MODES:
            raise ValueError(f"padding_mode must be one of {_MODES}, got {padding_mode!r}")
        return cls(
            inputs,
            out_channels,
            _sizes(kernel_size, "kernel_size", dims, 1),
            steps,
            padding if isinstance(padding, str) else _sizes(padding, "padding", dims, 0),
            _sizes(dilation, "dilation", dims, 1),
            parts,
            str(padding_mode),
        )

    @classmethod
    def of(cls, conv: nn.Module, dims: int) -> Geometry:
        """The options of a layer of ``torch.nn``."""
        if type(conv) is not _CLASSES[dims]:
            raise TypeError(f"conv must be an nn.Conv{dims}d, got {type(conv).__name__}")
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        return cls.checked(dims, conv.in_channels, conv.out_channels, *(getattr(conv, name) for name in names))

    @property
    def dims(self) -> int:
        return len(self.kernel_size)

    @property
    def fan_in(self) -> int:
        """Columns of the kernel as a matrix."""
        return self.in_channels // self.groups * math.prod(self.kernel_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, but for ``out_channels``, as JSON has them."""
        return {
            "in_channels": self.in_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    def check_input(self, x: Tensor) -> None:
        """Refuse an input that is not of shape (batch, in_channels, ...)."""
        if x.dim() not in (self.dims + 1, self.dims + 2) or x.shape[-1 - self.dims] != self.in_channels:
            sides = ", ".join(("height", "width")[2 - self.dims :])
            raise ValueError(f"x must have shape (batch, {self.in_channels}, {sides}), got {tuple(x.shape)}")

    def pads(self) -> list[int]:
        """What ``F.pad`` takes: the last dimension first, before and after."""
        if self.padding == "valid":
            return [0] * (2 * self.dims)
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        return [p for p in reversed(self.padding) for _ in (0, 1)]

    def padded(self, x: Tensor) -> Tensor:
        """The input with its padding in place."""
        pads = self.pads()
        if not any(pads):
            return x
        return F.pad(x, pads, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """torch's convolution of a dense kernel."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = self.padded(x), 0
        y: Tensor = _CONVOLVE[self.dims](x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return y

    def dense(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """The layer of ``torch.nn`` with this kernel, and copies of both tensors."""
        options: dict[str, Any] = {**self.options(), "out_channels": self.out_channels, "bias": bias is not None}
        make: Any = _CLASSES[self.dims]
        conv: nn.Module = make(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
        conv.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().clone())
        return conv

    def check_replaces(self, dense: nn.Module) -> None:
        """Refuse a layer of another class or with other options."""
        if not isinstance(dense, _CLASSES[self.dims]):
            raise ValueError(f"must be an nn.Conv{self.dims}d in the model, got {type(dense).__name__}")
        if (theirs := Geometry.of(dense, self.dims)) != self:
            raise ValueError(f"is {self} in the file, {theirs} in the model")


def _sizes(value: object, name: str, dims: int, low: int) -> tuple[int, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != dims:
            raise ValueError(f"{name} must be an int or {dims} of them, got {value!r}")
        return tuple(_check.integer(v, name, low) for v in value)
    return (_check.integer(value, name, low),) * dims
