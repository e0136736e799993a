"""Quantization: a learned codebook, or levels that are given, with or without a scale."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from lc_ext import ops
from lc_ext.nn import LUTLinear, PackedLinear

from .base import Compression, flat, group_offsets, split

__all__ = ["Binary", "Levels", "PowersOfTwo", "Quantize", "SymmetricInt", "Ternary", "VectorQuantize"]

Per = Literal["row"] | int | None


def checked_per(per: Per) -> Per:
    """``per`` as it is, or an error that names it."""
    if per is None or per == "row" or (isinstance(per, int) and not isinstance(per, bool) and per >= 2):
        return per
    raise ValueError(f'per must be None, "row" or a group size of at least 2, got {per!r}')


class Codes(Compression):
    """A codebook of k values for each part of the group: ``codebook_`` of shape (k,) or (parts, k)."""

    codebook_: Tensor
    codes_: list[Tensor]
    per: Per

    def _values(self, codebook: Tensor) -> list[Tensor]:
        codes = flat(self.codes_)
        if codebook.dim() == 1:
            values = codebook[codes.long()]
        else:
            sizes = torch.tensor(group_offsets(self.codes_, self.per), device=codes.device).diff()
            part = torch.repeat_interleave(torch.arange(len(sizes), device=codes.device), sizes)
            values = codebook.reshape(-1)[part * codebook.shape[1] + codes.long()]
        return split(values, self.codes_)

    def decompress(self) -> list[Tensor]:
        if self.codebook_.dim() == 1 and not self.codebook_.requires_grad:
            return [ops.decode(codes, self.codebook_) for codes in self.codes_]
        return self._values(self.codebook_)

    def weight_bits(self) -> int:
        return math.ceil(math.log2(self.codebook_.shape[-1])) * sum(c.numel() for c in self.codes_)

    def bits(self) -> int:
        return self.weight_bits() + 32 * self.codebook_.numel()

    def summary(self) -> dict[str, float]:
        return {"codewords": self.codebook_.unique().numel()}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        codes, codebook = self.codes_[i].flatten(1), self.codebook_
        if codebook.dim() == 1:
            codebook, order = codebook.sort()
            return LUTLinear.from_codes(order.argsort().to(torch.uint8)[codes.long()], codebook, bias)
        rows, cols = codes.shape
        size = cols if self.per == "row" else min(int(self.per or cols), cols)
        if codes.numel() == 0 or cols % size:
            return None  # the last part of a row is shorter
        parts = cols // size  # of a row
        first = len(group_offsets(self.codes_[:i], self.per)) - 1
        mine = codebook[first : first + rows * parts]
        return LUTLinear.from_codes(codes, mine if parts == 1 else mine.view(rows, parts, -1), bias)


class Quantize(Codes):
    """An adaptive codebook of ``k`` values, one for the whole group, or one for each row or run of weights.

    Parameters
    ----------
    k : codewords, 2 to 256.
    per : None: one codebook. "row": one for each output, of each tensor. An int: one for each run of that many weights
        of a row.
    method : of :func:`lc_ext.ops.kmeans1d`: "auto", "lloyd" or "optimal".
    pinned : codewords that stay where they are, such as 0.0.

    Examples
    --------
    >>> lc.Quantize(2).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.5000, -1.5000,  1.2500,  1.2500]])]
    """

    weighted = True
    trainable = ("codebook_",)

    def __init__(
        self,
        k: int,
        *,
        per: Per = None,
        method: Literal["auto", "lloyd", "optimal"] = "auto",
        pinned: float | Sequence[float] | None = None,
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, SupportsIndex) or not 2 <= operator.index(k) <= 256:
            raise ValueError(f"k must be an int from 2 to 256, got {k!r}")
        if method not in ("auto", "lloyd", "optimal"):
            raise ValueError(f"method must be 'auto', 'lloyd' or 'optimal', got {method!r}")
        self.k = operator.index(k)
        self.per = checked_per(per)
        self.method = method
        self.pinned = pinned

    @property
    def plain(self) -> bool:
        """Whether there is one codebook, found in the usual way, with no codeword pinned."""
        return self.per is None and self.pinned is None and self.method == "auto"

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: scalar k-means, warm-started."""
        start = self.codebook_.to(v[0].device) if self.learned else None
        options: dict[str, Any] = {"init": start, "pinned": self.pinned, "method": self.method}
        if self.per is None:
            h = None if weights is None else list(weights)
            joint = ops.kmeans1d(list(v), self.k, weights=h, joint=True, **options)
            self.codebook_, self.codes_ = joint.codebook, list(joint.codes)
        else:
            offsets = torch.tensor(group_offsets(v, self.per), device=v[0].device)
            whole = None if weights is None else flat(weights)
            ragged = ops.kmeans1d(flat(v), self.k, weights=whole, offsets=offsets, **options)
            self.codebook_, self.codes_ = ragged.codebook, split(ragged.codes, v)
        return self.decompress()

    def finish_finetuning(self) -> None:
        """Also sort the codebooks again."""
        super().finish_finetuning()
        self.codebook_, order = self.codebook_.sort(-1)
        rank = order.argsort(-1).to(torch.uint8)
        if rank.dim() == 1:
            self.codes_ = [rank[codes.long()] for codes in self.codes_]
        else:
            self.codes_ = [c.to(torch.uint8) for c in self._values(rank)]


class Levels(Codes):
    """Given levels, with or without a scale that is learned: the nearest level times the optimal scale.

    Parameters
    ----------
    levels : ascending values, 2 to 256 of them; see :mod:`lc_ext.ops.codebooks`.
    scaled : learn a positive scale.
    per : a scale for the whole group (None), for each row, or for each run of that many weights of a row.

    Examples
    --------
    >>> lc.Levels([-1.0, 0.0, 2.0]).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.1667, -1.1667,  0.0000,  2.3333]])]
    """

    weighted = True
    trainable = ("scale_",)
    scale_: Tensor

    def __init__(self, levels: Tensor | Sequence[float], *, scaled: bool = True, per: Per = None) -> None:
        self.levels = torch.as_tensor(levels, dtype=torch.float32).tolist()
        if not 2 <= len(self.levels) <= 256 or any(b <= a for a, b in itertools.pairwise(self.levels)):
            raise ValueError(f"levels must be 2 to 256 ascending values, got {self.levels}")
        if per is not None and not scaled:
            raise ValueError(f"per={per!r} is of no use without a scale")
        self.scaled = scaled
        self.per = checked_per(per)

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: the exact optimum over scales and codes (Idelbayev et al. 2021)."""
        levels = torch.tensor(self.levels, device=v[0].device)
        if self.scaled:
            offsets = None if self.per is None else torch.tensor(group_offsets(v, self.per), device=v[0].device)
            h = None if weights is None else flat(weights)
            result = ops.quantize_scaled(flat(v), levels, weights=h, offsets=offsets)
            self.scale_, codes = result.scale, result.codes
        else:
            self.scale_, codes = levels.new_ones(()), ops.assign(flat(v), levels)
        self.codes_ = split(codes, v)
        return self.decompress()

    @property
    def codebook_(self) -> Tensor:  # type: ignore[override]
        """Scale times levels: (k,), or (parts, k)."""
        levels = torch.tensor(self.levels, device=self.scale_.device)
        return self.scale_[..., None] * levels

    def bits(self) -> int:
        return self.weight_bits() + (32 * self.scale_.numel() if self.scaled else 0)


class Binary(Levels):
    """{-1, 1}, or {-c, c} with a scale c. Zero becomes -1 or -c, the lower of two equally near.

    Examples
    --------
    >>> lc.Binary().fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.3750, -1.3750,  1.3750,  1.3750]])]
    """

    def __init__(self, *, scaled: bool = True, per: Per = None) -> None:
        super().__init__(ops.codebooks.binary(), scaled=scaled, per=per)


class Ternary(Levels):
    """{-1, 0, 1}, or {-c, 0, c} with a scale c.

    Examples
    --------
    >>> lc.Ternary().fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.6667, -1.6667,  0.0000,  1.6667]])]
    """

    def __init__(self, *, scaled: bool = True, per: Per = None) -> None:
        super().__init__(ops.codebooks.ternary(), scaled=scaled, per=per)


class PowersOfTwo(Levels):
    """{0, 1, 1/2, ..., 2**-c} with both signs, by default without a scale: products are shifts.

    Examples
    --------
    >>> lc.PowersOfTwo(2).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.0000, -1.0000,  0.5000,  1.0000]])]
    """

    def __init__(self, c: int, *, scaled: bool = False, per: Per = None) -> None:
        super().__init__(ops.codebooks.powers_of_two(c), scaled=scaled, per=per)


class SymmetricInt(Levels):
    """Signed integers of ``b`` bits, -(2**(b-1) - 1) to 2**(b-1) - 1, times a scale.

    Examples
    --------
    >>> lc.SymmetricInt(3).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.8913, -1.2609,  0.6304,  1.8913]])]
    """

    def __init__(self, b: int, *, per: Per = None) -> None:
        super().__init__(ops.codebooks.int_symmetric(b), per=per)


class VectorQuantize(Compression):
    """A codebook of ``k`` vectors of ``d`` consecutive weights: log2(k) / d bits a weight.

    Parameters
    ----------
    k : codewords, 2 to 256.
    d : 2, 4 or 8. The number of elements of each tensor must be divisible by it.

    Examples
    --------
    >>> lc.VectorQuantize(2, 2).fit([torch.tensor([[1.0, 1.0], [1.0, 1.0], [5.0, 6.0]])])
    [tensor([[1., 1.],
            [1., 1.],
            [5., 6.]])]
    """

    trainable = ("codebook_",)
    codebook_: Tensor
    codes_: list[Tensor]
    shapes_: list[tuple[int, ...]]

    def __init__(self, k: int, d: int) -> None:
        if d not in (2, 4, 8):
            raise ValueError(f"d must be 2, 4 or 8, got {d!r}")
        if isinstance(k, bool) or not isinstance(k, SupportsIndex) or not 2 <= operator.index(k) <= 256:
            raise ValueError(f"k must be an int from 2 to 256, got {k!r}")
        self.k = operator.index(k)
        self.d = d

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: vector k-means, warm-started."""
        for t in v:
            if t.numel() % self.d:
                raise ValueError(f"d={self.d} does not divide the {t.numel()} weights of shape {tuple(t.shape)}")
        start = self.codebook_.to(v[0].device) if self.learned else None
        result = ops.kmeans_vq(flat(v).view(-1, self.d), self.k, init=start)
        self.codebook_, self.shapes_ = result.codebook, [tuple(t.shape) for t in v]
        self.codes_ = list(result.codes.split([t.numel() // self.d for t in v]))
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        pairs = zip(self.codes_, self.shapes_, strict=True)
        return [self.codebook_[codes.long()].reshape(shape) for codes, shape in pairs]

    def weight_bits(self) -> int:
        return math.ceil(math.log2(self.k)) * sum(c.numel() for c in self.codes_)

    def bits(self) -> int:
        return self.weight_bits() + 32 * self.codebook_.numel()

    def summary(self) -> dict[str, float]:
        return {"bits per weight": math.ceil(math.log2(self.k)) / self.d}
