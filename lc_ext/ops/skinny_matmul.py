"""Product of a matrix with a matrix of few columns."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["skinny_matmul", "skinny_matmul_reference"]

_COLUMNS = 16  # the kernel's tile: numbers of columns are rounded up to a multiple


def skinny_matmul(a: Tensor, x: Tensor, *, transpose: bool = False) -> Tensor:
    """``a @ x``, or ``a.t() @ x``, for a large matrix and a few columns, say 8 to 200.

    Parameters
    ----------
    a : float32, float16 or bfloat16 tensor of shape (m, n).
    x : like it, of shape (n, b), or (m, b) with ``transpose``.
    transpose : multiply with the transpose of ``a``.

    Returns
    -------
    y : float32 of shape (m, b), or (n, b).

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape.

    Notes
    -----
    O(mnb). A general matrix product packs ``a`` first, which for few columns costs as much as the product; this one
    reads it where it lies. The same result for any number of threads; another instruction set rounds differently.

    Examples
    --------
    >>> ops.skinny_matmul(torch.eye(3), torch.tensor([[1.0], [2.0], [3.0]]))
    tensor([[1.],
            [2.],
            [3.]])
    """
    matrix, columns = _check.float32(a, "a"), _check.float32(x, "x", _check.tensor(a, "a"))
    if matrix.dim() != 2:
        raise ValueError(f"a must be a matrix, got shape {tuple(matrix.shape)}")
    inner = matrix.shape[0 if transpose else 1]
    if columns.dim() != 2 or columns.shape[0] != inner:
        raise ValueError(f"x must have shape ({inner}, b), got {tuple(columns.shape)}")
    if not _native.has_kernel("skinny_matmul", matrix):
        return skinny_matmul_reference(matrix, columns, transpose=transpose)
    return _native_product(matrix, columns, transpose)


def skinny_matmul_reference(a: Tensor, x: Tensor, *, transpose: bool = False) -> Tensor:
    """The same in plain torch: the meaning the kernel is tested against, and the path of other devices."""
    return (a.t() if transpose else a).float() @ x.float()


def _native_product(a: Tensor, x: Tensor, transpose: bool) -> Tensor:
    b = x.shape[1]
    if b % _COLUMNS:
        return _native_product(a, torch.nn.functional.pad(x, (0, -b % _COLUMNS)), transpose)[:, :b].contiguous()
    y = x.new_empty(a.shape[1 if transpose else 0], b)
    _native.call("skinny_matmul", a, *a.shape, transpose, x, b, False, y)
    return y
