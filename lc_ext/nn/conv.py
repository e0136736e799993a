"""Convolutions whose kernel is a packed matrix of shape (out_channels, in_channels / groups * kernel size)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ._conv_geometry import Geometry
from .lut_linear import LUTLinear
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

_STRIP = 1 << 20  # elements of the columns of a strip of the input: 4 MiB of float32


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
    Two ways to compute the same, up to the order of sums: the kernel is decoded, and torch convolves; or the input is
    cut into columns, and the matrix multiplies them packed. The second is taken where it was measured to be faster: for
    few positions of output, for which decoding does not pay (:meth:`by_columns`).
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

    def by_columns(self, x: Tensor) -> bool:
        """Whether an input of this shape is convolved packed, rather than with the decoded kernel."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        self.geometry.check_input(x)
        if self.by_columns(x):
            return self._convolve_columns(x)
        weight, bias = self._dense()
        return self.geometry.convolve(x.to(weight.dtype), weight, bias).to(x.dtype)

    def _dense(self) -> tuple[Tensor, Tensor | None]:
        bias = self.matrix.total_bias()
        weight = self.dense_weight()
        return weight, None if bias is None else bias.to(weight.dtype)

    def _convolve_columns(self, x: Tensor) -> Tensor:
        """The product of the packed matrix and the columns of the input, a strip of output rows at a time."""
        g = self.geometry
        x = g.padded(x)
        if self.dims == 1:
            x = x.unsqueeze(2)
        kernel, stride, dilation = ((1,) * (2 - self.dims) + t for t in (g.kernel_size, g.stride, g.dilation))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        height, width = ((x.shape[2 + i] - reach[i]) // stride[i] + 1 for i in (0, 1))
        y = x.new_empty(x.shape[0], height, width, g.out_channels)
        rows = max(1, _STRIP // max(g.fan_in * width, 1))
        images = max(1, rows // height)
        for b in range(0, x.shape[0], images):
            for top in range(0, height, rows):
                end = min(top + rows, height)
                strip = x[b : b + images, :, top * stride[0] : (end - 1) * stride[0] + reach[0]]
                columns = F.unfold(strip, kernel, dilation=dilation, stride=stride).transpose(1, 2).contiguous()
                y[b : b + images, top:end] = self.matrix(columns).unflatten(1, (end - top, width))
        y = y.permute(0, 3, 1, 2)
        return y.squeeze(2) if self.dims == 1 else y

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
