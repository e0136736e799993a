"""Scalar k-means: the adaptive-codebook C step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .. import _native
from . import _check
from .assign import assign_reference

__all__ = ["KMeansListResult", "KMeansResult", "decode", "kmeans1d", "kmeans1d_reference"]


class KMeansResult(NamedTuple):
    """Result of :func:`kmeans1d` on one tensor."""

    codebook: Tensor
    codes: Tensor
    distortion: float
    iterations: int


class KMeansListResult(NamedTuple):
    """Result of :func:`kmeans1d` on a list of tensors: row b of each is the result for tensor b."""

    codebook: Tensor
    codes: list[Tensor]
    distortion: list[float]
    iterations: list[int]


@overload
def kmeans1d(
    x: Tensor, k: int, *, weights: Tensor | None = None, init: Tensor | None = None, max_iter: int = 300
) -> KMeansResult: ...
@overload
def kmeans1d(
    x: Sequence[Tensor],
    k: int,
    *,
    weights: Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    max_iter: int = 300,
) -> KMeansListResult: ...
def kmeans1d(
    x: Tensor | Sequence[Tensor],
    k: int,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    max_iter: int = 300,
) -> KMeansResult | KMeansListResult:
    """Codebook of ``k`` values and codes that minimise sum_i h_i (x_i - codebook[codes_i])^2.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite and not empty; or a list of them on one device, solved
        independently in one call.
    k : number of codewords, 1 to 256.
    weights : the h_i, like ``x``: finite, not negative, not all zero. Default: all one.
    init : warm start, float tensor of shape (k,), or (len(x), k) for a list; ascending and finite. Default: cold.
    max_iter : bound on the Lloyd iterations.

    Returns
    -------
    codebook : float32 tensor of shape (k,), ascending; (len(x), k) for a list. With fewer than k distinct values the
        last codeword is repeated and the distortion is zero.
    codes : uint8, like ``x``: the nearest codeword, the lower one in a tie.
    distortion : the sum above.
    iterations : Lloyd iterations made.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    A cold start is the optimal partition of a histogram of a few thousand bins, found by dynamic programming (Wu 1991);
    of the distinct values themselves where there are at most 4096, which is then the global optimum. Exact Lloyd
    iterations follow until nothing moves. A warm start never ends above the distortion it started from. Sums are in
    double precision: beside an outlier of 1e6 times their spread, or weights 1e12 times theirs, the cells of the other
    values are only nearly optimal.

    O(n + k m) with m the number of bins. No sort of the data, no n x k distances. The same codebook and codes for
    every instruction set and number of threads. Devices with no kernel take the plain-torch path.
    """
    single = isinstance(x, Tensor)
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    names = ["x"] if single else [f"x[{i}]" for i in range(len(xs))]
    k = _check.integer(k, "k", 1, 256)
    max_iter = _check.integer(max_iter, "max_iter", 0, 2**31 - 1)
    for name, t in zip(names, xs, strict=True):
        if t.numel() == 0:
            raise ValueError(f"{name} must not be empty")
    hs = _weights(weights, xs, single)
    start = _start(init, len(xs), k, single, xs[0])
    codes = [torch.empty(t.shape, dtype=torch.uint8, device=t.device) for t in xs]
    if _native.has_kernel("kmeans1d", xs[0]):
        device = xs[0].device  # said each time, since torch has defaults that a user may have set
        codebook = start.clone() if start is not None else torch.empty(len(xs), k, dtype=torch.float32, device=device)
        distortion = torch.empty(len(xs), dtype=torch.float64, device=device)
        iterations = torch.empty(len(xs), dtype=torch.int64, device=device)
        sizes = [t.numel() for t in xs]
        status = _native.call(
            "kmeans1d", xs, sizes, hs or [], k, start is not None, max_iter, codes, codebook, distortion, iterations
        )
        for name, s in zip(names, status, strict=True):
            if s:
                raise ValueError(f"{name} contains NaN or Inf" if s == 1 else _BAD_WEIGHTS.format(name))
        result = KMeansListResult(codebook, codes, distortion.tolist(), iterations.tolist())
    else:
        rows = []
        for i, t in enumerate(xs):
            _check.finite(t, names[i])
            h = None if hs is None else hs[i]
            if h is not None and not bool((h.isfinite() & (h >= 0)).all() and (h > 0).any()):
                raise ValueError(_BAD_WEIGHTS.format(names[i]))
            rows.append(
                kmeans1d_reference(t, k, weights=h, init=None if start is None else start[i], max_iter=max_iter)
            )
        result = KMeansListResult(
            torch.stack([r.codebook for r in rows]),
            [r.codes for r in rows],
            [r.distortion for r in rows],
            [r.iterations for r in rows],
        )
    if single:
        return KMeansResult(result.codebook[0], result.codes[0], result.distortion[0], result.iterations[0])
    return result


_BAD_WEIGHTS = "weights of {} must be finite, not negative and not all zero"


def _weights(weights: object, xs: list[Tensor], single: bool) -> list[Tensor] | None:
    if weights is None:
        return None
    hs = [_check.float32(weights, "weights", xs[0])] if single else _check.float32_list(weights, "weights")
    if len(hs) != len(xs) or any(h.shape != t.shape or h.device != t.device for h, t in zip(hs, xs, strict=True)):
        raise ValueError(f"weights must match x in number, shape and device, got {[tuple(h.shape) for h in hs]}")
    return hs


def _start(init: Tensor | None, batch: int, k: int, single: bool, like: Tensor) -> Tensor | None:
    if init is None:
        return None
    start = _check.float32(init, "init", like)
    want = (k,) if single else (batch, k)
    if tuple(start.shape) != want:
        raise ValueError(f"init must have shape {want}, got {tuple(start.shape)}")
    start = start.view(batch, k)
    for row in start:
        _check.sorted_codebook(row, "init", like)
    return start


def kmeans1d_reference(
    x: Tensor, k: int, *, weights: Tensor | None = None, init: Tensor | None = None, max_iter: int = 300
) -> KMeansResult:
    """The same in plain torch: sort, prefix sums, an optimal partition of at most 512 atoms, Lloyd by binary search.

    The meaning the kernels are tested against: its result is a fixed point of exact Lloyd, and globally optimal where
    there are at most 512 distinct values. O(n log n + k 512^2). The implementation on devices that have no kernel.
    """
    flat, order = x.float().reshape(-1).sort()
    value = flat.double()
    h = torch.ones_like(value) if weights is None else weights.reshape(-1)[order].double()
    center = value[value.numel() // 2]
    t = value - center
    w = torch.cat([t.new_zeros(1), h.cumsum(0)])
    s = torch.cat([t.new_zeros(1), (h * t).cumsum(0)])
    codebook = _partition_reference(flat, w, s, k) if init is None else init.double() - center
    iterations = 0
    for iterations in range(1, max_iter + 1):  # noqa: B007 (the count is a result)
        ends = torch.searchsorted(t, (codebook[1:] + codebook[:-1]) / 2, right=True)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([t.numel()])])
        mass, total = w[edges].diff(), s[edges].diff()
        moved = torch.where(mass > 0, total / mass.clamp_min(1e-300), codebook)
        if torch.equal(moved, codebook):
            break
        codebook = moved
    codebook = torch.cat([codebook, codebook[-1:].expand(k - codebook.numel())]) + center
    codebook = codebook.float().sort().values
    codes = assign_reference(x, codebook)
    error = (x.double() - codebook.double()[codes.long()]).square()
    distortion = error.sum() if weights is None else (weights.double() * error).sum()
    return KMeansResult(codebook, codes, distortion.item(), iterations)


def _partition_reference(flat: Tensor, w: Tensor, s: Tensor, k: int, atoms: int = 512) -> Tensor:
    """Means of the optimal partition of the sorted values, cut only between distinct ones."""
    cuts = torch.cat([flat.new_zeros(1).long(), (flat.diff() != 0).nonzero().flatten() + 1])
    cuts = torch.cat([cuts, cuts.new_tensor([flat.numel()])])
    cuts = cuts[torch.cat([cuts.new_ones(1).bool(), w[cuts].diff() > 0])]  # an atom has weight
    if cuts.numel() > atoms + 1:
        at = torch.linspace(0, cuts.numel() - 1, atoms + 1, device=cuts.device).round().long()
        cuts = cuts[at]
    w, s = w[cuts], s[cuts]
    m = w.numel() - 1
    gain = (s[None] - s[:, None]).square() / (w[None] - w[:, None]).clamp_min(1e-300)  # of the cell of atoms i..j-1
    gain = gain.masked_fill(torch.ones_like(gain, dtype=torch.bool).tril(), -torch.inf)
    best, splits = gain[0], []
    for _ in range(min(k, m) - 1):
        best, split = (best[:, None] + gain).max(0)
        splits.append(split)
    ends = [m]
    for split in reversed(splits):
        ends.append(int(split[ends[-1]]))
    edges = torch.tensor([0, *reversed(ends)], device=w.device)
    return s[edges].diff() / w[edges].diff()


def decode(codes: Tensor, codebook: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``codebook[codes]`` as float32, in one pass.

    Parameters
    ----------
    codes : uint8 tensor of any shape, every code below ``k``.
    codebook : float tensor of shape (k,), 1 <= k <= 256, on the device of ``codes``.
    out : contiguous float32 tensor for the result, of the shape and device of ``codes``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape, or a code that is ``k`` or more.
    """
    c = _check.tensor(codes, "codes").contiguous()
    if c.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, got {c.dtype}")
    book = _check.float32(codebook, "codebook", c)
    if book.dim() != 1 or not 1 <= book.numel() <= 256:
        raise ValueError(f"codebook must be a vector of 1 to 256 codewords, got shape {tuple(book.shape)}")
    if book.numel() < 256 and c.numel() and (top := int(c.max())) >= book.numel():
        raise ValueError(f"codes must be below {book.numel()}, got {top}")
    if out is None:
        out = torch.empty(c.shape, dtype=torch.float32, device=c.device)
    else:
        _check.output(out, "out", c, torch.float32)
    if not _native.has_kernel("decode", c):
        return out.copy_(book[c.long()])
    _native.call("decode", c, c.numel(), book, book.numel(), out)
    return out
