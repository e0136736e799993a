"""Two-dimensional convolution with a kernel that is kept as codes, sparse elements, or both."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from . import _check
from .conv_matrix import Pair, pair

__all__ = ["ConvTiles", "conv_tiles", "tiled_conv2d", "tiled_conv2d_reference"]

TILE = 16  # outputs; kConvTile of csrc/tiled_conv2d.h, which has the layout


class ConvTiles(NamedTuple):
    """A convolution kernel in the order in which :func:`tiled_conv2d` reads it; :func:`conv_tiles` makes it.

    Attributes
    ----------
    shape : (outputs, inputs, height, width).
    codes : uint8 tensor, two codes a byte up to 16 codewords; or None.
    bits : 4 or 8.
    table : float32 tensor of 2**bits codewords, or of shape (tiles, 2**bits, 16), with a codebook for each output of a
        tile; or None.
    starts, places, values : the sparse elements of each tile, int32, int32 and float32; or None.
    """

    shape: tuple[int, int, int, int]
    codes: Tensor | None
    bits: int
    table: Tensor | None
    starts: Tensor | None
    places: Tensor | None
    values: Tensor | None


def conv_tiles(
    shape: tuple[int, int, int, int],
    *,
    codes: Tensor | None = None,
    codebook: Tensor | None = None,
    sparse: Tensor | None = None,
) -> ConvTiles:
    """The tiles of a kernel that is ``codebook[codes] + sparse``, either part optional.

    Parameters
    ----------
    shape : (outputs, inputs, height, width).
    codes : uint8 tensor of ``shape``.
    codebook : float tensor of shape (k,), 1 <= k <= 256, or (outputs, k): one for each output. A code of k or more
        means 0.
    sparse : float tensor of ``shape``, most of it zero.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, or codes without a codebook.

    Notes
    -----
    O(elements); made once for a kernel. Codes take 4 or 8 bits in tiles, however few they are packed in.

    Examples
    --------
    >>> codes = torch.randint(0, 4, (8, 3, 3, 3)).to(torch.uint8)
    >>> ops.conv_tiles((8, 3, 3, 3), codes=codes, codebook=torch.tensor([-1.0, 0.0, 0.5, 2.0])).bits
    4
    """
    n, m, d1, d2 = (_check.integer(s, f"shape[{i}]", 1) for i, s in enumerate(shape))
    if (codes is None) != (codebook is None) or (codes is None and sparse is None):
        raise ValueError("codes must come with a codebook, and there must be codes or sparse elements")
    packed = table = starts = places = values = None
    bits = 4
    if codes is not None and codebook is not None:
        if codes.dtype != torch.uint8 or tuple(codes.shape) != tuple(shape):
            raise ValueError(f"codes must be uint8 of shape {shape}, got {codes.dtype} of {tuple(codes.shape)}")
        words = _check.float32(codebook, "codebook", codes)
        if words.shape[:-1] not in ((), (n,)) or words.dim() == 0 or not 1 <= words.shape[-1] <= 256:
            raise ValueError(
                f"codebook must be a vector of 1 to 256 codewords, or one for each of {n} outputs, got shape "
                f"{tuple(words.shape)}"
            )
        bits = 4 if words.shape[-1] <= TILE and int(codes.max()) < TILE else 8
        table = F.pad(words, (0, 2**bits - words.shape[-1]))
        if words.dim() == 2:
            table = F.pad(table, (0, 0, 0, -n % TILE)).unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()
        packed = _tiled(codes)
        if bits == 4:
            packed = packed[..., : TILE // 2] | packed[..., TILE // 2 :] << 4
        packed = packed.contiguous()
    if sparse is not None:
        dense = _check.float32(sparse, "sparse")
        if tuple(dense.shape) != tuple(shape):
            raise ValueError(f"sparse must have shape {shape}, got {tuple(dense.shape)}")
        tiles = _tiled(dense).flatten(1)
        tile, place = tiles.nonzero(as_tuple=True)
        starts = torch.zeros(tiles.shape[0] + 1, dtype=torch.int32, device=dense.device)
        starts[1:] = torch.bincount(tile, minlength=tiles.shape[0]).cumsum(0)
        places, values = place.to(torch.int32), tiles[tile, place].contiguous()
    return ConvTiles((n, m, d1, d2), packed, bits, table, starts, places, values)


def _tiled(weight: Tensor) -> Tensor:
    """(outputs, inputs, height, width) as (tiles, height * width * inputs, TILE), padded with zeros."""
    flat = weight.permute(0, 2, 3, 1).flatten(1)
    padded = F.pad(flat, (0, 0, 0, -flat.shape[0] % TILE))
    tiled: Tensor = padded.unflatten(0, (-1, TILE)).transpose(1, 2)
    return tiled


def tiled_conv2d(
    x: Tensor, tiles: ConvTiles, bias: Tensor | None = None, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """``torch.nn.functional.conv2d`` of one group with a kernel in tiles.

    Parameters
    ----------
    x : float tensor of shape (batch, inputs, height, width); channels last is read where it lies. float16 and bfloat16
        are widened, and the result is cast back.
    tiles : see :func:`conv_tiles`; on the device of ``x``.
    bias : float tensor of shape (outputs,), or None.
    stride, padding, dilation : as for ``conv2d``, an int or two.

    Returns
    -------
    y : tensor of shape (batch, outputs, out_height, out_width), channels last, of the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape, or an input smaller than the kernel.

    Notes
    -----
    As many multiply-adds as the dense convolution, accumulated in float32; a tile of the kernel is decoded for each few
    images. The same bits for any number of threads. No gradient.

    Examples
    --------
    >>> tiles = ops.conv_tiles((8, 3, 3, 3), sparse=torch.eye(8, 27).view(8, 3, 3, 3))
    >>> ops.tiled_conv2d(torch.randn(1, 3, 6, 6), tiles, padding=1).shape
    torch.Size([1, 8, 6, 6])
    """
    original = _check.tensor(x, "x")
    if original.dim() != 4 or original.shape[1] != tiles.shape[1]:
        raise ValueError(f"x must have shape (batch, {tiles.shape[1]}, height, width), got {tuple(original.shape)}")
    s, p, d = pair(stride, "stride", 1), pair(padding, "padding", 0), pair(dilation, "dilation", 1)
    size = [(original.shape[2 + i] + 2 * p[i] - d[i] * (tiles.shape[2 + i] - 1) - 1) // s[i] + 1 for i in (0, 1)]
    if min(size) < 1:
        raise ValueError(f"x must be at least as large as the kernel {tiles.shape[2:]}, got {tuple(original.shape)}")
    offset = None if bias is None else _check.float32(bias, "bias", original)
    if offset is not None and offset.shape != tiles.shape[:1]:
        raise ValueError(f"bias must have shape {tiles.shape[:1]}, got {tuple(offset.shape)}")
    if original.dtype not in _check.FLOATS:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {original.dtype}")
    if not _native.has_kernel("tiled_conv2d", original):
        return tiled_conv2d_reference(original, tiles, offset, stride=s, padding=p, dilation=d)
    return run_tiled_conv2d(original.float(), tiles, offset, s, p, d, size).to(original.dtype)


def run_tiled_conv2d(
    x: Tensor,
    tiles: ConvTiles,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    size: list[int],
) -> Tensor:
    """:func:`tiled_conv2d` without its checks, for float32; ``size`` is the height and width of the result."""
    n, _, d1, d2 = tiles.shape
    y = torch.empty(x.shape[0], *size, n, dtype=torch.float32, device=x.device)
    if y.numel():
        options = (*stride, *padding, *dilation)
        _native.call(
            "tiled_conv2d", x, tuple(x.shape), x.stride(), (n, d1, d2), options,
            tiles.codes, tiles.bits, tiles.table, tiles.table is not None and tiles.table.dim() == 3,
            tiles.starts, tiles.places, tiles.values, bias, y,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def tiled_conv2d_reference(
    x: Tensor, tiles: ConvTiles, bias: Tensor | None = None, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """The same in plain torch: the meaning the kernel is tested against, and the path of other devices."""
    n, m, d1, d2 = tiles.shape
    count, taps = -(-n // TILE), m * d1 * d2
    weight = torch.zeros(count, taps, TILE, device=x.device)
    if tiles.codes is not None and tiles.table is not None:
        codes = tiles.codes if tiles.bits == 8 else torch.cat([tiles.codes & 15, tiles.codes >> 4], -1)
        shared = tiles.table.dim() == 1
        weight += tiles.table[codes.long()] if shared else tiles.table.gather(1, codes.long())
    if tiles.starts is not None and tiles.places is not None and tiles.values is not None:
        tile = torch.repeat_interleave(torch.arange(count, device=x.device), tiles.starts.diff().long())
        weight.view(count, -1)[tile, tiles.places.long()] += tiles.values
    dense = weight.transpose(1, 2).flatten(0, 1)[:n].unflatten(1, (d1, d2, m)).permute(0, 3, 1, 2)
    y: Tensor = F.conv2d(x.float(), dense, bias, stride, padding, dilation)
    return y.to(x.dtype)
