"""Linear layer with packed codes and a codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from . import _check
from .pack_codes import check_words, unpack_codes

__all__ = ["lut_decode", "lut_linear", "lut_linear_reference"]

# Rows of x from which decoding blocks of rows for torch's matrix product is faster than the kernel, for 1 to 8 bits:
# measured with 4096 x 4096 weights on one core of an AMD EPYC Milan (AVX2).
_DENSE_BATCH = (48, 32, 32, 32, 9, 5, 5, 5)
_TILE_WEIGHTS = 1 << 20  # 4 MiB of float32 weights at a time


def lut_linear(x: Tensor, words: Tensor, codebook: Tensor, bits: int, cols: int, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias`` with ``W[o, i] = codebook[code[o, i]]``, without making ``W``.

    Parameters
    ----------
    x : float tensor of shape (..., cols). float16 and bfloat16 are widened to float32 and the result is cast back.
    words : int32 tensor of shape (rows, ceil(cols * bits / 32)): the codes, as packed by
        :func:`~lc_ext.ops.pack_codes`.
    codebook : float tensor of shape (k,), 1 <= k <= 2**bits, finite. A code of k or more means 0.
    bits : bits per code, 1 to 8.
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
    O(batch rows cols), accumulated in float32; the error is at most about ``cols * 2**-24 * (|x| @ |W|.T)``. No
    gradient. Small batches run in a kernel whose result has the same bits for any number of threads; large ones decode
    blocks of rows and use torch's matrix product, which makes its own promises.
    """
    x32 = _check.float32(x, "x")
    words = check_words(words, bits, cols)
    table = _codebook(codebook, bits, x32)
    rows = words.shape[0]
    if words.device != x32.device:
        raise ValueError(f"words must be on {x32.device} like the other tensors, got {words.device}")
    if x32.dim() == 0 or x32.shape[-1] != cols:
        raise ValueError(f"x must have shape (..., {cols}), got {tuple(x32.shape)}")
    bias32 = None if bias is None else _check.float32(bias, "bias", x32)
    if bias32 is not None and bias32.shape != (rows,):
        raise ValueError(f"bias must have shape ({rows},), got {tuple(bias32.shape)}")
    if not _native.has_kernel("lut_linear", x32):
        return lut_linear_reference(x, words, codebook, bits, cols, bias)
    return run_lut_linear(x32, words.contiguous(), table, bits, cols, bias32).to(x.dtype)


def run_lut_linear(x: Tensor, words: Tensor, table: Tensor, bits: int, cols: int, bias: Tensor | None) -> Tensor:
    """:func:`lut_linear` without its checks: for contiguous tensors that it would take, in float32."""
    rows, batch = words.shape[0], x.shape[:-1].numel()
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device=x.device)
    if batch < _DENSE_BATCH[bits - 1]:
        _native.call("lut_linear", x, batch, words, rows, cols, bits, table, table.numel(), bias, y)
    else:
        _by_dense_tiles(x.view(batch, cols), words, table, bits, cols, bias, y.view(batch, rows))
    return y


def lut_linear_reference(
    x: Tensor, words: Tensor, codebook: Tensor, bits: int, cols: int, bias: Tensor | None = None
) -> Tensor:
    """The same in plain torch: the meaning the kernels are tested against, and the path of other devices."""
    weight = _decode_reference(words, codebook.float(), bits, cols)
    return F.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


def lut_decode(words: Tensor, codebook: Tensor, bits: int, cols: int) -> Tensor:
    """The dense weight ``W[o, i] = codebook[code[o, i]]``, exactly.

    Parameters
    ----------
    words, codebook, bits, cols : as for :func:`lut_linear`.

    Returns
    -------
    weight : float32 tensor of shape (rows, cols).

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape, naming the argument.
    """
    words = check_words(words, bits, cols)
    table = _codebook(codebook, bits, words)
    if not _native.has_kernel("lut_decode", words):
        return _decode_reference(words, table, bits, cols)
    words = words.contiguous()
    weight = torch.empty(words.shape[0], cols, dtype=torch.float32, device=words.device)
    _native.call("lut_decode", words, words.shape[0], cols, bits, table, table.numel(), weight)
    return weight


def _codebook(value: object, bits: int, like: Tensor) -> Tensor:
    table = _check.float32(value, "codebook", like)
    if table.dim() != 1 or not 1 <= table.numel() <= 2**bits:
        raise ValueError(
            f"codebook must be a vector of 1 to {2**bits} codewords for {bits} bits, got shape {tuple(table.shape)}"
        )
    return table


def _decode_reference(words: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    padded = F.pad(table, (0, 2**bits - table.numel()))
    return padded[unpack_codes(words, bits, cols).long()]


def _by_dense_tiles(
    x: Tensor, words: Tensor, table: Tensor, bits: int, cols: int, bias: Tensor | None, y: Tensor
) -> None:
    """Decode a block of rows that stays in cache, multiply, repeat."""
    rows = words.shape[0]
    step = max(16, _TILE_WEIGHTS // max(cols, 1))
    tile = torch.empty(min(step, rows), cols, dtype=torch.float32, device=x.device)
    for begin in range(0, rows, step):
        part = words[begin : begin + step]
        weight = tile[: part.shape[0]]
        _native.call("lut_decode", part, part.shape[0], cols, bits, table, table.numel(), weight)
        out = y[:, begin : begin + step]
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias[begin : begin + step], x, weight.t(), out=out)
