"""Convolution kernels as matrices, and low-rank factors as convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor

from . import _check

__all__ = ["ConvOptions", "RankCost", "conv_as_matrix", "conv_factors", "conv_macs", "conv_options", "matrix_as_conv"]

Pair = int | Sequence[int]


class ConvOptions(TypedDict):
    """Keyword arguments of ``torch.nn.functional.conv2d`` and ``torch.nn.Conv2d``."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class RankCost(NamedTuple):
    """Cost of a factored layer, ``per_rank * rank``, and of the layer as it is."""

    per_rank: float
    dense: float


def conv_as_matrix(weight: Tensor, scheme: int) -> Tensor:
    """The kernel of a two-dimensional convolution, (n, m, d1, d2), as the matrix that is to be of low rank.

    Parameters
    ----------
    weight : tensor of shape (n, m, d1, d2): n output and m input channels, one group.
    scheme : 1: matrix (n, m d1 d2), the convolution becomes one of d1 x d2 and one of 1 x 1. 2: matrix
        (n d1, m d2), it becomes one of 1 x d2 and one of d1 x 1.

    Returns
    -------
    matrix : a view where the layout permits, of the same dtype.

    Raises
    ------
    TypeError, ValueError : for another shape or scheme.

    Notes
    -----
    The two schemes of Idelbayev and Carreira-Perpinan (CVPR 2020).

    Examples
    --------
    >>> ops.conv_as_matrix(torch.zeros(16, 8, 3, 3), 1).shape, ops.conv_as_matrix(torch.zeros(16, 8, 3, 3), 2).shape
    (torch.Size([16, 72]), torch.Size([48, 24]))
    """
    weight = _check.tensor(weight, "weight")
    n, m, d1, d2 = _shape(weight.shape)
    if _scheme(scheme) == 1:
        return weight.reshape(n, m * d1 * d2)
    return weight.transpose(1, 2).reshape(n * d1, m * d2)


def matrix_as_conv(matrix: Tensor, shape: Sequence[int], scheme: int) -> Tensor:
    """The kernel of shape ``shape`` = (n, m, d1, d2) whose ``conv_as_matrix`` is ``matrix``.

    Raises
    ------
    TypeError, ValueError : for another shape or scheme.

    Examples
    --------
    >>> weight = torch.randn(16, 8, 3, 3)
    >>> torch.equal(ops.matrix_as_conv(ops.conv_as_matrix(weight, 2), weight.shape, 2), weight)
    True
    """
    matrix = _check.tensor(matrix, "matrix")
    n, m, d1, d2 = _shape(shape)
    sides = (n, m * d1 * d2) if _scheme(scheme) == 1 else (n * d1, m * d2)
    if matrix.shape != sides:
        raise ValueError(f"matrix must have shape {sides}, got {tuple(matrix.shape)}")
    if scheme == 1:
        return matrix.reshape(n, m, d1, d2)
    return matrix.reshape(n, d1, m, d2).transpose(1, 2).contiguous()


def conv_factors(left: Tensor, right: Tensor, shape: Sequence[int], scheme: int) -> tuple[Tensor, Tensor]:
    """Kernels of the two convolutions that compute the one with the kernel ``matrix_as_conv(left @ right)``.

    Parameters
    ----------
    left : (n, r) for scheme 1, (n d1, r) for scheme 2.
    right : (r, m d1 d2), or (r, m d2).
    shape : (n, m, d1, d2), of the kernel they stand for.
    scheme : 1 or 2.

    Returns
    -------
    first : (r, m, d1, d2), or (r, m, 1, d2): the convolution that is applied first, without bias.
    second : (n, r, 1, 1), or (n, r, d1, 1): it takes the bias. :func:`conv_options` has the options of both.

    Raises
    ------
    TypeError, ValueError : for another shape or scheme.

    Examples
    --------
    >>> first, second = ops.conv_factors(torch.randn(16, 4), torch.randn(4, 72), (16, 8, 3, 3), 1)
    >>> first.shape, second.shape
    (torch.Size([4, 8, 3, 3]), torch.Size([16, 4, 1, 1]))
    """
    left, right = _check.tensor(left, "left"), _check.tensor(right, "right")
    n, m, d1, d2 = _shape(shape)
    rows, columns = (n, m * d1 * d2) if _scheme(scheme) == 1 else (n * d1, m * d2)
    if left.dim() != 2 or left.shape[0] != rows:
        raise ValueError(f"left must have shape ({rows}, r), got {tuple(left.shape)}")
    r = left.shape[1]
    if right.shape != (r, columns):
        raise ValueError(f"right must have shape ({r}, {columns}), got {tuple(right.shape)}")
    if scheme == 1:
        return right.reshape(r, m, d1, d2), left.reshape(n, r, 1, 1)
    return right.reshape(r, m, 1, d2), left.reshape(n, d1, r).transpose(1, 2).unsqueeze(3).contiguous()


def conv_options(
    scheme: int, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> tuple[ConvOptions, ConvOptions]:
    """Options of the two convolutions of :func:`conv_factors`, from those of the convolution they replace.

    Raises
    ------
    TypeError, ValueError : for an option that is not an int or a pair of ints in range, or another scheme.

    Examples
    --------
    >>> first, second = ops.conv_options(2, padding=1)
    >>> first["padding"], second["padding"]
    ((0, 1), (1, 0))
    """
    s, p, d = pair(stride, "stride", 1), pair(padding, "padding", 0), pair(dilation, "dilation", 1)
    if _scheme(scheme) == 1:
        return _options(s, p, d), _options((1, 1), (0, 0), (1, 1))
    return _options((1, s[1]), (0, p[1]), (1, d[1])), _options((s[0], 1), (p[0], 0), (d[0], 1))


def conv_macs(
    shape: Sequence[int], scheme: int, size: Pair, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> RankCost:
    """Multiply-adds of the two convolutions for each rank, and of the one they replace, on one image.

    Parameters
    ----------
    shape : (n, m, d1, d2), of the kernel.
    scheme : 1: m d1 d2 H_out W_out + n H_out W_out for each rank. 2: m d2 H W_out + n d1 H_out W_out, since the first
        convolution strides along the width alone.
    size : height and width of the input.
    stride, padding, dilation : as for :func:`conv_options`.

    Returns
    -------
    RankCost(per_rank, dense) : what :func:`rank_select` takes as its cost.

    Raises
    ------
    TypeError, ValueError : for an option out of range, or an input smaller than the kernel.

    Examples
    --------
    >>> ops.conv_macs((16, 8, 3, 3), 1, 32, padding=1)
    RankCost(per_rank=90112, dense=1179648)
    """
    n, m, d1, d2 = _shape(shape)
    s, p, d = pair(stride, "stride", 1), pair(padding, "padding", 0), pair(dilation, "dilation", 1)
    sides = pair(size, "size", 1)
    height, width = ((sides[i] + 2 * p[i] - d[i] * (k - 1) - 1) // s[i] + 1 for i, k in enumerate((d1, d2)))
    if height < 1 or width < 1:
        raise ValueError(f"size must hold the kernel {(d1, d2)}, got {sides}")
    dense = n * m * d1 * d2 * height * width
    if _scheme(scheme) == 1:
        return RankCost((m * d1 * d2 + n) * height * width, dense)
    return RankCost(m * d2 * sides[0] * width + n * d1 * height * width, dense)


def _options(stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> ConvOptions:
    return {"stride": stride, "padding": padding, "dilation": dilation}


def _scheme(scheme: object) -> int:
    return _check.integer(scheme, "scheme", 1, 2)


def _shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise ValueError(f"the kernel must have shape (n, m, d1, d2), got {tuple(shape)}")
    n, m, d1, d2 = (_check.integer(side, "shape", 1) for side in shape)
    return n, m, d1, d2


def pair(value: Pair, name: str, low: int) -> tuple[int, int]:
    if isinstance(value, Sequence):
        if isinstance(value, str) or len(value) != 2:
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        return _check.integer(value[0], name, low), _check.integer(value[1], name, low)
    both = _check.integer(value, name, low)
    return both, both
