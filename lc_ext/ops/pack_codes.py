"""Packed codes: small integers as rows of a dense bit stream; and how many bits codes and positions are worth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from . import _check

__all__ = [
    "GapBits",
    "check_words",
    "code_entropy",
    "gap_bits",
    "pack_codes",
    "pack_codes_reference",
    "unpack_codes",
    "unpack_codes_reference",
    "words_per_row",
]


def words_per_row(cols: int, bits: int) -> int:
    """Number of 32-bit words that hold ``cols`` codes of ``bits`` bits."""
    return (cols * bits + 31) // 32


def pack_codes(codes: Tensor, bits: int, *, out: Tensor | None = None) -> Tensor:
    """Pack codes into rows of 32-bit words.

    Parameters
    ----------
    codes : uint8 tensor of shape (rows, cols), each below ``2**bits``.
    bits : bits per code, 1 to 8.
    out : contiguous int32 tensor of the shape of the result, on the device of ``codes``, to be written and returned.

    Returns
    -------
    words : int32 tensor of shape (rows, ceil(cols * bits / 32)). Code i of a row is at bit ``i * bits`` of its bit
        stream, lowest bit first; the last word is filled with zeros. The layout of compressed-tensors' pack-quantized.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, ``bits`` out of range, or a code of ``2**bits`` or more; ``out``
        is undefined then.

    Notes
    -----
    O(rows cols), one pass, no scratch. The same words for every instruction set and number of threads. Devices with no
    kernel take the plain-torch path.

    Examples
    --------
    >>> ops.pack_codes(torch.tensor([[1, 0, 3], [2, 2, 2]], dtype=torch.uint8), 2)  # lowest bits first
    tensor([[49],
            [42]], dtype=torch.int32)
    """
    codes = _codes(codes)
    bits = _check.integer(bits, "bits", 1, 8)
    if codes.dim() != 2:
        raise ValueError(f"codes must have shape (rows, cols), got {tuple(codes.shape)}")
    rows, cols = codes.shape
    words = _check.out(out, "out", (rows, words_per_row(cols, bits)), torch.int32, codes)
    if not _native.has_kernel("pack_codes", codes):
        return words.copy_(pack_codes_reference(codes, bits))
    if not _native.call("pack_codes", codes, rows, cols, bits, words):
        raise ValueError(f"codes must be below 2**bits = {2**bits}, got {int(codes.max())}")
    return words


def pack_codes_reference(codes: Tensor, bits: int) -> Tensor:
    """The same in plain torch: eight codes of any width are whole bytes and fit an int64.

    The meaning the kernel is tested against, and the path of other devices.
    """
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"codes must be below 2**bits = {2**bits}, got {int(codes.max())}")
    rows, cols = codes.shape
    if codes.numel() == 0:
        return torch.zeros(rows, words_per_row(cols, bits), dtype=torch.int32, device=codes.device)
    groups = (cols + 7) // 8
    padded = codes if cols == 8 * groups else torch.nn.functional.pad(codes, (0, 8 * groups - cols))
    eights = padded.reshape(rows, groups, 8)
    packed = torch.zeros(rows, groups, dtype=torch.int64, device=codes.device)
    for i in range(8):
        packed |= eights[:, :, i].to(torch.int64) << (i * bits)
    stream = packed.unsqueeze(-1).view(torch.uint8)[:, :, :bits].reshape(rows, groups * bits)
    words = torch.zeros(rows, 4 * words_per_row(cols, bits), dtype=torch.uint8, device=codes.device)
    used = min(words.shape[1], stream.shape[1])  # a last group that is not full has bytes of zeros to spare
    words[:, :used] = stream[:, :used]
    return words.view(torch.int32)


def unpack_codes(words: Tensor, bits: int, cols: int, *, out: Tensor | None = None) -> Tensor:
    """The codes in rows of packed words: the inverse of :func:`pack_codes`.

    Parameters
    ----------
    words : int32 tensor of shape (rows, ceil(cols * bits / 32)). Bits past the last code are ignored.
    bits : bits per code, 1 to 8.
    cols : codes per row.
    out : contiguous uint8 tensor of shape (rows, cols), on the device of ``words``, to be written and returned.

    Returns
    -------
    codes : uint8 tensor of shape (rows, cols).

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, or ``bits`` or ``cols`` out of range.

    Examples
    --------
    >>> ops.unpack_codes(torch.tensor([[49], [42]], dtype=torch.int32), 2, 3)
    tensor([[1, 0, 3],
            [2, 2, 2]], dtype=torch.uint8)
    """
    words = check_words(words, bits, cols).contiguous()
    rows = words.shape[0]
    codes = _check.out(out, "out", (rows, cols), torch.uint8, words)
    if not _native.has_kernel("unpack_codes", words):
        return codes.copy_(unpack_codes_reference(words, bits, cols))
    _native.call("unpack_codes", words, rows, cols, bits, codes)
    return codes


def unpack_codes_reference(words: Tensor, bits: int, cols: int) -> Tensor:
    """The same in plain torch: the meaning the kernel is tested against, and the path of other devices."""
    rows = words.shape[0]
    if words.numel() == 0:
        return torch.zeros(rows, cols, dtype=torch.uint8, device=words.device)
    groups = (cols + 7) // 8
    stream = words.contiguous().view(torch.uint8)
    if stream.shape[1] < groups * bits:
        stream = torch.nn.functional.pad(stream, (0, groups * bits - stream.shape[1]))
    packed = torch.zeros(rows, groups, 8, dtype=torch.uint8, device=words.device)
    packed[:, :, :bits] = stream[:, : groups * bits].reshape(rows, groups, bits)
    eights = packed.view(torch.int64).squeeze(-1)
    codes = torch.empty(rows, groups, 8, dtype=torch.uint8, device=words.device)
    for i in range(8):
        codes[:, :, i] = (eights >> (i * bits)) & (2**bits - 1)
    return codes.view(rows, 8 * groups)[:, :cols].contiguous()


def check_words(words: object, bits: int, cols: int) -> Tensor:
    """``words`` as a tensor of packed rows of ``cols`` codes of ``bits`` bits, or an error that names the argument."""
    t = _check.tensor(words, "words")
    bits = _check.integer(bits, "bits", 1, 8)
    cols = _check.integer(cols, "cols", 0)
    if t.dtype != torch.int32:
        raise TypeError(f"words must be int32, got {t.dtype}")
    if t.dim() != 2 or t.shape[1] != words_per_row(cols, bits):
        raise ValueError(
            f"words must have shape (rows, {words_per_row(cols, bits)}) for {cols} codes of {bits} bits, "
            f"got {tuple(t.shape)}"
        )
    return t


def code_entropy(codes: Tensor, k: int) -> float:
    """Entropy of the distribution of codes, in bits per code: the least that an entropy coder can spend on each.

    Parameters
    ----------
    codes : uint8 tensor of any shape, each below ``k``.
    k : number of codewords, 1 to 256.

    Returns
    -------
    entropy : ``-sum p log2 p`` with p the relative frequencies, from exact counts; 0.0 if there are no codes.

    Raises
    ------
    TypeError, ValueError : for another dtype, ``k`` out of range, or a code of ``k`` or more.

    Examples
    --------
    >>> ops.code_entropy(torch.tensor([0, 0, 1, 1], dtype=torch.uint8), 4)  # bits a code
    1.0
    """
    codes = _codes(codes)
    k = _check.integer(k, "k", 1, 256)
    if _native.has_kernel("count_codes", codes):
        counts = torch.empty(256, dtype=torch.int64, device=codes.device)
        _native.call("count_codes", codes, codes.numel(), counts)
    else:
        counts = torch.bincount(codes.reshape(-1), minlength=256)
    if bool(counts[k:].any()):
        raise ValueError(f"codes must be below {k}, got {int(codes.max())}")
    return _entropy(counts)


class GapBits(NamedTuple):
    """Result of :func:`gap_bits`."""

    bits: int
    width: int
    entropy: float


def gap_bits(positions: Tensor) -> GapBits:
    """Size of a set of positions, coded as the gaps between them.

    Parameters
    ----------
    positions : bool tensor of any shape, a mask whose true entries are meant; or an ascending int64 vector of the
        positions themselves, none negative.

    Returns
    -------
    bits : size of the gaps in symbols of the best width B from 2 to 32. A gap g (entries skipped) takes
        ``g // (2**B - 1)`` escape symbols and one more. B is a constant of the format.
    width : that B, the lowest in a tie.
    entropy : bits of all gaps in an ideal entropy code of their distribution, which is no part of the size.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, or positions that do not ascend.

    Notes
    -----
    O(N + m log m) for m positions: all widths are counted on the distinct gaps, which are few.

    Examples
    --------
    >>> ops.gap_bits(torch.tensor([3, 40, 41]))
    GapBits(bits=18, width=6, entropy=4.754887502163468)
    """
    t = _check.tensor(positions, "positions")
    if t.dtype == torch.bool:
        t = t.reshape(-1).nonzero().flatten()
    elif t.dtype != torch.int64 or t.dim() != 1:
        raise TypeError(f"positions must be a bool mask or an int64 vector, got {t.dtype} of shape {tuple(t.shape)}")
    if t.numel() == 0:
        return GapBits(0, 2, 0.0)
    gaps = t.diff(prepend=t.new_tensor([-1])) - 1
    if bool((gaps < 0).any()):
        raise ValueError("positions must be ascending and not negative")
    values, counts = _distinct(gaps)
    symbols = [(width, int(((values // (2**width - 1) + 1) * counts).sum())) for width in range(2, 33)]
    bits, width = min((width * count, width) for width, count in symbols)
    return GapBits(bits, width, t.numel() * _entropy(counts))


def _distinct(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values of a vector and their counts; without a sort where the values are small."""
    if int(gaps.max()) < 1 << 20:
        counts = torch.bincount(gaps)
        values = counts.nonzero().flatten()
        return values, counts[values]
    values, counts = gaps.unique(return_counts=True)
    return values, counts


def _entropy(counts: Tensor) -> float:
    """Entropy of counts, in bits."""
    p = counts[counts > 0].double()
    return float((p * (p.sum() / p).log2()).sum() / p.sum()) if p.numel() else 0.0


def _codes(value: object) -> Tensor:
    codes = _check.tensor(value, "codes")
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    return codes.contiguous()
