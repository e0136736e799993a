"""Scalar k-means: the adaptive-codebook C step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, NoReturn, TypeAlias, overload

import torch
from torch import Tensor

from .. import _native
from . import _check
from .assign import assign_reference
from .pack_codes import pack_codes, words_per_row

__all__ = ["KMeansListResult", "KMeansRaggedResult", "KMeansResult", "decode", "kmeans1d", "kmeans1d_reference"]

Method: TypeAlias = Literal["auto", "lloyd", "optimal"]
Pinned: TypeAlias = float | Sequence[float] | Tensor | None


class KMeansResult(NamedTuple):
    """Result of :func:`kmeans1d` on one tensor."""

    codebook: Tensor
    codes: Tensor
    distortion: float
    iterations: int


class KMeansListResult(NamedTuple):
    """Result of :func:`kmeans1d` on a list of tensors: row b of each is the result for tensor b.

    With ``joint`` there is one codebook, distortion and number of iterations.
    """

    codebook: Tensor
    codes: list[Tensor]
    distortion: list[float]
    iterations: list[int]


class KMeansRaggedResult(NamedTuple):
    """Result of :func:`kmeans1d` with ``offsets``: row b of each but ``codes`` is the result for problem b."""

    codebook: Tensor
    codes: Tensor
    distortion: Tensor
    iterations: Tensor


@overload
def kmeans1d(
    x: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    init: Tensor | None = None,
    pinned: Pinned = None,
    offsets: None = None,
    joint: bool = False,
    method: Method = "auto",
    max_iter: int = 300,
    tol: float | None = None,
    packed: bool = False,
    out: KMeansResult | None = None,
) -> KMeansResult: ...
@overload
def kmeans1d(
    x: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    init: Tensor | None = None,
    pinned: Pinned = None,
    offsets: Tensor,
    joint: bool = False,
    method: Method = "auto",
    max_iter: int = 300,
    tol: float | None = None,
    packed: bool = False,
    out: KMeansRaggedResult | None = None,
) -> KMeansRaggedResult: ...
@overload
def kmeans1d(
    x: Sequence[Tensor],
    k: int,
    *,
    weights: Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    pinned: Pinned = None,
    offsets: None = None,
    joint: bool = False,
    method: Method = "auto",
    max_iter: int = 300,
    tol: float | None = None,
    packed: bool = False,
    out: KMeansListResult | None = None,
) -> KMeansListResult: ...
def kmeans1d(
    x: Tensor | Sequence[Tensor],
    k: int,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    pinned: Pinned = None,
    offsets: Tensor | None = None,
    joint: bool = False,
    method: Method = "auto",
    max_iter: int = 300,
    tol: float | None = None,
    packed: bool = False,
    out: KMeansResult | KMeansListResult | KMeansRaggedResult | None = None,
) -> KMeansResult | KMeansListResult | KMeansRaggedResult:
    """Codebook of ``k`` values and codes that minimise sum_i h_i (x_i - codebook[codes_i])^2.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite and not empty; or a list of them on one device, solved
        independently in one call.
    k : number of codewords, 1 to 256.
    weights : the h_i, like ``x``: finite, not negative, not all zero in a problem. Default: all one.
    init : warm start, float tensor of shape (k,), or (B, k) for B problems; ascending and finite, with the pinned
        codewords among them. Default: cold.
    pinned : one or several of the k codewords that do not move, for example 0.0.
    offsets : int64 tensor of shape (B+1,), strictly ascending from 0 to ``x.numel()``: problem b is the values from
        offsets[b] to offsets[b+1] - 1 of ``x`` in row-major order. For a codebook per row or per group.
    joint : one codebook for all tensors of a list; nothing is copied.
    method : "auto": the optimal partition of a histogram, and iterations on its bins. "lloyd": exact Lloyd iterations
        on the values. "optimal": the global optimum where there are at most 4096 distinct values, else Lloyd from the
        optimal partition of some 50 000 bins.
    max_iter : bound on the iterations.
    tol : end when an iteration lowers the distortion by less than this part of it. Default: 1e-9 for "auto", else 0.
    packed : codes as rows of a bit stream, the layout of :func:`pack_codes`, of the bits that k codes need.
    out : a result of an earlier call with the same shapes, whose tensors are written again.

    Returns
    -------
    codebook : float32 tensor of shape (k,), ascending; (B, k) for a list and with ``offsets``. With fewer than k
        distinct values the last codeword is repeated and the distortion is zero.
    codes : uint8, like ``x``: the nearest codeword, the lower one in a tie. With ``packed`` int32 of shape
        (x.shape[0], words); a scalar or vector is one row.
    distortion : the sum above, as float; a list of them for a list, a float64 tensor of shape (B,) with ``offsets``.
    iterations : Lloyd iterations made, likewise.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Codes are exact for the codebook returned. A warm start never ends above the distortion it started from: where
    the gain is smaller than what the bins can show, the start is returned. In "auto" up to 65536 values, and data that
    bins do not resolve (spikes, far outliers), end on exact iterations; above, the distortion is within 1e-5 of
    "lloyd"'s for k <= 16 and 5e-4 for k = 256 on weights of nets. Up to 256 values, unpinned and cold, the result is
    the global optimum.

    The distortion is summed in double; in "auto", for more than 65536 unweighted values, of differences and squares
    that are rounded to float, which leaves about 1e-9 of it in doubt. Other sums are in double too: beside an outlier
    of 1e6 times their spread, or weights 1e12 times theirs, the cells of the other values are only nearly optimal.

    Partition by dynamic programming (Wu 1991), for large k with a price on each cell; O(n + k m) with m at most 12288
    bins, 98304 in "optimal"; two passes over the data. The same result for every instruction set and number of threads.
    Devices with no kernel take the plain-torch path.

    Examples
    --------
    >>> codebook, codes, distortion, _ = ops.kmeans1d(torch.tensor([1.0, 1.0, 5.0, 7.0]), 2)
    >>> codebook, codes, float(distortion)
    (tensor([1., 6.]), tensor([0, 0, 1, 1], dtype=torch.uint8), 2.0)
    """
    single = isinstance(x, Tensor)
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    k = _check.integer(k, "k", 1, 256)
    max_iter = _check.integer(max_iter, "max_iter", 0, 2**31 - 1)
    for i, t in enumerate(xs):
        if t.numel() == 0:
            raise ValueError(f"{_name(i, single)} must not be empty")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {list(_METHODS)}, got {method!r}")
    if tol is None:
        tol = 1e-9 if method == "auto" else 0.0
    elif isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 <= tol < 1:
        raise ValueError(f"tol must be a number from 0 to below 1, got {tol!r}")
    if single and joint:
        raise ValueError("joint takes a list of tensors, got one tensor")
    if offsets is not None and not single:
        raise ValueError("offsets take one tensor x, got a list")
    pins = [] if pinned is None else _pinned(pinned, k)
    hs = None if weights is None else _weights(weights, xs, single)
    problems = 1 if joint else len(xs) if offsets is None else _check_offsets(offsets, xs[0])
    many = offsets is not None or not (single or joint)
    start = None if init is None else _start(init, problems, k, many, pins, xs[0])
    codebook, codes = _outputs(out, xs, k, (problems, k) if many else (k,), single, packed)
    if start is not None and start.data_ptr() != codebook.data_ptr():
        codebook.copy_(start)
    bits = max(1, (k - 1).bit_length()) if packed else 0
    if not _native.has_kernel("kmeans1d", xs[0]):
        return _without_kernel(xs, hs, offsets, joint, start, pins, k, max_iter, bits, codebook, codes, single)
    if offsets is not None:
        t = xs[0]
        loose = codes[0] if not packed else torch.empty(t.shape, dtype=torch.uint8, device=t.device)
        distortion = torch.empty(problems, dtype=torch.float64, device=t.device)
        iterations = torch.empty(problems, dtype=torch.int64, device=t.device)
        at = offsets.contiguous()
        settings = (k, start is not None, _METHODS[method], max_iter, float(tol), pins, 0)
        bad, status = _native.call(
            "kmeans1d_ragged", t, hs and hs[0], at, problems, loose, codebook, distortion, iterations, settings
        )
        if bad >= 0:
            _refuse(status, f"x[{int(at[bad])}:{int(at[bad + 1])}]")
        if packed:
            codes[0].copy_(pack_codes(loose.reshape(codes[0].shape[0], -1), bits))
        return KMeansRaggedResult(codebook, codes[0], distortion, iterations)
    sizes = [t.numel() for t in xs]
    cols = [n // t.shape[0] if t.dim() > 1 else n for n, t in zip(sizes, xs, strict=True)]
    settings = (k, start is not None, _METHODS[method], max_iter, float(tol), pins, bits)
    statuses, distortions, counts = _native.call(
        "kmeans1d", xs, hs or [], sizes, cols, codes, codebook, joint, settings
    )
    for i, status in enumerate(statuses):
        if status:
            _refuse(status, "x" if joint else _name(i, single))
    if single:
        return KMeansResult(codebook, codes[0], distortions[0], counts[0])
    return KMeansListResult(codebook, codes, distortions, counts)


_METHODS = {"auto": 0, "lloyd": 1, "optimal": 2}


def _name(i: int, single: bool) -> str:
    return "x" if single else f"x[{i}]"


def _refuse(status: int, name: str) -> NoReturn:
    if status == 1:
        raise ValueError(f"{name} contains NaN or Inf")
    raise ValueError(f"weights of {name} must be finite, not negative and not all zero")


def _pinned(pinned: object, k: int) -> list[float]:
    values = pinned.tolist() if isinstance(pinned, Tensor) else pinned
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise TypeError(f"pinned must be a number or a vector of numbers, got {pinned!r}")
    rounded = torch.tensor(values, dtype=torch.float32, device="cpu").add(0.0).unique()  # -0 becomes 0; ascending
    if not bool(rounded.isfinite().all()) or rounded.numel() != len(values) or len(values) > k:
        raise ValueError(f"pinned must be at most k = {k} different finite float32 values, got {pinned!r}")
    return list(rounded.tolist())


def _weights(weights: object, xs: list[Tensor], single: bool) -> list[Tensor]:
    hs = [_check.float32(weights, "weights", xs[0])] if single else _check.float32_list(weights, "weights")
    if len(hs) != len(xs) or any(h.shape != t.shape or h.device != t.device for h, t in zip(hs, xs, strict=True)):
        raise ValueError(f"weights must match x in number, shape and device, got {[tuple(h.shape) for h in hs]}")
    return hs


def _check_offsets(offsets: object, x: Tensor) -> int:
    t = _check.tensor(offsets, "offsets")
    if t.dtype != torch.int64 or t.device != x.device:
        raise TypeError(f"offsets must be int64 on {x.device}, got {t.dtype} on {t.device}")
    if t.dim() != 1 or t.numel() < 2:
        raise ValueError(f"offsets must be a vector of at least two, got shape {tuple(t.shape)}")
    if int(t[0]) != 0 or int(t[-1]) != x.numel() or not bool((t[1:] > t[:-1]).all()):
        raise ValueError(f"offsets must rise strictly from 0 to x.numel() = {x.numel()}, got {t}")
    return t.numel() - 1


def _start(init: object, problems: int, k: int, many: bool, pins: list[float], like: Tensor) -> Tensor:
    start = _check.float32(init, "init", like)
    want = (problems, k) if many else (k,)
    if tuple(start.shape) != want:
        raise ValueError(f"init must have shape {want}, got {tuple(start.shape)}")
    if not many:
        _check.sorted_codebook(start, "init", like)
    elif not bool(start.isfinite().all() and (start[:, 1:] >= start[:, :-1]).all()):
        raise ValueError("init must be finite and ascending")
    for pin in pins:
        if not bool((start == pin).any(-1).all()):
            raise ValueError(f"init must have the pinned codeword {pin}")
    return start


def _outputs(
    out: object, xs: list[Tensor], k: int, shape: tuple[int, ...], single: bool, packed: bool
) -> tuple[Tensor, list[Tensor]]:
    device = xs[0].device  # said each time, since torch has defaults that a user may have set
    dtype = torch.uint8
    shapes: list[Sequence[int]] = [t.shape for t in xs]
    if packed:
        dtype, bits = torch.int32, max(1, (k - 1).bit_length())
        rows = [t.shape[0] if t.dim() > 1 else 1 for t in xs]
        shapes = [(r, words_per_row(t.numel() // r, bits)) for t, r in zip(xs, rows, strict=True)]
    if out is None:
        codes = [torch.empty(s, dtype=dtype, device=device) for s in shapes]
        return torch.empty(shape, dtype=torch.float32, device=device), codes
    if not isinstance(out, tuple) or len(out) != 4:
        raise TypeError(f"out must be a result of kmeans1d, got {type(out).__name__}")
    given = [out[0], out[1]] if single else [out[0], *out[1]]
    wanted = [(shape, torch.float32), *((s, dtype) for s in shapes)]
    if len(given) != len(wanted) or any(
        not isinstance(t, Tensor) or t.shape != s or t.dtype != d or t.device != device or not t.is_contiguous()
        for t, (s, d) in zip(given, wanted, strict=True)
    ):
        raise ValueError("out must have the shapes, dtypes and device of this call's result, and be contiguous")
    return given[0], given[1:]


def _without_kernel(
    xs: list[Tensor],
    hs: list[Tensor] | None,
    offsets: Tensor | None,
    joint: bool,
    start: Tensor | None,
    pins: list[float],
    k: int,
    max_iter: int,
    bits: int,
    codebook: Tensor,
    codes: list[Tensor],
    single: bool,
) -> KMeansResult | KMeansListResult | KMeansRaggedResult:
    """One :func:`kmeans1d_reference` after another."""
    flats, weights = [t.reshape(-1) for t in xs], None if hs is None else [h.reshape(-1) for h in hs]
    if joint:
        flats, weights = [torch.cat(flats)], None if weights is None else [torch.cat(weights)]
    if offsets is not None:
        sizes = offsets.diff().tolist()
        flats, weights = list(flats[0].split(sizes)), None if weights is None else list(weights[0].split(sizes))
    starts = None if start is None else start.reshape(-1, k)
    found = []
    for i, t in enumerate(flats):
        name = "x" if joint or offsets is not None else _name(i, single)
        h = None if weights is None else weights[i]
        if not bool(t.isfinite().all()):
            _refuse(1, name)
        if h is not None and not bool((h.isfinite() & (h >= 0)).all() and (h > 0).any()):
            _refuse(2, name)
        init = None if starts is None else starts[i]
        found.append(kmeans1d_reference(t, k, weights=h, init=init, pinned=pins, max_iter=max_iter))
    codebook.copy_(torch.stack([r.codebook for r in found]).reshape(codebook.shape))
    everything = torch.cat([r.codes for r in found]).split([t.numel() for t in xs])
    for c, t, mine in zip(codes, xs, everything, strict=True):
        rows = t.shape[0] if t.dim() > 1 else 1
        c.copy_(pack_codes(mine.reshape(rows, -1), bits) if bits else mine.reshape(t.shape))
    if single and offsets is None:
        return KMeansResult(codebook, codes[0], found[0].distortion, found[0].iterations)
    distortions, iterations = [r.distortion for r in found], [r.iterations for r in found]
    if offsets is None:
        return KMeansListResult(codebook, codes, distortions, iterations)
    device = codebook.device
    return KMeansRaggedResult(
        codebook,
        codes[0],
        torch.tensor(distortions, dtype=torch.float64, device=device),
        torch.tensor(iterations, dtype=torch.int64, device=device),
    )


def kmeans1d_reference(
    x: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    init: Tensor | None = None,
    pinned: Sequence[float] = (),
    max_iter: int = 300,
) -> KMeansResult:
    """One problem in plain torch: sort, prefix sums, an optimal partition of at most 512 atoms, Lloyd by binary search.

    Pinned codewords take the places of the nearest that the partition finds.

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
    fixed = torch.zeros_like(codebook, dtype=torch.bool)
    if pinned:
        pins = torch.tensor(sorted(pinned), dtype=torch.float64, device=x.device) - center
        if init is None:
            codebook = torch.cat([codebook, codebook[-1:].expand(k - codebook.numel())])
            for pin in pins:
                at = (codebook - pin).abs().masked_fill(torch.isin(codebook, pins), torch.inf).argmin()
                codebook[at] = pin
            codebook = codebook.sort().values
        fixed = torch.isin(codebook, pins)
    iterations = 0
    for iterations in range(1, max_iter + 1):  # noqa: B007 (the count is a result)
        ends = torch.searchsorted(t, (codebook[1:] + codebook[:-1]) / 2, right=True)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([t.numel()])])
        mass, total = w[edges].diff(), s[edges].diff()
        moved = torch.where((mass > 0) & ~fixed, total / mass.clamp_min(1e-300), codebook)
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

    Examples
    --------
    >>> ops.decode(torch.tensor([0, 2], dtype=torch.uint8), torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-1.,  1.])
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
