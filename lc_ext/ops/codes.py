"""Packed codes: small integers as rows of a dense bit stream."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check

__all__ = ["check_words", "pack_codes", "unpack_codes", "words_per_row"]

# Plain torch, on any device, and no native kernel: eight codes of any width are whole bytes and fit an int64, so eight
# shifts do all columns at once (1e7 codes: 0.3 s on one core). Packing happens once; the layers decode the
# words inside their kernels.


def words_per_row(cols: int, bits: int) -> int:
    """Number of 32-bit words that hold ``cols`` codes of ``bits`` bits."""
    return (cols * bits + 31) // 32


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into rows of 32-bit words.

    Parameters
    ----------
    codes : uint8 tensor of shape (rows, cols), each below ``2**bits``.
    bits : bits per code, 1 to 8.

    Returns
    -------
    words : int32 tensor of shape (rows, ceil(cols * bits / 32)). Code i of a row is at bit ``i * bits`` of its bit
        stream, lowest bit first; the last word is filled with zeros. The layout of compressed-tensors' pack-quantized.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, ``bits`` out of range, or a code of ``2**bits`` or more.

    Notes
    -----
    O(rows cols), with about two bytes of scratch per code.
    """
    codes = _check.tensor(codes, "codes")
    bits = _check.integer(bits, "bits", 1, 8)
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    if codes.dim() != 2:
        raise ValueError(f"codes must have shape (rows, cols), got {tuple(codes.shape)}")
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


def unpack_codes(words: Tensor, bits: int, cols: int) -> Tensor:
    """The codes in rows of packed words: the inverse of :func:`pack_codes`.

    Parameters
    ----------
    words : int32 tensor of shape (rows, ceil(cols * bits / 32)). Bits past the last code are ignored.
    bits : bits per code, 1 to 8.
    cols : codes per row.

    Returns
    -------
    codes : uint8 tensor of shape (rows, cols).

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, or ``bits`` or ``cols`` out of range.
    """
    words = check_words(words, bits, cols)
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
