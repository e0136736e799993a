"""What kmeans1d and its reference share: results, the checks of arguments, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor

from . import _check
from .pack_codes import words_per_row

Pinned: TypeAlias = float | Sequence[float] | Tensor | None


class _One(NamedTuple):
    codebook: Tensor
    codes: Tensor
    distortion: float
    iterations: int


class _List(NamedTuple):
    codebook: Tensor
    codes: list[Tensor]
    distortion: list[float]
    iterations: list[int]


class _Ragged(NamedTuple):
    codebook: Tensor
    codes: Tensor
    distortion: Tensor
    iterations: Tensor


class KMeansResult(_One):
    """Result of :func:`kmeans1d` on one tensor: codebook, codes, distortion, iterations.

    Attributes
    ----------
    excess_bound : the distortion is at most ``1 + excess_bound`` times that of the global optimum. Infinite unless
        ``method="optimal"``.
    """

    excess_bound: float = math.inf


class KMeansListResult(_List):
    """Result of :func:`kmeans1d` on a list of tensors: row b of each is the result for tensor b.

    With ``joint`` there is one codebook, distortion and number of iterations. ``excess_bound`` is a list, as the
    distortion is, of what it is in :class:`KMeansResult`.
    """

    excess_bound: Sequence[float] = ()


class KMeansRaggedResult(_Ragged):
    """Result of :func:`kmeans1d` with ``offsets``: row b of each but ``codes`` is the result for problem b.

    ``excess_bound`` is a float64 tensor, as the distortion is, of what it is in :class:`KMeansResult`.
    """

    excess_bound: Tensor | None = None


def name_of(i: int, single: bool) -> str:
    """Tensor i of x, for messages."""
    return "x" if single else f"x[{i}]"


def refuse(status: int, name: str) -> NoReturn:
    """Raise what a status of the kernel other than 0 means."""
    if status == 1:
        raise ValueError(f"{name} contains NaN or Inf")
    raise ValueError(f"weights of {name} must be finite, not negative and not all zero")


def check_pinned(pinned: object, k: int) -> list[float]:
    """Pinned codewords as ascending float32 values."""
    values = pinned.tolist() if isinstance(pinned, Tensor) else pinned
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise TypeError(f"pinned must be a number or a vector of numbers, got {pinned!r}")
    rounded = torch.tensor(values, dtype=torch.float32, device="cpu").add(0.0).unique()  # -0 becomes 0; ascending
    if not bool(rounded.isfinite().all()) or rounded.numel() != len(values) or len(values) > k:
        raise ValueError(f"pinned must be at most k = {k} different finite float32 values, got {pinned!r}")
    return list(rounded.tolist())


def check_weights(weights: object, xs: list[Tensor], single: bool) -> list[Tensor]:
    """The weights of each tensor."""
    hs = [_check.float32(weights, "weights", xs[0])] if single else _check.float32_list(weights, "weights")
    if len(hs) != len(xs) or any(h.shape != t.shape or h.device != t.device for h, t in zip(hs, xs, strict=True)):
        raise ValueError(f"weights must match x in number, shape and device, got {[tuple(h.shape) for h in hs]}")
    return hs


def check_offsets(offsets: object, x: Tensor) -> Tensor:
    """Where the problems begin, and the end of the last."""
    t = _check.tensor(offsets, "offsets")
    if t.dtype != torch.int64 or t.device != x.device:
        raise TypeError(f"offsets must be int64 on {x.device}, got {t.dtype} on {t.device}")
    if t.dim() != 1 or t.numel() < 2:
        raise ValueError(f"offsets must be a vector of at least two, got shape {tuple(t.shape)}")
    if int(t[0]) != 0 or int(t[-1]) != x.numel() or not bool((t[1:] > t[:-1]).all()):
        raise ValueError(f"offsets must rise strictly from 0 to x.numel() = {x.numel()}, got {t}")
    return t.contiguous()


def check_start(init: object, want: tuple[int, ...], pins: list[float], like: Tensor) -> Tensor:
    """A warm start: a codebook, or a row for each problem."""
    start = _check.float32(init, "init", like)
    if start.shape != want:
        raise ValueError(f"init must have shape {want}, got {tuple(start.shape)}")
    if len(want) == 1:
        _check.sorted_codebook(start, "init", like)
    elif not bool(start.isfinite().all() and (start[:, 1:] >= start[:, :-1]).all()):
        raise ValueError("init must be finite and ascending")
    for pin in pins:
        if not bool((start == pin).any(-1).all()):
            raise ValueError(f"init must have the pinned codeword {pin}")
    return start


def _fits(t: object, dtype: torch.dtype, shape: Sequence[int], like: Tensor) -> bool:
    return (
        isinstance(t, Tensor)
        and t.dtype is dtype
        and t.shape == shape
        and t.device == like.device
        and t.is_contiguous()
    )


def outputs(
    out: object, xs: list[Tensor], shape: tuple[int, ...], single: bool, bits: int
) -> tuple[Tensor, list[Tensor]]:
    """Memory for codebooks of ``shape`` and for the codes: of ``out``, or new."""
    if not bits and single and type(out) is KMeansResult:  # the common case first
        book, labels, x = out[0], out[1], xs[0]
        if _fits(book, torch.float32, shape, x) and _fits(labels, torch.uint8, x.shape, x):
            return book, [labels]
    device = xs[0].device  # said each time, since torch has defaults that a user may have set
    dtype = torch.int32 if bits else torch.uint8
    shapes: list[Sequence[int]] = [t.shape for t in xs]
    if bits:
        rows = [t.shape[0] if t.dim() > 1 else 1 for t in xs]
        shapes = [(r, words_per_row(t.numel() // r, bits)) for t, r in zip(xs, rows, strict=True)]
    if out is None:
        codes = [torch.empty(s, dtype=dtype, device=device) for s in shapes]
        return torch.empty(shape, dtype=torch.float32, device=device), codes
    if not isinstance(out, tuple) or len(out) != 4:
        raise TypeError(f"out must be a result of kmeans1d, got {type(out).__name__}")
    given = [out[0], out[1]] if single else [out[0], *out[1]]
    wanted = [(shape, torch.float32), *((s, dtype) for s in shapes)]
    if len(given) != len(wanted) or not all(_fits(t, d, s, xs[0]) for t, (s, d) in zip(given, wanted, strict=True)):
        raise ValueError("out must have the shapes, dtypes and device of this call's result, and be contiguous")
    return given[0], given[1:]
