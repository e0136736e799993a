"""A convolution as two thinner ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import _check
from ._conv_geometry import Geometry
from .packed import PackedLayer

__all__ = ["LowRankConv", "LowRankConv1d", "LowRankConv2d"]

Sizes = int | Sequence[int]


class LowRankConv(PackedLayer):
    """``y = conv(conv(x, first), second) + bias``, for a kernel whose matrix is of low rank.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode : as for ``nn.Conv1d``
        and ``nn.Conv2d``, of the convolution that the two compute. There are no groups.
    rank : channels between the two, at least 1.
    scheme : 1: the first has the whole kernel size, the second is of size 1. 2, in two dimensions: the first is
        1 x width, the second height x 1. See :func:`lc_ext.ops.conv_as_matrix`.
    bias : whether there is a bias.

    Attributes
    ----------
    first, second : float buffers, the kernels: see :func:`lc_ext.ops.conv_factors`.
    bias : float buffer of shape (out_channels,), or None.
    """

    dims: ClassVar[int]
    first: Tensor
    second: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        rank: int,
        scheme: int = 1,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
    ) -> None:
        super().__init__()
        outputs = _check.integer(out_channels, "out_channels", 1)
        self.geometry = g = Geometry.checked(
            self.dims, in_channels, outputs, kernel_size, stride, padding, dilation, 1, padding_mode
        )
        self.rank = _check.integer(rank, "rank", 1)
        self.scheme = _check.integer(scheme, "scheme", 1, self.dims)
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {type(bias).__name__}")
        self._stages = _stages(g, self.rank, self.scheme)
        self.register_buffer("first", torch.zeros(self._stages[0].weight_shape))
        self.register_buffer("second", torch.zeros(self._stages[1].weight_shape))
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)

    @classmethod
    def from_factors(
        cls, left: Tensor, right: Tensor, conv: nn.Module, scheme: int = 1, bias: Tensor | None = None
    ) -> LowRankConv:
        """A layer with the shape and options of ``conv``, whose kernel, as a matrix, is ``left @ right``.

        Parameters
        ----------
        left, right : float tensors, see :func:`lc_ext.ops.conv_factors`.
        conv : a layer of ``torch.nn`` without groups; its kernel and bias are not read.
        scheme : 1 or 2.
        bias : float tensor of shape (out_channels,), or None.

        Raises
        ------
        TypeError, ValueError : for another class of layer, dtype or shape.
        """
        g = Geometry.of(conv, cls.dims)
        if g.groups != 1:
            raise ValueError(f"conv must have one group, got {g.groups}")
        _check.float32(left, "left")
        _check.float32(right, "right", left)
        shape = (*g.weight_shape, 1)[:4]
        first, second = (t.squeeze(3) if cls.dims == 1 else t for t in ops.conv_factors(left, right, shape, scheme))
        options = {k: v for k, v in g.options().items() if k != "groups"}
        with torch.device("meta"):
            layer = cls(
                out_channels=g.out_channels, rank=first.shape[0], scheme=scheme, bias=bias is not None, **options
            )
        layer.first, layer.second = first.detach().contiguous().clone(), second.detach().contiguous().clone()
        if bias is not None:
            _check.float32(bias, "bias", left)
            if bias.shape != (g.out_channels,):
                raise ValueError(f"bias must have shape ({g.out_channels},), got {tuple(bias.shape)}")
            layer.bias = bias.detach().to(left.dtype).clone()
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        self.geometry.check_input(x)
        one, two = self._stages
        between = one.convolve(x.to(self.first.dtype), self.first, None)
        return two.convolve(between, self.second, self.bias).to(x.dtype)

    def dense_weight(self) -> Tensor:
        g, right = self.geometry, self.first.view(self.rank, -1)
        if self.scheme == 1:
            return (self.second.view(-1, self.rank) @ right).view(g.weight_shape)
        left = self.second.squeeze(3).transpose(1, 2).reshape(-1, self.rank)
        return ops.matrix_as_conv(left @ right, g.weight_shape, 2)

    def to_dense(self) -> nn.Module:
        return self.geometry.dense(self.dense_weight(), self.bias).train(self.training)

    def check_replaces(self, dense: nn.Module) -> None:
        self.geometry.check_replaces(dense)

    def config(self) -> dict[str, Any]:
        return {
            **{k: v for k, v in self.geometry.options().items() if k != "groups"},
            "out_channels": self.geometry.out_channels,
            "rank": self.rank,
            "scheme": self.scheme,
            "bias": self.bias is not None,
        }

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        for name, t in buffers.items():
            _check.float32(t, name)
            if t.dtype != buffers["first"].dtype:
                raise TypeError(f"{name} must be {buffers['first'].dtype} like first, got {t.dtype}")


class LowRankConv1d(LowRankConv):
    """A one-dimensional convolution as two thinner ones."""

    dims = 1


class LowRankConv2d(LowRankConv):
    """A two-dimensional convolution as two thinner ones."""

    dims = 2


def _stages(g: Geometry, rank: int, scheme: int) -> tuple[Geometry, Geometry]:
    """Options of the two convolutions; a dimension is padded and strided where it is convolved."""
    if scheme == 1:
        one, zero = (1,) * g.dims, (0,) * g.dims
        second = replace(g, in_channels=rank, kernel_size=one, stride=one, padding=zero, dilation=one)
        return replace(g, out_channels=rank), second

    def only(axis: int, base: Geometry) -> Geometry:
        def keep(sizes: tuple[int, ...], other: int) -> tuple[int, ...]:
            return (sizes[0], other) if axis == 0 else (other, sizes[1])

        return replace(
            base,
            kernel_size=keep(g.kernel_size, 1),
            stride=keep(g.stride, 1),
            padding=g.padding if isinstance(g.padding, str) else keep(g.padding, 0),
            dilation=keep(g.dilation, 1),
        )

    return only(1, replace(g, out_channels=rank)), only(0, replace(g, in_channels=rank))
