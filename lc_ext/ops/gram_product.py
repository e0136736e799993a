"""Products of a few rows with the transpose of a matrix, and of those with the matrix, in one pass over it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["gram_product", "gram_product_reference"]

_LEAST = 16  # columns that the kernel asks for


def gram_product(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``p = v @ a.t()`` and ``p @ a``: a step of a power or Krylov method for the singular values of ``a``.

    Parameters
    ----------
    a : float32, float16 or bfloat16 tensor of shape (m, n).
    v : like it, of shape (b, n), say 1 to 100 rows.

    Returns
    -------
    p : float32 of shape (b, m).
    x : float32 of shape (b, n).

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape.

    Notes
    -----
    O(mnb). A row of ``a`` is used for both products while it is in the cache, so a large matrix is read once, where two
    products read it twice. The same result for any number of threads; another instruction set rounds differently.

    Examples
    --------
    >>> image, product = ops.gram_product(torch.randn(40, 20), torch.randn(3, 20))
    >>> image.shape, product.shape
    (torch.Size([3, 40]), torch.Size([3, 20]))
    """
    matrix, rows = _check.float32(a, "a"), _check.float32(v, "v", _check.tensor(a, "a"))
    if matrix.dim() != 2:
        raise ValueError(f"a must be a matrix, got shape {tuple(matrix.shape)}")
    m, n = matrix.shape
    if rows.dim() != 2 or rows.shape[1] != n:
        raise ValueError(f"v must have shape (b, {n}), got {tuple(rows.shape)}")
    if n < _LEAST or not rows.numel() or not _native.has_kernel("gram_product", matrix):
        return gram_product_reference(matrix, rows)
    p, x = rows.new_empty(len(rows), m), torch.empty_like(rows)
    _native.call("gram_product", matrix, m, n, rows, len(rows), p, x)
    return p, x


def gram_product_reference(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain torch: the meaning the kernel is tested against, and the path of other devices."""
    p = v.float() @ a.float().t()
    return p, p @ a.float()
