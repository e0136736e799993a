"""Linear layer with packed codes and codebooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from . import _check
from ._layouts import Layouts
from ._lut_tables import int8_table, int16_table
from .activation import activation_code, activation_reference
from .pack_codes import check_words, pack_codes, unpack_codes

__all__ = ["lut_decode", "lut_linear", "lut_linear_reference"]

MODES = ("exact", "fast", "int8")
_EXACT, _INT16, _INT8, _ROW_MAJOR = 0, 1, 2, 5  # LutMode, LutLayout of csrc/lut_linear.h
_DECODED = 1 << 22  # weights at a time, where there is no kernel to decode them


def lut_linear(
    x: Tensor,
    words: Tensor,
    codebook: Tensor,
    bits: int,
    cols: int,
    bias: Tensor | None = None,
    mode: str = "exact",
    activation: str | None = None,
) -> Tensor:
    """``activation(x @ W.T + bias)`` with ``W[o, i] = codebook[code[o, i]]``, without making ``W``.

    Parameters
    ----------
    x : float tensor of shape (..., cols). float16 and bfloat16 are widened to float32 and the result is cast back.
    words : int32 tensor of shape (rows, ceil(cols * bits / 32)): the codes, as packed by
        :func:`~lc_ext.ops.pack_codes`.
    codebook : finite float tensor of shape (k,), or (rows, k): one for each row, or (rows, groups, k): one for each row
        and group of ``cols / groups`` consecutive columns; 1 <= k <= 2**bits. A code of k or more means 0.
    bits : bits per code, 1 to 8.
    cols : input features.
    bias : float tensor of shape (rows,), or None.
    mode : "exact": float32. "fast": codewords and activations of 13 bits, the activations with a scale for each row
        and 128 columns; with 1 and 2 bits and one codebook, sums of 2 or 4 products of 12 bits instead, a scale for
        each 16 of them, and no multiplications. The relative error is about 3e-4 to 8e-4. "int8": codewords of 7 and
        activations of 8 bits, the same scales; about 1e-2; 1 bit is as in "fast".
    activation : None, "relu", "gelu", "gelu_tanh" or "silu", as in :func:`~lc_ext.ops.activation`; applied by the
        kernel before it writes the result.

    Returns
    -------
    y : tensor of shape (..., rows), of the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape, mode or activation, or a codebook with NaN or Inf, naming
        the argument.

    Notes
    -----
    O(batch rows cols). The kernels read the codes in an order of their own, which the first call derives and keeps for
    as long as ``words`` and ``codebook`` live unchanged: about as much memory as ``words``, more for 3, 5, 6 and 7
    bits, which take 4 and 8. In "exact" the error is at most about ``cols * 2**-24 * (|x| @ |W|.T)``. The result has
    the same bits for any instruction set and number of threads, and each row of it depends on that row of ``x`` alone.
    In the other modes what is NaN or Inf in a row of ``x`` makes NaN of the whole row of ``y``; "exact" does as IEEE
    arithmetic does. No gradient. Devices with no kernel compute in float32 whatever the mode.
    """
    x32 = _check.float32(x, "x")
    words = check_words(words, bits, cols)
    check_codebook(codebook, words.shape[0], bits, cols, x32)
    rows = words.shape[0]
    if words.device != x32.device:
        raise ValueError(f"words must be on {x32.device} like the other tensors, got {words.device}")
    if x32.dim() == 0 or x32.shape[-1] != cols:
        raise ValueError(f"x must have shape (..., {cols}), got {tuple(x32.shape)}")
    bias32 = None if bias is None else _check.float32(bias, "bias", x32)
    if bias32 is not None and bias32.shape != (rows,):
        raise ValueError(f"bias must have shape ({rows},), got {tuple(bias32.shape)}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    code = activation_code(activation)
    if not _native.has_kernel("lut_linear", x32):
        return lut_linear_reference(x, words, codebook, bits, cols, bias, activation)
    return run_lut_linear(x32, words, codebook, bits, cols, mode, bias32, code).to(x.dtype)


class LutPlan:
    """What the kernel reads instead of the words and codebook of a layer."""

    __slots__ = ("addresses", "held", "rows")

    def __init__(self, words: Tensor, codebook: Tensor, bits: int, cols: int, mode: str) -> None:
        self.rows = words.shape[0]
        table = _check.float32(codebook, "codebook")
        _check.finite(table, "codebook")
        shared, width = table.dim() == 1, bits if bits <= 2 else 4 if bits <= 4 else 8
        arithmetic = MODES.index(mode)
        if shared and ((bits == 1 and mode != "exact") or (bits == 2 and mode == "fast")):
            layout, arithmetic = _native.call("lut_nibble_layout"), _INT16
        else:
            layout = arithmetic if shared else _ROW_MAJOR
            width = width if shared else max(width, 4)
        groups = 0 if shared else 1 if table.dim() == 2 else table.shape[1]
        books = F.pad(table, (0, 2**bits - table.shape[-1])).view(1 if shared else self.rows, max(groups, 1), -1)
        whole = (0, 2**width - 2**bits)
        integers = scale = offset = None
        if arithmetic == _INT16:
            small, step = int16_table(books)
        elif arithmetic == _INT8:
            small, step, zero = int8_table(books)
            offset = zero.expand(self.rows).contiguous()
        if arithmetic != _EXACT:
            integers, scale = F.pad(small, whole).contiguous(), step.expand(self.rows).contiguous()
        books = F.pad(books, whole).contiguous()
        if layout == _INT8 and width == 8:  # the kernel reads codewords, not codes
            bits, words = 8, pack_codes(small.view(-1)[unpack_codes(words, bits, cols).long()].to(torch.uint8), 8)
            books = ((torch.arange(256) - zero) * step).float()
        codes = torch.empty(_native.call("lut_layout_bytes", self.rows, cols, bits, layout), dtype=torch.uint8)
        _native.call("lut_repack", words.contiguous(), self.rows, cols, bits, layout, codes)
        self.held = (codes, books, integers, scale, offset)  # so that they live
        tables = [0 if t is None else t.data_ptr() for t in (books, integers, scale, offset)]
        group_cols = max(1, cols // max(groups, 1))
        self.addresses = (
            codes.data_ptr(), self.rows, cols, layout, width, arithmetic, groups, group_cols, *tables
        )  # fmt: skip


_plans: Layouts[LutPlan] = Layouts()


def lut_plan(words: Tensor, codebook: Tensor, bits: int, cols: int, mode: str) -> LutPlan:
    """The plan of these tensors, made on first use and whenever they have changed."""
    settings = (bits, cols, mode, _native.isa_changes)
    return _plans.get((words, codebook), settings, lambda: LutPlan(words, codebook, bits, cols, mode))


def run_lut_linear(
    x: Tensor,
    words: Tensor,
    codebook: Tensor,
    bits: int,
    cols: int,
    mode: str,
    bias: Tensor | None,
    activation: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`lut_linear` without its checks: for contiguous float32 ``x`` and ``bias`` that it would take."""
    plan = lut_plan(words, codebook, bits, cols, mode)
    shape = x.shape[:-1]
    y = x.new_empty((*shape, plan.rows)) if out is None else out
    _native.call("lut_linear", x, shape.numel(), *plan.addresses, bias, activation, y)
    return y


def lut_linear_reference(
    x: Tensor,
    words: Tensor,
    codebook: Tensor,
    bits: int,
    cols: int,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The same in plain torch: the meaning the kernels are tested against, and the path of other devices."""
    weight = _decode_reference(words, codebook.float(), bits, cols)
    y = F.linear(x.float(), weight, None if bias is None else bias.float())
    return activation_reference(y, activation).to(x.dtype)


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
    table = check_codebook(codebook, words.shape[0], bits, cols, words)
    if table.dim() > 1 or not _native.has_kernel("lut_decode", words):
        return _decode_reference(words, table, bits, cols)
    words = words.contiguous()
    weight = torch.empty(words.shape[0], cols, dtype=torch.float32, device=words.device)
    _native.call("lut_decode", words, words.shape[0], cols, bits, table, table.numel(), weight)
    return weight


def check_codebook(value: object, rows: int, bits: int, cols: int, like: Tensor) -> Tensor:
    """A codebook of one of the three shapes, as float32."""
    table = _check.float32(value, "codebook", like)
    shape = tuple(table.shape)
    if not 1 <= len(shape) <= 3 or not 1 <= shape[-1] <= 2**bits:
        raise ValueError(
            f"codebook must be a vector of 1 to {2**bits} codewords for {bits} bits, or one for each row, or for each "
            f"row and group of columns, got shape {shape}"
        )
    if len(shape) > 1 and shape[0] != rows:
        raise ValueError(f"codebook must have a codebook for each of {rows} rows, got shape {shape}")
    if len(shape) == 3 and (shape[1] == 0 or cols % shape[1]):
        raise ValueError(f"codebook must have a number of groups that divides {cols} columns, got shape {shape}")
    return table


def _decode_reference(words: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    padded = F.pad(table, (0, 2**bits - table.shape[-1]))
    if table.dim() == 1:
        return padded[unpack_codes(words, bits, cols).long()]
    rows, step = words.shape[0], max(1, _DECODED // max(cols, 1))
    books = padded.view(rows, -1, 2**bits)
    weight = torch.empty(rows, cols, dtype=torch.float32, device=words.device)
    for begin in range(0, rows, step) if cols else ():
        codes = unpack_codes(words[begin : begin + step], bits, cols).long()
        part = weight[begin : begin + step].view(codes.shape[0], books.shape[1], -1)
        torch.gather(books[begin : begin + step], 2, codes.view_as(part), out=part)
    return weight
