"""Sums with a low-rank part: with sparse corrections, with a codebook, or with both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import _check, _sums
from .assign import assign
from .codebook_plus_sparse import codebook_plus_sparse
from .kmeans1d import decode, kmeans1d
from .kmeans_plus_sparse import kmeans_plus_sparse
from .topk_prune import topk_prune
from .truncated_svd import truncated_svd

__all__ = ["LowRankSumResult", "low_rank_plus_codebook", "low_rank_plus_sparse"]


class LowRankSumResult(NamedTuple):
    """A sum with a low-rank part: ``w`` is about ``u @ v``, plus ``codebook[codes]``, plus ``sparse``.

    ``codebook`` and ``codes``, or ``sparse``, are None where the sum has no such part.
    """

    u: Tensor
    v: Tensor
    codebook: Tensor | None
    codes: Tensor | None
    sparse: Tensor | None
    distortion: float
    iterations: int

    def decompress(self) -> Tensor:
        """The sum, float32."""
        total = self.u @ self.v
        if self.codebook is not None and self.codes is not None:
            total += decode(self.codes, self.codebook)
        return total if self.sparse is None else total + self.sparse


class _Rest(NamedTuple):
    """What a sum has besides its low-rank part."""

    delta: Tensor
    codebook: Tensor | None = None
    codes: Tensor | None = None
    sparse: Tensor | None = None


def low_rank_plus_sparse(
    w: Tensor,
    rank: int,
    kappa: int,
    *,
    init: LowRankSumResult | None = None,
    max_iter: int = 30,
    tol: float = 1e-3,
) -> LowRankSumResult:
    """A matrix of rank ``rank`` and ``kappa`` corrections that lower ||w - u v - s||^2.

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n), finite.
    rank : 1 to min(m, n).
    kappa : number of corrections, 0 to mn.
    init : warm start, a result for a similar matrix of the same shape. Default: cold.
    max_iter : bound on the turns.
    tol : they end when one lowers the distortion by less than this part of it.

    Returns
    -------
    u : (m, rank), v : (rank, n), both carry the root of the singular values.
    sparse : dense float32 tensor of shape (m, n) with kappa nonzeros or fewer.
    distortion : ||w - u v - s||^2.
    iterations : turns made. codebook, codes : None.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Alternation of truncated SVD and top-kappa (GoDec, Zhou and Tao 2011), corrections first. A local optimum; no turn
    ends above the last, and a warm start never above the distortion it started from. O(mn rank) for a turn.

    Examples
    --------
    >>> found = ops.low_rank_plus_sparse(torch.randn(30, 20), 2, 10)
    >>> found.u.shape, found.v.shape, int(found.sparse.count_nonzero())
    (torch.Size([30, 2]), torch.Size([2, 20]), 10)
    """
    a = _matrix(w)
    kappa = _check.integer(kappa, "kappa", 0, a.numel())

    def fit(residual: Tensor, last: _Rest | None) -> _Rest:
        sparse = topk_prune(residual, kappa).values
        return _Rest(sparse, sparse=sparse)

    return _alternate(a, rank, fit, init, max_iter, tol, svd_first=False)


def low_rank_plus_codebook(
    w: Tensor,
    rank: int,
    codebook: int | Tensor,
    kappa: int = 0,
    *,
    init: LowRankSumResult | None = None,
    max_iter: int = 30,
    tol: float = 1e-3,
) -> LowRankSumResult:
    """A matrix of rank ``rank``, a codebook and ``kappa`` corrections that lower ||w - u v - q - s||^2.

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n), finite.
    rank : 1 to min(m, n).
    codebook : int, the size of an adaptive one, 1 to 256; or a fixed one, ascending, of shape (k,).
    kappa : number of corrections, 0 to mn.
    init, max_iter, tol : as of :func:`low_rank_plus_sparse`.

    Returns
    -------
    u, v, sparse, distortion, iterations : as of :func:`low_rank_plus_sparse`; sparse is None if kappa is 0.
    codebook : float32 tensor of shape (k,), ascending. codes : uint8, like ``w``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Alternation of truncated SVD and quantization (as the initialiser of LQ-LoRA, Guo et al. 2023), SVD first, which
    ended 10 % lower than quantization first on a noisy matrix of low rank. With corrections it is the joint solution of
    codebook and corrections that alternates with the SVD: exact for a fixed codebook, trimmed k-means for an adaptive
    one.

    Examples
    --------
    >>> found = ops.low_rank_plus_codebook(torch.randn(30, 20), 2, 4)
    >>> found.u.shape, found.v.shape, found.codebook.shape, found.codes.shape
    (torch.Size([30, 2]), torch.Size([2, 20]), torch.Size([4]), torch.Size([30, 20]))
    """
    a = _matrix(w)
    kappa = _check.integer(kappa, "kappa", 0, a.numel())
    fixed = None if isinstance(codebook, int) else _check.sorted_codebook(codebook, "codebook", a)
    k = fixed.numel() if fixed is not None else _check.integer(codebook, "codebook", 1, 256)

    def fit(residual: Tensor, last: _Rest | None) -> _Rest:
        warm = None if last is None else last.codebook
        if kappa:
            if fixed is not None:
                result = codebook_plus_sparse(residual, fixed, kappa)
            else:
                result = kmeans_plus_sparse(residual, k, kappa, init=warm)
            codes, sparse = _sums.as_list(result.codes)[0], _sums.as_list(result.corrections())[0]
            return _Rest(decode(codes, result.codebook) + sparse, result.codebook, codes, sparse)
        if fixed is not None:
            codes, book = assign(residual, fixed), fixed
        else:
            clusters = kmeans1d(residual, k, init=warm)
            codes, book = clusters.codes, clusters.codebook
        return _Rest(decode(codes, book), book, codes)

    return _alternate(a, rank, fit, init, max_iter, tol, svd_first=True)


def _matrix(w: Tensor) -> Tensor:
    a = _check.float32(w, "w")
    if a.dim() != 2 or 0 in a.shape:
        raise ValueError(f"w must be a matrix with elements, got shape {tuple(a.shape)}")
    _check.finite(a, "w")
    return a


def _alternate(
    a: Tensor,
    rank: int,
    fit: Callable[[Tensor, _Rest | None], _Rest],
    init: LowRankSumResult | None,
    max_iter: int,
    tol: float,
    *,
    svd_first: bool,
) -> LowRankSumResult:
    rank = _check.integer(rank, "rank", 1, min(a.shape))
    max_iter = _check.integer(max_iter, "max_iter", 1)
    if not 0 <= tol < 1:
        raise ValueError(f"tol must be in [0, 1), got {tol}")

    def factors(target: Tensor, warm: Tensor | None) -> tuple[Tensor, Tensor]:
        svd = truncated_svd(target, rank, warm=warm, tol=1e-4)
        root = svd.s.sqrt()
        return svd.u * root, root[:, None] * svd.vh

    rest, best, before = None, None, math.inf
    if init is not None:
        u, v, rest = _given(init, a, rank)
        before = _distortion(a - init.decompress())
        best = init._replace(distortion=before)
    elif svd_first:
        u, v = factors(a, None)
    else:
        u, v = a.new_zeros(a.shape[0], rank), a.new_zeros(rank, a.shape[1])
    turns = 0
    while turns < max_iter:
        turns += 1
        rest = fit(a - u @ v, rest)
        target = a - rest.delta
        u, v = factors(target, v if init is not None or svd_first or turns > 1 else None)
        after = _distortion(target.addmm_(u, v, alpha=-1))
        if best is None or after < best.distortion:
            best = LowRankSumResult(u, v, rest.codebook, rest.codes, rest.sparse, after, turns)
        if not before - after > tol * after:
            break
        before = after
    assert best is not None
    return best._replace(iterations=turns)


def _given(init: LowRankSumResult, a: Tensor, rank: int) -> tuple[Tensor, Tensor, _Rest]:
    if not isinstance(init, LowRankSumResult):
        raise TypeError(f"init must be a previous result for such a w, got {type(init).__name__}")
    if init.u.shape != (a.shape[0], rank) or init.v.shape != (rank, a.shape[1]) or init.u.device != a.device:
        raise ValueError(f"init must have factors of rank {rank} for shape {tuple(a.shape)} on {a.device}")
    return init.u, init.v, _Rest(a, init.codebook, init.codes, init.sparse)


def _distortion(residual: Tensor) -> float:
    return float(torch.linalg.vector_norm(residual, dtype=torch.float64)) ** 2
