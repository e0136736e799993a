"""Linear layer with a sparse weight in compressed rows (CSR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from . import _check
from ._coded import check_values, decoded
from ._layouts import Layouts
from .activation import activation as activated
from .activation import activation_code, activation_reference

__all__ = ["check_csr", "column_dtype", "csr_to_dense", "dense_to_csr", "sparse_linear", "sparse_linear_reference"]


class _Slices(NamedTuple):
    """For one row of x: slices of 16 rows of similar length, see csrc/sparse_linear.h."""

    values: Tensor  # float32 or bfloat16
    columns: Tensor
    order: Tensor
    starts: Tensor
    arguments: tuple[int, ...]  # of the native call: addresses cost less than tensors do


class _Pieces(NamedTuple):
    """For many rows of x: what rows hold in blocks of columns, see csrc/sparse_linear.h."""

    values: Tensor
    offsets: Tensor
    piece_starts: Tensor
    rows: Tensor
    lengths: Tensor
    counts: Tensor


_BLOCK = 128  # columns that pieces are cut at: 32 KB of a panel of 64 rows of x
# Pieces are worth it from this batch and density on: at 10 %, 4096 x 4096, batch 64, they take 0.6 of the time of whole
# rows, at 3 and 5 % 0.7 to 0.9; at 2 % they lose.
_PIECES_BATCH, _PIECES_DENSITY = 17, 1 / 32


class _Layout:
    """What is derived from a valid structure; each part when it is first used."""

    def __init__(self) -> None:
        self.slices: _Slices | None = None
        self.pieces: _Pieces | None = None
        self.values: Tensor | None = None  # of the rows, in float32


_layouts: Layouts[_Layout] = Layouts()


def column_dtype(cols: int) -> torch.dtype:
    """The dtype of column indices: uint16 up to 65536 columns, else int32."""
    return torch.uint16 if cols <= 65536 else torch.int32


def sparse_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_starts: Tensor,
    cols: int,
    bias: Tensor | None = None,
    codebook: Tensor | None = None,
    activation: str | None = None,
    *,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """``activation(x @ W.T + bias)`` for a sparse ``W`` in compressed rows.

    Parameters
    ----------
    x : float tensor of shape (..., cols). float16 and bfloat16 are widened to float32 and the result is cast back.
    values : float tensor of shape (nnz,); or, with a codebook, uint8 codes of that shape.
    columns : tensor of shape (nnz,), uint16 if ``cols <= 65536``, else int32, ascending in each row.
    row_starts : int32 tensor of shape (rows + 1,): row o holds the entries ``row_starts[o] .. row_starts[o + 1]``.
    cols : input features.
    bias : float tensor of shape (rows,), or None.
    codebook : finite float tensor of shape (k,), 1 <= k <= 256, or None.
    activation : None, "relu", "gelu", "gelu_tanh" or "silu", as in :func:`~lc_ext.ops.activation`; with ``accumulate``
        it takes the sum.
    out : contiguous float32 tensor of the shape of the result, to be written and returned, for a float32 ``x``.
    accumulate : add to ``out`` instead.

    Returns
    -------
    y : tensor of shape (..., rows), of the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape, and for a structure that :func:`check_csr` refuses,
        naming the argument.

    Notes
    -----
    O(batch nnz), accumulated in float32 in a fixed order: the same bits on every instruction set and for any number of
    threads. No gradient.

    The structure is checked when its tensors are first used, and again after they are written to. A batch of 1 is
    computed on a layout of 6 bytes an entry (4 for bfloat16 values), and one of 17 or more, for a weight of which 1/32
    is stored, on one of 5 bytes, that are derived then and kept as long as the tensors live; others on the
    rows as they are.
    """
    x32 = _check.float32(x, "x")
    _check_layout(values, columns, row_starts, cols, codebook)
    named = (("values", values), ("columns", columns), ("row_starts", row_starts), ("codebook", codebook))
    for name, t in named:
        if t is not None and t.device != x32.device:
            raise ValueError(f"{name} must be on {x32.device} like the other tensors, got {t.device}")
    code = activation_code(activation)
    bias32, y = _check.linear(x, x32, cols, row_starts.numel() - 1, bias, out, accumulate)
    if values.numel() == 0 or not _native.has_kernel("sparse_linear", x32):
        result = sparse_linear_reference(x32, values, columns, row_starts, cols, bias, codebook)
        whole = result if y is None else y.add_(result) if accumulate else y.copy_(result)
        return (whole if activation is None else activated(whole, activation, out=whole)).to(x.dtype)
    return run_sparse_linear(x32, values, columns, row_starts, cols, bias32, codebook, y, accumulate, code).to(x.dtype)


def run_sparse_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_starts: Tensor,
    cols: int,
    bias: Tensor | None,
    codebook: Tensor | None = None,
    out: Tensor | None = None,
    accumulate: bool = False,
    activation: int = 0,
) -> Tensor:
    """:func:`sparse_linear` without its checks: for contiguous float32 ``x`` and ``bias`` that it would take."""
    rows, batch = row_starts.numel() - 1, x.shape[:-1].numel()
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device=x.device) if out is None else out
    if batch == 1:
        slices = sparse_linear_slices(values, columns, row_starts, cols, codebook)
        _native.call("sparse_linear_slice", x, *slices.arguments, rows, cols, bias, accumulate, activation, y)
        return y
    layout = _layout(values, columns, row_starts, cols, codebook)
    if batch >= _PIECES_BATCH and values.numel() >= _PIECES_DENSITY * rows * cols:
        layout.pieces = layout.pieces or _pieces(values, columns, row_starts, cols, codebook)
        row_starts = row_starts.contiguous()
        _native.call(
            "sparse_linear_in_pieces", x, batch, _BLOCK, *layout.pieces, row_starts, rows, cols, bias, accumulate,
            activation, y,
        )  # fmt: skip
        return y
    if layout.values is None:
        layout.values = decoded(values.detach(), codebook).float().contiguous()
    width = columns.element_size()
    kept = (layout.values, columns.contiguous(), width, row_starts.contiguous())
    _native.call("sparse_linear", x, batch, *kept, rows, cols, bias, accumulate, activation, y)
    return y


def sparse_linear_slices(
    values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None
) -> _Slices:
    """What the kernel for one row of x reads, derived on first use."""
    layout = _layout(values, columns, row_starts, cols, codebook)
    layout.slices = layout.slices or _slices(values, columns, row_starts, cols, codebook)
    return layout.slices


def _layout(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None) -> _Layout:
    tensors = (values, columns, row_starts) if codebook is None else (values, columns, row_starts, codebook)
    return _layouts.get(tensors, (cols,), lambda: _derive(values, columns, row_starts, cols, codebook))


def sparse_linear_reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_starts: Tensor,
    cols: int,
    bias: Tensor | None = None,
    codebook: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The same in plain torch: the meaning the kernels are tested against, and the path of other devices."""
    weight = csr_to_dense(values, columns, row_starts, cols, codebook).float()
    y = F.linear(x.float(), weight, None if bias is None else bias.float())
    return activation_reference(y, activation).to(x.dtype)


def csr_to_dense(
    values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None = None
) -> Tensor:
    """The dense weight.

    Parameters
    ----------
    values, columns, row_starts, cols, codebook : as for :func:`sparse_linear`.

    Returns
    -------
    weight : tensor of shape (rows, cols), of the dtype of ``values``, or of ``codebook`` if there is one.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape.
    """
    _check_layout(values, columns, row_starts, cols, codebook)
    kept = decoded(values, codebook)
    rows = row_starts.numel() - 1
    counts = row_starts.diff().long()
    row = torch.repeat_interleave(torch.arange(rows, device=kept.device), counts)
    weight = torch.zeros(rows, cols, dtype=kept.dtype, device=kept.device)
    return weight.index_put_((row, columns.long()), kept, accumulate=True)


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


def check_csr(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None = None) -> None:
    """Refuse a structure that is not compressed rows of ``cols`` columns.

    Parameters
    ----------
    values, columns, row_starts, cols, codebook : as for :func:`sparse_linear`.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape; if ``row_starts`` does not rise from 0 to nnz, the columns of a
        row do not ascend or are not in [0, cols), or a code is past the codebook.

    Notes
    -----
    O(nnz + rows).
    """
    _check_layout(values, columns, row_starts, cols, codebook)
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
        falls = F.pad(wide[1:] <= wide[:-1], (1, 0))
        falls[row_starts[row_starts < nnz].long()] = False  # the first entry of a row follows nothing
        if bool(falls.any()):
            at = int(falls.nonzero()[0])
            raise ValueError(f"columns must ascend in each row, got {int(wide[at - 1])} before {int(wide[at])}")
    decoded(values, codebook, check_only=True)


def _derive(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None) -> _Layout:
    """An empty layout, once the structure is known to be valid."""
    rows, nnz = row_starts.numel() - 1, values.numel()
    width = columns.element_size()
    native = (columns.contiguous(), width, row_starts.contiguous(), rows, cols, nnz)
    if _native.call("sparse_linear_check", *native) != -1:
        check_csr(values, columns, row_starts, cols)  # says what is wrong
    decoded(values, codebook, check_only=True)
    return _Layout()


def _slices(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None) -> _Slices:
    rows = row_starts.numel() - 1
    slices = (rows + 15) // 16
    order, starts = torch.empty(16 * slices, dtype=torch.int32), torch.empty(slices + 1, dtype=torch.int64)
    entries = 16 * _native.call("sparse_linear_slices", row_starts.contiguous(), rows, order, starts)
    kept = decoded(values.detach(), codebook)
    kept = (kept if kept.dtype is torch.bfloat16 else kept.float()).contiguous()
    to = torch.empty(entries, dtype=kept.dtype)
    columns_to = torch.empty(entries, dtype=torch.uint16 if cols < 65536 else torch.int32)  # `cols` stands for none
    bfloat = kept.dtype is torch.bfloat16
    _native.call(
        "sparse_linear_layout", kept, bfloat, columns.contiguous(), columns.element_size(), row_starts.contiguous(),
        rows, cols, order, starts, to, columns_to, columns_to.element_size(),
    )  # fmt: skip
    addresses = (to.data_ptr(), int(bfloat), columns_to.data_ptr(), columns_to.element_size())
    return _Slices(to, columns_to, order, starts, (*addresses, order.data_ptr(), starts.data_ptr()))


def _pieces(values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None) -> _Pieces:
    rows, nnz = row_starts.numel() - 1, values.numel()
    chunks, blocks = (rows + 63) // 64, (cols + _BLOCK - 1) // _BLOCK
    counts, starts = torch.empty(chunks, blocks, dtype=torch.uint8), torch.empty(chunks + 1, dtype=torch.int64)
    structure = (columns.contiguous(), columns.element_size(), row_starts.contiguous(), rows, cols, _BLOCK)
    total = _native.call("sparse_linear_count_pieces", *structure, counts, starts)
    offsets, piece_rows = torch.empty(nnz, dtype=torch.uint8), torch.empty(total, dtype=torch.uint8)
    lengths = torch.empty(total, dtype=torch.uint16)
    pieces = _Pieces(torch.empty(nnz, dtype=torch.float32), offsets, starts, piece_rows, lengths, counts)
    kept = decoded(values.detach(), codebook).float().contiguous()
    to = (pieces.values, pieces.offsets, pieces.rows, pieces.lengths)
    _native.call("sparse_linear_fill_pieces", kept, *structure, starts, *to)
    return pieces


def _check_layout(
    values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None = None
) -> None:
    """Dtypes and shapes, which need no look at the data."""
    cols = _check.integer(cols, "cols", 0)
    check_values(values, codebook)
    _check.tensor(columns, "columns")
    _check.tensor(row_starts, "row_starts")
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
