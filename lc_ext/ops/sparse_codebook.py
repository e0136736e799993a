"""Joint sparsity and quantization: nonzeros that share a codebook, zero pinned besides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from . import _check, _sums
from .assign import assign_reference
from .kmeans1d import kmeans1d, kmeans1d_reference

__all__ = ["SparseCodebookResult", "sparse_codebook", "sparse_codebook_reference"]


class SparseCodebookResult(NamedTuple):
    """Result of :func:`sparse_codebook`: ``x`` is about ``codebook[codes - 1]`` where codes > 0, zero elsewhere."""

    codebook: Tensor
    codes: Tensor | list[Tensor]
    distortion: float
    nonzeros: int
    iterations: int = 0

    def decompress(self) -> Tensor | list[Tensor]:
        """The values, float32, in the shapes of the codes."""
        book = torch.cat([self.codebook.new_zeros(1), self.codebook])
        if isinstance(self.codes, Tensor):
            return book[self.codes.long()]
        return [book[c.long()] for c in self.codes]


def sparse_codebook(
    x: Tensor | Sequence[Tensor],
    k: int,
    kappa: int,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    max_iter: int = 100,
    out: SparseCodebookResult | None = None,
) -> SparseCodebookResult:
    """At most ``kappa`` nonzeros that share ``k`` codewords, chosen together to lower sum_i h_i (x_i - theta_i)^2.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite; or a list of them on one device, taken as one: they
        share the codebook and the count.
    k : number of codewords besides zero, 1 to 255.
    kappa : bound on the nonzeros, 0 to the number N of elements.
    weights : the h_i, like ``x``: finite, not negative. Default: all one.
    init : warm start, float tensor of shape (k,), ascending and finite. It stays where hardly anything is to be gained
        (1e-5 of the distortion). Default: cold.
    max_iter : bound on the steps.
    out : a previous result for tensors of the same shapes, whose codes are overwritten.

    Returns
    -------
    codebook : float32 tensor of shape (k,), ascending. With fewer codewords in use the last is repeated.
    codes : uint8, like ``x``: 0 for zero, else 1 + the index of the nearest codeword. The best for that codebook: the
        entries with the largest h (x^2 - (x - c)^2), the lowest indices in a tie.
    distortion : the sum above.
    nonzeros : kappa, or fewer where another nonzero would not help.
    iterations : steps made.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    For a given codebook x^2 - (x - c(x))^2 rises with |x| on either side of zero, so the support is two tails. A cold
    start is the optimum on a histogram (1024 atoms on either side of zero) over all supports and codebooks, by one
    dynamic program from either end. Lloyd steps follow, in which a Lagrange multiplier holds the count. The exact
    solution for the codebook is never above the histogram's optimum, nor above the warm start. O(N + k m log m), two
    passes over the data, three with a warm start. With weights: the largest h x^2 first, then turns of weighted k-means
    and exact choice of the support, each a pass over the data. The same for every instruction set and number of
    threads.

    Examples
    --------
    >>> found = ops.sparse_codebook(torch.tensor([0.1, -0.2, 3.0, 3.0, -5.0]), 2, 3)
    >>> found.codebook, found.codes
    (tensor([-5.,  3.]), tensor([0, 0, 2, 2, 1], dtype=torch.uint8))
    """
    xs, hs = _sums.inputs(x, weights)
    k = _check.integer(k, "k", 1, 255)
    kappa = _check.integer(kappa, "kappa", 0, sum(t.numel() for t in xs))
    max_iter = _check.integer(max_iter, "max_iter", 0, 2**31 - 1)
    book = _sums.start(init, k, xs[0])
    if out is not None and not isinstance(out, SparseCodebookResult):
        raise TypeError(f"out must be a previous result for such an x, got {type(out).__name__}")
    native = _native.has_kernel("sparse_codebook", xs[0])
    if hs is None and native:
        codes = _sums.codes_like(xs, None if out is None else out.codes)
        device = xs[0].device
        codebook = torch.empty(k, dtype=torch.float32, device=device) if book is None else book.clone()
        distortion = torch.empty((), dtype=torch.float64, device=device)
        counts = torch.empty(2, dtype=torch.int64, device=device)
        sizes = [t.numel() for t in xs]
        memory = (codes, codebook, distortion, counts[0], counts[1])
        _sums.refuse(_native.call("sparse_codebook", xs, sizes, k, kappa, book is not None, max_iter, *memory))
        result = SparseCodebookResult(codebook, codes, distortion.item(), *counts.tolist())
    else:
        _sums.refuse_bad(xs, hs)
        result = _by_turns(xs, k, kappa, hs, book, max_iter, native=native)
    return result._replace(codes=_sums.as_list(result.codes)[0]) if isinstance(x, Tensor) else result


def sparse_codebook_reference(
    x: Sequence[Tensor],
    k: int,
    kappa: int,
    *,
    weights: Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    max_iter: int = 100,
) -> SparseCodebookResult:
    """Prune, cluster, then turns of both on the data, in plain torch: the path of devices without a kernel."""
    return _by_turns(x, k, kappa, weights, init, max_iter, native=False)


def _by_turns(
    xs: Sequence[Tensor],
    k: int,
    kappa: int,
    hs: Sequence[Tensor] | None,
    init: Tensor | None,
    max_iter: int,
    *,
    native: bool,
) -> SparseCodebookResult:
    flat, h = _sums.flat(xs), None if hs is None else _sums.flat(hs)
    cluster = kmeans1d if native else kmeans1d_reference

    def codebook_of(support: Tensor, start: Tensor | None) -> Tensor:
        mass = support.float() if h is None else support * h
        if not bool((mass > 0).any()):
            return flat.new_zeros(k) if start is None else start
        return cluster(flat, k, weights=mass, init=start).codebook

    if init is None:
        score = flat.double().square() if h is None else flat.double().square() * h.double()
        support = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
        support[score.sort(descending=True, stable=True).indices[:kappa]] = True
        init = codebook_of(support, None)
    best = _nearest(xs, hs, init, kappa, native)
    turns = 0
    while turns < max_iter:
        turns += 1
        moved = codebook_of(_sums.flat(_sums.as_list(best.codes)) > 0, best.codebook)
        after = _nearest(xs, hs, moved, kappa, native)
        done = not best.distortion - after.distortion > 1e-6 * after.distortion
        if after.distortion < best.distortion:
            best = after
        if done:
            break
    return best._replace(iterations=turns)


def _nearest(
    xs: Sequence[Tensor], hs: Sequence[Tensor] | None, codebook: Tensor, kappa: int, native: bool
) -> SparseCodebookResult:
    """The exact support and codes for a given codebook."""
    if native:
        codes = _sums.codes_like(xs, None)
        distortion = torch.empty((), dtype=torch.float64, device=xs[0].device)
        used = torch.empty((), dtype=torch.int64, device=xs[0].device)
        sizes = [t.numel() for t in xs]
        args = (list(xs), list(hs or []), sizes, codebook, codebook.numel(), kappa, codes, distortion, used)
        _sums.refuse(_native.call("nearest_sparse", *args))
        return SparseCodebookResult(codebook, codes, distortion.item(), int(used.item()))
    flat = _sums.flat(xs)
    nearest = assign_reference(flat, codebook)
    value, c = flat.double(), codebook.double()[nearest.long()]
    h = torch.ones_like(value) if hs is None else _sums.flat(hs).double()
    benefit = h * (c * (2 * value - c))
    order = benefit.sort(descending=True, stable=True).indices[:kappa]
    order = order[benefit[order] > 0]
    support = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    support[order] = True
    codes = _sums.split((nearest + 1) * support, xs)
    left = float((h * (value - torch.where(support, c, 0.0)).square()).sum())
    return SparseCodebookResult(codebook, codes, left if math.isfinite(left) else math.inf, order.numel())
