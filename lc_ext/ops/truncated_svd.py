"""Truncated singular value decomposition: the low-rank C step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from . import _check
from .jacobi_svd import jacobi_pays, jacobi_triplets
from .krylov_svd import Problem, normalized_rows

__all__ = ["SVDResult", "truncated_svd", "truncated_svd_reference"]

_SLAB = 1024  # columns widened to float64 at a time


class SVDResult(NamedTuple):
    """Result of :func:`truncated_svd`: ``w`` is about ``u @ s.diag() @ vh``."""

    u: Tensor
    s: Tensor
    vh: Tensor


@overload
def truncated_svd(
    w: Tensor, rank: int, *, warm: SVDResult | Tensor | None = None, tol: float = 1e-6, max_steps: int | None = None
) -> SVDResult: ...
@overload
def truncated_svd(
    w: Sequence[Tensor],
    rank: int | Sequence[int],
    *,
    warm: Sequence[SVDResult | Tensor | None] | None = None,
    tol: float = 1e-6,
    max_steps: int | None = None,
) -> list[SVDResult]: ...
def truncated_svd(
    w: Tensor | Sequence[Tensor],
    rank: int | Sequence[int],
    *,
    warm: SVDResult | Tensor | Sequence[SVDResult | Tensor | None] | None = None,
    tol: float = 1e-6,
    max_steps: int | None = None,
) -> SVDResult | list[SVDResult]:
    """The ``rank`` largest singular triplets of a matrix: its best approximation of that rank (Eckart and Young 1936).

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n) or, for many matrices at once, (count, m, n); or a list of
        matrices, those of one shape solved together. Finite.
    rank : 1 to min(m, n); for a list of matrices also a list of ranks.
    warm : what is known from a similar matrix: the result of an earlier call, or its ``vh``, approximate right
        singular vectors as rows, shape (p, n); not used if p is below 3/4 ``rank``. With a batch or a list of
        matrices, a batch or a list of them.
    tol : relative excess of the error, ||w - u s vh|| / ||w - w_r|| - 1 with w_r the optimum, at which the block steps
        end, as they estimate it; differences below 5e-7 ||w||^2 in the square count as nothing. 0: the exact solver.
    max_steps : take what so many block steps reach from ``warm`` (any p), unless ``tol`` holds before. Never worse than
        the best product with the right factor ``warm``. No effect on a cold start.

    Returns
    -------
    u : (m, rank), s : (rank,) descending, vh : (rank, n), float32, both factors orthonormal; with a leading ``count``
        for a batch. A list of such results for a list.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, a rank out of range, a negative ``tol``.

    Notes
    -----
    Block Lanczos for the Gram matrix, one-sided (Golub and Underwood 1977; Simon and Zha 2000), 4 m n b flops for b
    rows: about 2 ``rank`` + 20 rows in all for a cold start, in blocks of 4; blocks of ``rank`` + 8 for a warm one,
    from which a half step more is free. They end when the excess that the residuals predict, threefold, is below
    ``tol``, and the bound from them, which takes the gap to the next singular value at its smallest, below 20 ``tol``.
    Where as many values are nearly equal as a block has rows, random rows are added, as long as that gains anything. A
    direction that the random rows do not see is not bounded.

    Where the subspace would get larger than half the smaller side (three quarters from 512 on), the eigenvectors of
    the smaller Gram matrix, in float64 so that squaring costs no accuracy; O(mn min(m, n)). Many matrices of a side up
    to 48: Jacobi rotations (:func:`jacobi_svd`).

    On matmul and small dense solvers, so it runs on every device. Deterministic; another number of threads changes
    the rounding of the products. Extra memory: the bases, of both sides, and the square of their size in float64; for
    the exact solver the square of the smaller side in float64.

    Examples
    --------
    >>> w = torch.randn(30, 20)
    >>> u, s, vh = ops.truncated_svd(w, 4)
    >>> u.shape, s.shape, vh.shape
    (torch.Size([30, 4]), torch.Size([4]), torch.Size([4, 20]))
    >>> u, s, vh = ops.truncated_svd(w + 0.01, 4, warm=ops.SVDResult(u, s, vh))  # from the step before
    """
    if not isinstance(tol, (int, float)) or isinstance(tol, bool) or not 0 <= tol < math.inf:
        raise ValueError(f"tol must be a finite number of at least 0, got {tol!r}")
    if max_steps is not None:
        max_steps = _check.integer(max_steps, "max_steps", 1)
    if isinstance(w, Tensor) and w.dim() == 3 and not len(w):
        raise ValueError(f"w must hold at least one matrix, got shape {tuple(w.shape)}")
    matrices: list[Any]
    starts: list[Any]
    single = isinstance(w, Tensor) and w.dim() != 3
    if single:
        names, matrices, starts = ["w"], [w], [warm]
    else:
        matrices, starts = list(w), _entries(warm, len(w))
        names = [f"w[{i}]" for i in range(len(matrices))]
    if isinstance(w, Tensor) and not single and warm is None and not isinstance(rank, Sequence) and tol:
        small = _small_batch(w, rank)
        if small:
            return small
    ranks = list(rank) if isinstance(rank, Sequence) else [rank] * len(matrices)
    for name, values in (("rank", ranks), ("warm", starts)):
        if len(values) != len(matrices):
            raise ValueError(f"{name} must have an entry for each of the {len(matrices)} matrices, got {len(values)}")
    jobs = [_job(*entry) for entry in zip(matrices, names, ranks, starts, strict=True)]
    if max_steps is None:  # from half the rows it takes longer than from none
        jobs = [j._replace(start=None) if j.start is not None and 4 * len(j.start) < 3 * j.rank else j for j in jobs]
    results = _solve(jobs, float(tol), max_steps)
    if single:
        return results[0]
    if isinstance(w, Tensor):
        return SVDResult(*(torch.stack(parts) for parts in zip(*results, strict=True)))
    return results


def truncated_svd_reference(w: Tensor, rank: int) -> SVDResult:
    """The definition: the full decomposition in float64, truncated."""
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return SVDResult(u[:, :rank].float(), s[:rank].float(), vh[:rank].float())


class _Job(NamedTuple):
    """One matrix, scaled by a power of two so that no square overflows or vanishes."""

    a: Tensor
    rank: int
    start: Tensor | None
    energy: float
    scale: float


def _entries(warm: Any, count: int) -> list[Any]:
    if isinstance(warm, SVDResult):  # of a batch
        return [SVDResult(*parts) for parts in zip(*warm, strict=True)]
    if warm is None:
        return [None] * count
    if not isinstance(warm, (Tensor, Sequence)):
        raise TypeError(f"warm must be a batch or a list of earlier results, got {type(warm).__name__}")
    return list(warm)


def _job(w: Any, name: str, rank: Any, warm: Any) -> _Job:
    a = _check.float32(w, name)
    if a.dim() != 2:
        raise ValueError(f"{name} must be a matrix, got shape {tuple(a.shape)}")
    rank = _check.integer(rank, "rank", 1, min(a.shape))
    start = None
    if warm is not None:
        start = _check.float32(warm.vh if isinstance(warm, SVDResult) else warm, "warm", a)
        if start.dim() != 2 or start.shape[1] != a.shape[1]:
            raise ValueError(f"warm must have shape (p, {a.shape[1]}), got {tuple(start.shape)}")
        _check.finite(start, "warm")
    energy = float(torch.linalg.vector_norm(a, dim=1).double().square().sum())
    if 1e-12 < energy < 1e12:  # no NaN, no Inf, and fourth powers that neither overflow nor vanish
        return _Job(a, rank, start, energy, 1.0)
    low, high = map(float, torch.aminmax(a))
    peak = low * 0 + max(high, -low)
    if not math.isfinite(peak):
        raise ValueError(f"{name} contains NaN or Inf")
    exponent = math.frexp(peak)[1]
    a = torch.ldexp(a, torch.tensor(-exponent, device=a.device))
    energy = float(torch.linalg.vector_norm(a, dim=1).double().square().sum())
    return _Job(a, rank, start, energy, 2.0**exponent)


def _solve(jobs: list[_Job], tol: float, max_steps: int | None) -> list[SVDResult]:
    """Block steps where they pay; the others by the exact solver, those of one shape and rank in one call."""
    results: dict[int, SVDResult] = {}
    groups: dict[tuple[torch.Size, int], list[int]] = {}
    for i, job in enumerate(jobs):
        problem = Problem(job.a, job.rank, job.energy, tol, _limit(min(job.a.shape)))
        found = None if job.start is None else problem.warm(job.start, max_steps)
        found = found or problem.cold()
        if found:
            results[i] = SVDResult(*found)
        else:
            groups.setdefault((job.a.shape, job.rank), []).append(i)
    for (_, rank), members in groups.items():
        stacked = torch.stack([jobs[i].a for i in members])
        u, s, vh = jacobi_triplets(stacked, rank) if tol and jacobi_pays(stacked) else _exact(stacked, rank)
        results |= {i: SVDResult(u[j], s[j], vh[j]) for j, i in enumerate(members)}
    unscaled = ((results[i], job.scale) for i, job in enumerate(jobs))
    return [SVDResult(r.u.contiguous(), r.s if scale == 1 else r.s * scale, r.vh.contiguous()) for r, scale in unscaled]


def _limit(side: int) -> int:
    """Size of a subspace from which the exact solver takes less time than going on (measured for sides 64 to 1024)."""
    return side // 2 if side < 512 else 3 * side // 4


def _small_batch(w: Tensor, rank: Any) -> SVDResult | None:
    """Many small matrices of ordinary scale at once: the checks of each by itself take longer than its solution."""
    a = _check.float32(w, "w")
    if not a.numel() or not jacobi_pays(a):
        return None
    rank = _check.integer(rank, "rank", 1, min(a.shape[1:]))
    low, high = map(float, torch.aminmax(torch.linalg.vector_norm(a, dim=(1, 2)).square()))
    return SVDResult(*jacobi_triplets(a, rank)) if 1e-12 < low and high < 1e12 else None


def _exact(a: Tensor, rank: int) -> SVDResult:
    """Eigenvectors of the Gram matrices of the smaller side, in float64; a has shape (count, m, n)."""
    if a.shape[1] > a.shape[2]:
        v, s, uh = _exact(a.mT, rank)
        return SVDResult(uh.mT, s, v.mT)
    gram = a.new_zeros(a.shape[0], a.shape[1], a.shape[1], dtype=torch.float64)
    slabs = a.split(_SLAB, dim=2)
    for slab in slabs:
        wide = slab.double()
        gram.baddbmm_(wide, wide.mT)
    u = torch.linalg.eigh(gram)[1].flip(2)[:, :, :rank]
    projected = torch.cat([u.mT @ slab.double() for slab in slabs], dim=2)
    s, vh = normalized_rows(projected)
    return SVDResult(u.float(), s.float(), vh.float())
