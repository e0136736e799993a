"""Scalar k-means: the adaptive-codebook C step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from .. import _native
from . import _check
from . import _kmeans1d as _k
from ._kmeans1d import KMeansListResult, KMeansRaggedResult, KMeansResult, Pinned
from .kmeans1d_reference import kmeans1d_reference, without_kernel
from .pack_codes import pack_codes

__all__ = ["KMeansListResult", "KMeansRaggedResult", "KMeansResult", "decode", "kmeans1d", "kmeans1d_reference"]

Method: TypeAlias = Literal["auto", "lloyd", "optimal"]


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
        optimal partition of some 50 000 bins; ``excess_bound`` of the result says how far off that can be.
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

    With ``method="optimal"`` the result has an attribute ``excess_bound`` besides, likewise: the distortion is at most
    ``1 + excess_bound`` times that of the global optimum (without pinned codewords).

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
    if type(k) is not int or not 1 <= k <= 256:
        k = _check.integer(k, "k", 1, 256)
    if type(max_iter) is not int or not 0 <= max_iter < 2**31:
        max_iter = _check.integer(max_iter, "max_iter", 0, 2**31 - 1)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {list(_METHODS)}, got {method!r}")
    if tol is None:
        tol = 1e-9 if method == "auto" else 0.0
    elif isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 <= tol < 1:
        raise ValueError(f"tol must be a number from 0 to below 1, got {tol!r}")
    pins = [] if pinned is None else _k.check_pinned(pinned, k)
    bits = max(1, (k - 1).bit_length()) if packed else 0
    options = (_METHODS[method], max_iter, float(tol), pins, bits)
    if not isinstance(x, Tensor):
        if offsets is not None:
            raise ValueError("offsets take one tensor x, got a list")
        return _list(x, k, weights, init, joint, options, out)
    if joint:
        raise ValueError("joint takes a list of tensors, got one tensor")
    if offsets is not None:
        return _ragged(x, k, weights, init, offsets, options, out)
    return _one(x, k, weights, init, options, out)


_METHODS = {"auto": 0, "lloyd": 1, "optimal": 2}
_Options: TypeAlias = tuple[int, int, float, list[float], int]  # method, max_iter, tol, pinned codewords, bits


def _one(x: Tensor, k: int, weights: object, init: object, options: _Options, out: object) -> KMeansResult:
    t = _check.float32(x, "x")
    n = t.numel()
    if n == 0:
        raise ValueError("x must not be empty")
    h = None if weights is None else _k.check_weights(weights, [t], True)[0]
    start = None if init is None else _k.check_start(init, (k,), options[3], t)
    codebook, (codes,) = _k.outputs(out, [t], (k,), True, options[4])
    if start is not None and start is not codebook:
        codebook.copy_(start)
    if not _native.has_kernel("kmeans1d", t):
        hs = None if h is None else [h]
        result = without_kernel([t], hs, None, False, start, k, options, codebook, [codes], True)
        assert isinstance(result, KMeansResult)
        return result
    cols = n // t.shape[0] if t.dim() > 1 else n
    status, distortion, iterations, bound = _native.call(
        "kmeans1d_one", t, h, n, cols, codes, codebook, k, start is not None, *options
    )
    if status:
        _k.refuse(status, "x")
    result = KMeansResult(codebook, codes, distortion, iterations)
    if options[0] == 2:
        result.excess_bound = bound
    return result


def _list(
    x: Sequence[Tensor], k: int, weights: object, init: object, joint: bool, options: _Options, out: object
) -> KMeansListResult:
    xs = _check.float32_list(x, "x")
    for i, t in enumerate(xs):
        if t.numel() == 0:
            raise ValueError(f"x[{i}] must not be empty")
    hs = None if weights is None else _k.check_weights(weights, xs, False)
    shape = (k,) if joint else (len(xs), k)
    start = None if init is None else _k.check_start(init, shape, options[3], xs[0])
    codebook, codes = _k.outputs(out, xs, shape, False, options[4])
    if start is not None and start is not codebook:
        codebook.copy_(start)
    if not _native.has_kernel("kmeans1d", xs[0]):
        result = without_kernel(xs, hs, None, joint, start, k, options, codebook, codes, False)
        assert isinstance(result, KMeansListResult)
        return result
    sizes = [t.numel() for t in xs]
    cols = [n // t.shape[0] if t.dim() > 1 else n for n, t in zip(sizes, xs, strict=True)]
    settings = (k, start is not None, *options)
    statuses, distortions, iterations, bounds = _native.call(
        "kmeans1d", xs, hs or [], sizes, cols, codes, codebook, joint, settings
    )
    for i, status in enumerate(statuses):
        if status:
            _k.refuse(status, "x" if joint else f"x[{i}]")
    result = KMeansListResult(codebook, codes, distortions, iterations)
    result.excess_bound = bounds
    return result


def _ragged(
    x: Tensor, k: int, weights: object, init: object, offsets: object, options: _Options, out: object
) -> KMeansRaggedResult:
    t = _check.float32(x, "x")
    at = _k.check_offsets(offsets, t)
    problems = at.numel() - 1
    bits = options[4]
    hs = None if weights is None else _k.check_weights(weights, [t], True)
    start = None if init is None else _k.check_start(init, (problems, k), options[3], t)
    codebook, (codes,) = _k.outputs(out, [t], (problems, k), True, bits)
    if start is not None and start is not codebook:
        codebook.copy_(start)
    if not _native.has_kernel("kmeans1d", t):
        result = without_kernel([t], hs, at, False, start, k, options, codebook, [codes], True)
        assert isinstance(result, KMeansRaggedResult)
        return result
    loose = torch.empty(t.shape, dtype=torch.uint8, device=t.device) if bits else codes
    distortion, bound = torch.empty(2, problems, dtype=torch.float64, device=t.device)
    iterations = torch.empty(problems, dtype=torch.int64, device=t.device)
    settings: tuple[Any, ...] = (k, start is not None, *options[:4], 0)
    bad, status = _native.call(
        "kmeans1d_ragged", t, hs and hs[0], at, problems, loose, codebook, distortion, iterations, bound, settings
    )
    if bad >= 0:
        _k.refuse(status, f"x[{int(at[bad])}:{int(at[bad + 1])}]")
    if bits:
        codes.copy_(pack_codes(loose.reshape(codes.shape[0], -1), bits))
    result = KMeansRaggedResult(codebook, codes, distortion, iterations)
    result.excess_bound = bound
    return result


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
