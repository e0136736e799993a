"""An adaptive codebook and sparse corrections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .. import _native
from . import _check, _sums
from ._sums import CodebookPlusSparseResult
from .codebook_plus_sparse import codebook_plus_sparse, codebook_plus_sparse_reference
from .kmeans1d import kmeans1d, kmeans1d_reference

__all__ = ["kmeans_plus_sparse", "kmeans_plus_sparse_reference"]

_TOL = {"trimmed": 1e-7, "alternate": 1e-3}


def kmeans_plus_sparse(
    x: Tensor | Sequence[Tensor],
    k: int,
    kappa: int,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    method: Literal["trimmed", "alternate"] = "trimmed",
    max_iter: int = 300,
    tol: float | None = None,
    out: CodebookPlusSparseResult | None = None,
) -> CodebookPlusSparseResult:
    """A codebook of ``k`` values and ``kappa`` corrections that lower sum_i h_i (x_i - q_i - s_i)^2.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite; or a list of them on one device, taken as one.
    k : number of codewords, 1 to 256.
    kappa : number of corrections, 0 to the number N of elements.
    weights : the h_i, like ``x``: finite, not negative, not all zero. Default: all one.
    init : warm start, float tensor of shape (k,), ascending and finite. It stays where hardly anything is to be gained
        (1e-5 of the distortion). Default: cold.
    method : ``"trimmed"``: corrected values take no part in the codebook (trimmed k-means), the lower distortion.
        ``"alternate"``: k-means of what the corrections leave, where a corrected value stays at the codeword that it is
        corrected from, and so on by turns.
    max_iter : bound on the turns.
    tol : the turns end when one lowers the distortion by less than this part of it. Default: 1e-7 for trimmed, 1e-3
        for alternate.
    out : a previous result for tensors of the same shapes, whose memory is used again.

    Returns
    -------
    codebook : float32 tensor of shape (k,), ascending.
    codes, indices, values, distortion : the exact solution for that codebook, as of :func:`codebook_plus_sparse`.
    iterations : turns made.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    A local optimum, as of k-means. The values that are corrected lie further than some distance from every codeword, so
    without weights the turns need only a histogram: two passes over the data, three with a warm start, which never ends
    above the distortion that it started from. With weights each turn is a pass over the data. The same for every
    instruction set and number of threads.

    Examples
    --------
    >>> x = torch.tensor([-1.0, -1.0, 1.0, 1.0, 9.0])
    >>> found = ops.kmeans_plus_sparse(x, 2, 1)
    >>> found.codebook, found.indices, found.values
    (tensor([-1.,  1.]), tensor([4]), tensor([8.]))
    """
    xs, hs = _sums.inputs(x, weights)
    k = _check.integer(k, "k", 1, 256)
    kappa = _check.integer(kappa, "kappa", 0, sum(t.numel() for t in xs))
    max_iter = _check.integer(max_iter, "max_iter", 0, 2**31 - 1)
    book = _sums.start(init, k, xs[0])
    if method not in _TOL:
        raise ValueError(f"method must be 'trimmed' or 'alternate', got {method!r}")
    tol = _TOL[method] if tol is None else float(tol)
    if not 0 <= tol < 1:
        raise ValueError(f"tol must be in [0, 1), got {tol}")
    if hs is None and _native.has_kernel("kmeans_plus_sparse", xs[0]):
        codes, indices, values = _sums.outputs(xs, kappa, out)
        device = xs[0].device
        codebook = torch.empty(k, dtype=torch.float32, device=device) if book is None else book.clone()
        distortion = torch.empty((), dtype=torch.float64, device=device)
        iterations = torch.empty((), dtype=torch.int64, device=device)
        sizes, options = [t.numel() for t in xs], (method == "alternate", book is not None, max_iter, tol)
        memory = (codes, codebook, indices, values, distortion, iterations)
        _sums.refuse(_native.call("kmeans_plus_sparse", xs, sizes, k, kappa, *options, *memory))
        result = CodebookPlusSparseResult(codebook, codes, indices, values, distortion.item(), int(iterations.item()))
    else:
        _sums.refuse_bad(xs, hs)
        result = _by_turns(xs, k, kappa, hs, book, method == "alternate", max_iter, tol, native=True)
    return result._replace(codes=result.codes[0]) if isinstance(x, Tensor) else result


def kmeans_plus_sparse_reference(
    x: Sequence[Tensor],
    k: int,
    kappa: int,
    *,
    weights: Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    alternate: bool = False,
    max_iter: int = 300,
    tol: float = 1e-6,
) -> CodebookPlusSparseResult:
    """The turns one after the other on the data, in plain torch: the meaning the kernels are tested against."""
    return _by_turns(x, k, kappa, weights, init, alternate, max_iter, tol, native=False)


def _by_turns(
    xs: Sequence[Tensor],
    k: int,
    kappa: int,
    hs: Sequence[Tensor] | None,
    init: Tensor | None,
    alternate: bool,
    max_iter: int,
    tol: float,
    *,
    native: bool,
) -> CodebookPlusSparseResult:
    """Corrections for the codebook, codebook for the corrections, until the distortion stands."""
    flat, h = _sums.flat(xs), None if hs is None else _sums.flat(hs)
    if h is not None and not bool((h > 0).any()):
        raise ValueError("weights must be finite, not negative and not all zero")
    cluster = kmeans1d if native else kmeans1d_reference

    def corrected(codebook: Tensor) -> CodebookPlusSparseResult:
        if native:
            return codebook_plus_sparse(xs, codebook, kappa, weights=hs)
        return codebook_plus_sparse_reference(xs, codebook, kappa, weights=hs)

    def clustered(indices: Tensor, places: Tensor, start: Tensor | None) -> Tensor:
        """The codebook for what the corrections leave: ``places`` at ``indices``, which weigh nothing if trimmed."""
        target, mass = flat, h
        if alternate:
            target = flat.index_copy(0, indices, places)
        else:
            mass = torch.ones_like(flat) if h is None else h.clone()
            mass[indices] = 0
            if not bool((mass > 0).any()):
                return start if start is not None else flat.new_zeros(k)
        return cluster(target, k, weights=mass, init=start).codebook

    if init is None:  # the largest magnitudes are corrected first, which leaves zeros
        zero = corrected(flat.new_zeros(1))
        init = clustered(zero.indices, torch.zeros_like(zero.values), None)
    best = corrected(init)
    turns = 0
    while turns < max_iter:
        turns += 1
        places = flat[best.indices] - best.values
        after = corrected(clustered(best.indices, places, best.codebook))
        done = not best.distortion - after.distortion > tol * after.distortion
        if after.distortion < best.distortion:
            best = after
        if done:
            break
    return best._replace(iterations=turns)
