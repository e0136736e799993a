"""Linear layer with an N:M sparse weight: n of each m consecutive columns are stored, such as 2:4."""

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
from .pack_codes import pack_codes, unpack_codes, words_per_row

__all__ = ["NMPacked", "check_nm", "nm_linear", "nm_linear_reference", "nm_pack", "nm_unpack", "position_bits"]


class NMPacked(NamedTuple):
    """Result of :func:`nm_pack`."""

    values: Tensor
    indices: Tensor


class _Layout(NamedTuple):
    values: Tensor  # (blocks, slots, 16), float32 or bfloat16
    words: Tensor


_layouts: Layouts[_Layout] = Layouts()


def position_bits(m: int) -> int:
    """Bits of a position in a group of m columns."""
    return (m - 1).bit_length()


def nm_pack(weight: Tensor, n: int, m: int) -> NMPacked:
    """The kept elements of an N:M sparse matrix, and where they are.

    Parameters
    ----------
    weight : float tensor of shape (rows, cols), with at most ``n`` elements that are not zero in each group of ``m``
        consecutive columns; the last group may be shorter.
    n, m : 1 <= n < m <= 16.

    Returns
    -------
    values : tensor of shape (rows, ceil(cols / m) * n), of the dtype of ``weight``: the slots of all groups. Slots that
        the elements of a group leave free take its first zeros.
    indices : int32 tensor of shape (rows, ...): the position of each slot's column in its group, ascending within the
        group, in ``ceil(log2(m))`` bits each, packed by :func:`~lc_ext.ops.pack_codes`. For 2:4 these are the 2-bit
        metadata of semi-structured sparsity elsewhere.

    Raises
    ------
    TypeError, ValueError : for another dtype, shape or pattern, and for a group with more than ``n`` elements.

    Notes
    -----
    O(rows cols), in plain torch.
    """
    t = _check.tensor(weight, "weight")
    n, m = _pattern(n, m)
    if t.dtype not in _check.FLOATS:
        raise TypeError(f"weight must be float32, float16 or bfloat16, got {t.dtype}")
    if t.dim() != 2:
        raise ValueError(f"weight must have shape (rows, cols), got {tuple(t.shape)}")
    rows, cols = t.shape
    groups = (cols + m - 1) // m
    grouped = F.pad(t, (0, groups * m - cols)).view(rows, groups, m)
    taken = grouped != 0
    counts = taken.sum(2, keepdim=True, dtype=torch.int8)
    if counts.numel() and int(counts.max()) > n:
        raise ValueError(f"weight must have at most n = {n} nonzero elements in each {m}, got {int(counts.max())}")
    free = (~taken).cumsum(2, dtype=torch.int8) <= n - counts  # the first zeros, as many as there are free slots
    taken |= free & ~taken
    positions = torch.arange(m, dtype=torch.uint8, device=t.device).expand(rows, groups, m)[taken]
    indices = pack_codes(positions.view(rows, groups * n), position_bits(m))
    return NMPacked(grouped[taken].view(rows, groups * n), indices)


def nm_unpack(values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None = None) -> Tensor:
    """The dense weight: the inverse of :func:`nm_pack`.

    Parameters
    ----------
    values, indices, n, m, cols, codebook : as for :func:`nm_linear`.

    Returns
    -------
    weight : tensor of shape (rows, cols), of the dtype of ``values``, or of ``codebook`` if there is one.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, or positions that do not ascend below ``m`` in a group.
    """
    _check_format(values, indices, n, m, cols, codebook)
    positions = _positions(indices, n, m, cols)
    kept = decoded(values, codebook)
    rows, groups = positions.shape[:2]
    dense = torch.zeros(rows, groups, m, dtype=kept.dtype, device=kept.device)
    dense.scatter_(2, positions.long(), kept.view(rows, groups, n))
    return dense.view(rows, groups * m)[:, :cols].contiguous()


def check_nm(values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None = None) -> None:
    """Refuse tensors that are not an N:M sparse weight of ``cols`` columns.

    Parameters
    ----------
    values, indices, n, m, cols, codebook : as for :func:`nm_linear`.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, positions that do not ascend below ``m`` in a group, or codes
        past the codebook.
    """
    _check_format(values, indices, n, m, cols, codebook)
    _positions(indices, n, m, cols)
    decoded(values, codebook, check_only=True)


def nm_linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    n: int,
    m: int,
    cols: int,
    bias: Tensor | None = None,
    codebook: Tensor | None = None,
    activation: str | None = None,
    *,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """``activation(x @ W.T + bias)`` for an N:M sparse ``W``.

    Parameters
    ----------
    x : float tensor of shape (..., cols). float16 and bfloat16 are widened to float32 and the result is cast back.
    values : float tensor of shape (rows, ceil(cols / m) * n), as packed by :func:`nm_pack`; or, with a codebook, uint8
        codes of that shape. Slots whose column is past the last one are ignored.
    indices : int32 tensor, as packed by :func:`nm_pack`.
    n, m : 1 <= n < m <= 16.
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
    TypeError, ValueError : for another dtype, device or shape, and for positions or codes that are not valid, naming
        the argument.

    Notes
    -----
    O(batch rows cols n / m), accumulated in float32 in a fixed order: the same bits on every instruction set and for
    any number of threads. No gradient.

    The kernel computes on a layout of its own, float32 or bfloat16 values and 2 or 4 bits a position, which is derived
    and checked when a pair of tensors is first used and kept as long as they live; writing to them in place derives it
    again.
    """
    x32 = _check.float32(x, "x")
    _check_format(values, indices, n, m, cols, codebook)
    for name, t in (("values", values), ("indices", indices), ("codebook", codebook)):
        if t is not None and t.device != x32.device:
            raise ValueError(f"{name} must be on {x32.device} like the other tensors, got {t.device}")
    rows = values.shape[0]
    code = activation_code(activation)
    bias32, y = _check.linear(x, x32, cols, rows, bias, out, accumulate)
    if not _native.has_kernel("nm_linear", x32) or cols == 0:
        result = nm_linear_reference(x32, values, indices, n, m, cols, bias, codebook)
        whole = result if y is None else y.add_(result) if accumulate else y.copy_(result)
        return (whole if activation is None else activated(whole, activation, out=whole)).to(x.dtype)
    return run_nm_linear(x32, values, indices, n, m, cols, bias32, codebook, y, accumulate, code).to(x.dtype)


def run_nm_linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    n: int,
    m: int,
    cols: int,
    bias: Tensor | None,
    codebook: Tensor | None,
    out: Tensor | None = None,
    accumulate: bool = False,
    activation: int = 0,
) -> Tensor:
    """:func:`nm_linear` without its checks: for contiguous float32 ``x`` and ``bias`` that it would take."""
    layout = nm_linear_layout(values, indices, n, m, cols, codebook)
    rows, batch = values.shape[0], x.shape[:-1].numel()
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device=x.device) if out is None else out
    bfloat = layout.values.dtype is torch.bfloat16
    _native.call(
        "nm_linear", x, batch, layout.values, bfloat, layout.words, rows, cols, n, m, bias, accumulate, activation, y
    )  # fmt: skip
    return y


def nm_linear_layout(values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None) -> _Layout:
    """What the kernel reads, derived on first use."""
    tensors = (values, indices) if codebook is None else (values, indices, codebook)
    return _layouts.get(tensors, (n, m, cols), lambda: _derive(values, indices, n, m, cols, codebook))


def nm_linear_reference(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    n: int,
    m: int,
    cols: int,
    bias: Tensor | None = None,
    codebook: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The same in plain torch: the meaning the kernels are tested against, and the path of other devices."""
    weight = nm_unpack(values, indices, n, m, cols, codebook).float()
    y = F.linear(x.float(), weight, None if bias is None else bias.float())
    return activation_reference(y, activation).to(x.dtype)


def _derive(values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None) -> _Layout:
    rows, slots, blocks = values.shape[0], _native.call("nm_linear_slots", cols, n, m), (values.shape[0] + 15) // 16
    kept = decoded(values.detach(), codebook)
    kept = (kept if kept.dtype is torch.bfloat16 else kept.float()).contiguous()
    layout = _Layout(
        torch.empty(blocks, slots, 16, dtype=kept.dtype),
        torch.empty(blocks, slots // (16 if m <= 4 else 8), 16, dtype=torch.int32),
    )
    bfloat = kept.dtype is torch.bfloat16
    bad = _native.call("nm_linear_layout", kept, bfloat, indices.contiguous(), rows, cols, n, m, *layout)
    if bad >= 0:
        raise ValueError(f"indices must hold positions that ascend below m = {m} in each group, which row {bad} breaks")
    return layout


def _pattern(n: int, m: int) -> tuple[int, int]:
    m = _check.integer(m, "m", 2, 16)
    return _check.integer(n, "n", 1, m - 1), m


def _check_format(values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None) -> None:
    """Dtypes and shapes, which need no look at the data."""
    n, m = _pattern(n, m)
    slots = (_check.integer(cols, "cols", 0) + m - 1) // m * n
    check_values(values, codebook)
    _check.tensor(indices, "indices")
    if values.dim() != 2 or values.shape[1] != slots:
        raise ValueError(f"values must have shape (rows, {slots}) for {cols} columns, got {tuple(values.shape)}")
    if indices.dtype != torch.int32:
        raise TypeError(f"indices must be int32, got {indices.dtype}")
    shape = (values.shape[0], words_per_row(slots, position_bits(m)))
    if tuple(indices.shape) != shape:
        raise ValueError(f"indices must have shape {shape} for {slots} slots, got {tuple(indices.shape)}")


def _positions(indices: Tensor, n: int, m: int, cols: int) -> Tensor:
    """Valid positions, as a uint8 tensor of shape (rows, groups, n)."""
    groups = (cols + m - 1) // m
    positions = unpack_codes(indices, position_bits(m), groups * n).view(indices.shape[0], groups, n)
    if positions.numel() and (int(positions.max()) >= m or bool((positions[:, :, 1:] <= positions[:, :, :-1]).any())):
        raise ValueError(f"indices must hold positions that ascend below m = {m} in each group")
    return positions
