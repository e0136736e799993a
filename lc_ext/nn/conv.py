"""Convolutions whose kernel is a packed matrix of shape (out_channels, in_channels / groups * kernel size)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.tiled_conv2d import run_tiled_conv2d
from . import _ops
from ._conv_geometry import Geometry
from .lut_linear import LUTLinear
from .one_row import Unchanged
from .packed import PackedLayer, PackedLinear
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = [
    "LUTConv1d",
    "LUTConv2d",
    "PackedConv",
    "SparseConv1d",
    "SparseConv2d",
    "SumConv1d",
    "SumConv2d",
    "packed_conv",
]

Sizes = int | Sequence[int]


class PackedConv(PackedLayer):
    """A convolution, ``y = conv(x, W) + bias``, whose kernel ``W`` is a packed matrix.

    Parameters
    ----------
    matrix : packed layer of shape ``in_channels / groups * prod(kernel_size)`` -> out_channels: the kernel, each output
        channel's flattened to a row, and the bias.
    in_channels, kernel_size, stride, padding, dilation, groups, padding_mode : as for ``nn.Conv1d`` and ``nn.Conv2d``.

    Raises
    ------
    TypeError, ValueError : for options out of range, or a matrix of another class or shape.

    Notes
    -----
    Two ways to compute the same, up to the order of sums. A kernel of codes (with one codebook, or one for each output
    channel), of sparse elements or of both, in one group, on the CPU and without gradients, is convolved packed
    (:func:`lc_ext.ops.tiled_conv2d`); it is put in the order for that at the first call, and again when its buffers
    change. Else the kernel is decoded, and torch convolves.
    """

    kind: ClassVar[type[PackedLinear]]
    dims: ClassVar[int]

    def __init__(
        self,
        matrix: PackedLinear,
        in_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if not isinstance(matrix, self.kind):
            raise TypeError(f"matrix must be a {self.kind.__name__}, got {type(matrix).__name__}")
        self.geometry = Geometry.checked(
            self.dims, in_channels, matrix.out_features, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if matrix.in_features != self.geometry.fan_in:
            raise ValueError(
                f"matrix must have {self.geometry.fan_in} inputs, for {in_channels} channels in {groups} groups and a "
                f"kernel of {self.geometry.kernel_size}, got {matrix.in_features}"
            )
        self.matrix = matrix
        self._kept: _Convolution | None = None  # a copy makes its own

    @classmethod
    def from_dense(cls, conv: nn.Module) -> PackedConv:
        """A layer with the kernel of ``conv``, exactly, as the ``from_dense`` of its matrix makes it.

        Raises
        ------
        TypeError, ValueError : for another class of layer, or a kernel that the matrix cannot hold.
        """
        geometry = Geometry.of(conv, cls.dims)
        linear = nn.Linear(geometry.fan_in, geometry.out_channels, bias=conv.bias is not None, device="meta")
        linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)  # type: ignore[operator]
        linear.bias = conv.bias  # type: ignore[assignment]
        make = getattr(cls.kind, "from_dense", None)
        if make is None:
            raise TypeError(f"{cls.__name__} has no from_dense: make its matrix first")
        return cls(make(linear), **geometry.options()).train(conv.training)

    @property
    def bias(self) -> Tensor | None:
        """The bias, of shape (out_channels,), or None."""
        return self.matrix.bias

    def forward(self, x: Tensor) -> Tensor:
        self.geometry.check_input(x)
        if x.dim() == self.dims + 2 and _ops.is_plain_conv(x):
            kept = self._kept
            if kept is None or not kept.holds():
                learns = torch.is_grad_enabled() and any(t.requires_grad for t in self.matrix.buffers())
                kept = self._kept = None if learns else _Convolution(self.matrix, self.geometry, self.dims)
            if kept is not None and kept.tiles is not None:
                return kept.run(x, kept.tiles)
        weight, bias = self._dense()
        return self.geometry.convolve(x.to(weight.dtype), weight, bias).to(x.dtype)

    def _dense(self) -> tuple[Tensor, Tensor | None]:
        bias = self.matrix.total_bias()
        weight = self.dense_weight()
        return weight, None if bias is None else bias.to(weight.dtype)

    def dense_weight(self) -> Tensor:
        return self.matrix.dense_weight().view(self.geometry.weight_shape)

    def to_dense(self) -> nn.Module:
        weight, bias = self._dense()
        return self.geometry.dense(weight, bias).train(self.training)

    def check_replaces(self, dense: nn.Module) -> None:
        self.geometry.check_replaces(dense)

    def config(self) -> dict[str, Any]:
        return self.geometry.options()

    def check(self) -> None:
        self.matrix.check()


class LUTConv1d(PackedConv):
    """A one-dimensional convolution of codes and a codebook."""

    kind, dims = LUTLinear, 1


class LUTConv2d(PackedConv):
    """A two-dimensional convolution of codes and a codebook."""

    kind, dims = LUTLinear, 2


class SparseConv1d(PackedConv):
    """A one-dimensional convolution that stores the elements of its kernel that are not zero."""

    kind, dims = SparseLinear, 1


class SparseConv2d(PackedConv):
    """A two-dimensional convolution that stores the elements of its kernel that are not zero."""

    kind, dims = SparseLinear, 2


class SumConv1d(PackedConv):
    """A one-dimensional convolution whose kernel is a sum, such as codes plus a sparse correction."""

    kind, dims = SumLinear, 1


class SumConv2d(PackedConv):
    """A two-dimensional convolution whose kernel is a sum, such as codes plus a sparse correction."""

    kind, dims = SumLinear, 2


_OF: dict[tuple[type[PackedLinear], int], type[PackedConv]] = {
    (cls.kind, cls.dims): cls for cls in (LUTConv1d, LUTConv2d, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d)
}


class _Convolution(Unchanged):
    """What the packed convolution of a layer takes, made at the first call and when a buffer has changed."""

    __slots__ = ("_bias", "_dims", "_geometry", "_matrix", "_options", "_pad", "tiles")

    def __init__(self, matrix: PackedLinear, geometry: Geometry, dims: int) -> None:
        super().__init__(matrix.rests_on())
        self._matrix, self._geometry, self._dims = matrix, geometry, dims
        self.tiles = _make_tiles(matrix, geometry)
        self._bias = self._total_bias()
        pads = geometry.pads()
        self._pad = geometry.padding_mode != "zeros" or pads[::2] != pads[1::2]  # before the call
        around = (0,) * dims if self._pad else tuple(pads[::-2])
        ones, none = (1,) * (2 - dims), (0,) * (2 - dims)
        self._options = (ones + tuple(geometry.stride), none + around, ones + tuple(geometry.dilation))

    def _total_bias(self) -> Tensor | None:
        bias = self._matrix.total_bias()
        return None if bias is None else bias.float().contiguous()

    def run(self, x: Tensor, tiles: ops.ConvTiles) -> Tensor:
        stride, padding, dilation = self._options
        if self._pad:
            x = self._geometry.padded(x)
        wide = x if self._dims == 2 else x.unsqueeze(2)
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(wide.shape[2:], padding, dilation, tiles.shape[2:], stride, strict=True)
        ]
        bias = self._bias if self.told else self._total_bias()
        if min(size) < 1:  # says what is wrong
            return ops.tiled_conv2d(wide, tiles, bias, stride=stride, padding=padding, dilation=dilation)
        y = run_tiled_conv2d(wide.float(), tiles, bias, stride, padding, dilation, size).to(x.dtype)
        return y if self._dims == 2 else y.squeeze(2)


@torch.no_grad()
def _make_tiles(matrix: PackedLinear, g: Geometry) -> ops.ConvTiles | None:
    parts = list(matrix.parts) if isinstance(matrix, SumLinear) else [matrix]
    luts = [p for p in parts if isinstance(p, LUTLinear) and p.codebook.dim() <= 2]
    sparse = [p for p in parts if isinstance(p, SparseLinear)]
    if g.groups != 1 or len(luts) > 1 or len(luts) + len(sparse) < len(parts):
        return None
    shape = (*g.weight_shape[:2], *(1,) * (2 - g.dims), *g.weight_shape[2:])
    return ops.conv_tiles(
        (shape[0], shape[1], shape[2], shape[3]),
        codes=luts[0].codes().view(shape) if luts else None,
        codebook=luts[0].codebook if luts else None,
        sparse=sum((p.dense_weight().float() for p in sparse[1:]), sparse[0].dense_weight().float()).view(shape)
        if sparse
        else None,
    )


def packed_conv(matrix: PackedLinear, dense: nn.Module) -> PackedConv:
    """The packed convolution with this matrix and the options of a dense one.

    Parameters
    ----------
    matrix : packed layer of the shape of the kernel of ``dense``, flattened, with the bias.
    dense : an ``nn.Conv1d`` or ``nn.Conv2d``; its kernel and bias are not read.

    Raises
    ------
    TypeError, ValueError : for another class of layer or matrix, or another shape.

    Notes
    -----
    A matrix of a kind that has no convolution of its own becomes the one term of a sum.
    """
    dims = 1 if isinstance(dense, nn.Conv1d) else 2
    cls = _OF.get((type(matrix), dims))
    if cls is None:
        cls, matrix = _OF[SumLinear, dims], SumLinear([matrix])
    return cls(matrix, **Geometry.of(dense, dims).options()).train(dense.training)
