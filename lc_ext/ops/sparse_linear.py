"""Linear layer with a sparse weight in compressed rows (CSR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["check_csr", "column_dtype", "csr_to_dense", "dense_to_csr", "sparse_linear", "sparse_linear_reference"]


def column_dtype(cols: int) -> torch.dtype:
    """The dtype of column indices: uint16 up to 65536 columns, else int32."""
    return torch.uint16 if cols <= 65536 else torch.int32


def sparse_linear(
    x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, bias: Tensor | None = None
) -> Tensor:
    """``x @ W.T + bias`` for a sparse ``W`` in compressed rows.

    Parameters
    ----------
    x : float tensor of shape (..., cols). float16 and bfloat16 are widened to float32 and the result is cast back.
    values : float tensor of shape (nnz,).
    columns : tensor of shape (nnz,), uint16 if ``cols <= 65536``, else int32. Entries of the same row and column add.
    row_starts : int32 tensor of shape (rows + 1,): row o holds the entries ``row_starts[o] .. row_starts[o + 1]``.
    cols : input features.
    bias : float tensor of shape (rows,), or None.

    Returns
    -------
    y : tensor of shape (..., rows), of the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape, naming the argument.

    Notes
    -----
    Precondition: the structure passes :func:`check_csr`. It is not checked here, since that costs as much as the
    product for a batch of 1; a structure that breaks it makes the kernel read outside the tensors. The packed layers
    check when they are made and when they are loaded.

    O(batch nnz), accumulated in float32, with the same bits for any number of threads. No gradient.
    """
    x32 = _check.float32(x, "x")
    v32 = _check.float32(values, "values", x32)
    _check_layout(v32, columns, row_starts, cols)
    rows, nnz = row_starts.numel() - 1, v32.numel()
    for name, t in (("columns", columns), ("row_starts", row_starts)):
        if t.device != x32.device:
            raise ValueError(f"{name} must be on {x32.device} like the other tensors, got {t.device}")
    if x32.dim() == 0 or x32.shape[-1] != cols:
        raise ValueError(f"x must have shape (..., {cols}), got {tuple(x32.shape)}")
    bias32 = None if bias is None else _check.float32(bias, "bias", x32)
    if bias32 is not None and bias32.shape != (rows,):
        raise ValueError(f"bias must have shape ({rows},), got {tuple(bias32.shape)}")
    if nnz == 0 or not _native.has_kernel("sparse_linear", x32):
        return sparse_linear_reference(x, values, columns, row_starts, cols, bias)
    return run_sparse_linear(x32, v32, columns.contiguous(), row_starts.contiguous(), cols, bias32).to(x.dtype)


def run_sparse_linear(
    x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, bias: Tensor | None
) -> Tensor:
    """:func:`sparse_linear` without its checks: for contiguous tensors that it would take, in float32."""
    rows, batch = row_starts.numel() - 1, x.shape[:-1].numel()
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device=x.device)
    panel = None
    if batch > 1:
        size = _native.call("sparse_linear_panel_size", batch, cols)
        panel = torch.empty(size, dtype=torch.float32, device=x.device)
    width = columns.element_size()
    _native.call("sparse_linear", x, batch, values, columns, width, row_starts, rows, cols, bias, panel, y)
    return y


def sparse_linear_reference(
    x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, bias: Tensor | None = None
) -> Tensor:
    """The same in plain torch: the meaning the kernels are tested against, and the path of other devices."""
    weight = csr_to_dense(values.float(), columns, row_starts, cols)
    return F.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


def csr_to_dense(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int) -> Tensor:
    """The dense weight.

    Parameters
    ----------
    values, columns, row_starts, cols : as for :func:`sparse_linear`.

    Returns
    -------
    weight : tensor of shape (rows, cols), of the dtype of ``values``.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape.
    """
    _check_layout(values, columns, row_starts, cols)
    rows = row_starts.numel() - 1
    counts = row_starts.diff().long()
    row = torch.repeat_interleave(torch.arange(rows, device=values.device), counts)
    weight = torch.zeros(rows, cols, dtype=values.dtype, device=values.device)
    return weight.index_put_((row, columns.long()), values, accumulate=True)


def dense_to_csr(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The elements of a matrix that are not zero.

    Parameters
    ----------
    weight : tensor of shape (rows, cols). NaN is not zero.

    Returns
    -------
    values, columns, row_starts : as for :func:`sparse_linear`; values of the dtype of ``weight``, columns ascending
        in each row.

    Raises
    ------
    TypeError, ValueError : for another shape, or 2**31 or more elements that are not zero.
    """
    weight = _check.tensor(weight, "weight")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (rows, cols), got {tuple(weight.shape)}")
    kept = weight != 0
    counts = kept.sum(1)
    starts = F.pad(counts.cumsum(0), (1, 0))
    if int(starts[-1]) >= 2**31:
        raise ValueError(f"weight must have fewer than 2**31 elements that are not zero, got {int(starts[-1])}")
    columns = kept.nonzero()[:, 1].to(column_dtype(weight.shape[1]))
    return weight[kept], columns, starts.to(torch.int32)


def check_csr(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int) -> None:
    """Refuse a structure that is not compressed rows of ``cols`` columns.

    Parameters
    ----------
    values, columns, row_starts, cols : as for :func:`sparse_linear`.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape; if ``row_starts`` does not rise from 0 to nnz, or a column is
        not in [0, cols).

    Notes
    -----
    O(nnz + rows).
    """
    _check_layout(values, columns, row_starts, cols)
    nnz = values.numel()
    first, last = int(row_starts[0]), int(row_starts[-1])
    if first != 0 or last != nnz:
        raise ValueError(f"row_starts must rise from 0 to the number of values, {nnz}, got {first} to {last}")
    if bool((row_starts[1:] < row_starts[:-1]).any()):
        raise ValueError("row_starts must not fall")
    if nnz:
        wide = columns.to(torch.int32)  # uint16 has no max on the CPU
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high >= cols:
            raise ValueError(f"columns must be in [0, {cols}), got {low} to {high}")


def _check_layout(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int) -> None:
    """Dtypes and shapes, which need no look at the data."""
    cols = _check.integer(cols, "cols", 0)
    _check.tensor(values, "values")
    _check.tensor(columns, "columns")
    _check.tensor(row_starts, "row_starts")
    if values.dtype not in (*_check.FLOATS, torch.float64):
        raise TypeError(f"values must be floating-point, got {values.dtype}")
    if columns.dtype != column_dtype(cols):
        raise TypeError(f"columns must be {column_dtype(cols)} for {cols} columns, got {columns.dtype}")
    if row_starts.dtype != torch.int32:
        raise TypeError(f"row_starts must be int32, got {row_starts.dtype}")
    if row_starts.dim() != 1 or row_starts.numel() < 1:
        raise ValueError(f"row_starts must have shape (rows + 1,), got {tuple(row_starts.shape)}")
    if values.dim() != 1 or columns.shape != values.shape:
        raise ValueError(
            f"columns must have the shape (nnz,) of values, got {tuple(columns.shape)} and {tuple(values.shape)}"
        )
