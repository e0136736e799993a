"""Truncated singular value decomposition: the low-rank C step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from . import _check
from .block_krylov import BlockKrylov, orthonormal_rows, random_rows

__all__ = ["SVDResult", "truncated_svd", "truncated_svd_reference"]

_OVERSAMPLING = 8
_BLOCK = 16  # rows of a cold start: the fewer, the smaller the subspace, but narrower products are no quicker
_FIRST_CHECK = 2.5  # times the rank: size of the subspace
_PATIENCE = 0.8  # of the half steps that the rate of convergence would ask for until the next check
_SLACK = 20.0  # how far the bound from the residuals may exceed the tolerance: it takes the gaps at their smallest
_SMALL_EDGE = 0.05
_SLAB = 1024  # columns widened to float64 at a time
_FLOOR = 2.0**-21  # of the energy: what float32 bases cannot tell from zero


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
    Block Krylov steps (Golub and Underwood 1977; Musco and Musco 2015), 4 m n b flops for a block of b rows: about
    3 ``rank`` rows in all for a cold start, two blocks of ``rank`` + 8 for a warm one. They end when both hold: the
    last half step gained less than ``tol``, with the rate of convergence where that is slow; and the bound from the
    residuals, which takes the gap to the next singular value at its smallest, is below 20 ``tol``. A direction that
    the random start does not see is not bounded; where the subspace looks invariant, as it does when more singular
    values are equal than the block has rows, random rows are added until the block is larger than the rank.

    Where that does not pay (small sides and high ranks: 3 ``rank`` + 64 above half the smaller side, or above three
    quarters from 512 on; warm, 4 ``rank`` + 32), or does not converge in a subspace of that size, the eigenvectors of
    the smaller Gram matrix, in float64 so that squaring costs no accuracy; O(mn min(m, n)).

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
    if 1e-24 < energy < 1e24:  # no NaN, no Inf, and squares that neither overflow nor vanish
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
        result = None if _exact_is_cheaper(job, tol, max_steps) else _block_steps(job, tol, max_steps)
        if result is not None:
            results[i] = result
        else:
            groups.setdefault((job.a.shape, job.rank), []).append(i)
    for (_, rank), members in groups.items():
        u, s, vh = _exact(torch.stack([jobs[i].a for i in members]), rank)
        results |= {i: SVDResult(u[j], s[j], vh[j]) for j, i in enumerate(members)}
    unscaled = ((results[i], job.scale) for i, job in enumerate(jobs))
    return [SVDResult(r.u.contiguous(), r.s if scale == 1 else r.s * scale, r.vh.contiguous()) for r, scale in unscaled]


def _limit(side: int) -> int:
    """Size of a subspace from which the exact solver takes less time than going on (measured for sides 64 to 1024)."""
    return side // 2 if side < 512 else 3 * side // 4


def _exact_is_cheaper(job: _Job, tol: float, max_steps: int | None) -> bool:
    """Whether the subspace would get too large for a slow decay of the singular values (measured: i^-0.6)."""
    side, size = min(job.a.shape), job.rank + _OVERSAMPLING
    if job.start is None:
        return tol == 0 or 3 * job.rank + 4 * _BLOCK > _limit(side)
    if max_steps is None:
        return tol == 0 or 4 * size > _limit(side)
    return tol == 0 or min(max_steps + 1, 4) * size > side


def _block_steps(job: _Job, tol: float, max_steps: int | None) -> SVDResult | None:
    """Block Krylov steps until ``tol`` holds or ``max_steps`` are made; None if the subspace would get too large."""
    a, rank, limit = job.a, job.rank, _limit(min(job.a.shape))
    size, columns = rank + _OVERSAMPLING, job.a.shape[1]
    if job.start is None:
        start, max_steps = random_rows(min(size, _BLOCK), columns, a), None
    else:
        missing = max(size - job.start.shape[0], 0)
        start = torch.cat([job.start[: max(rank, min(a.shape) // 4)], random_rows(missing, columns, a)])
        limit = limit if max_steps is None else min(a.shape)
    space = BlockKrylov(a, start)
    sampled = start.shape[0]
    check, due = _Check(space, job), 3  # half steps, so that either basis has a last block
    smallest = rank if sampled >= size else int(_FIRST_CHECK * rank)
    for half_step in itertools.count(1):
        space.half_step()
        last = half_step == 2 * max_steps if max_steps else False
        if space.size + space.last_block > limit and not last:
            return None
        if not last and (space.size < smallest or half_step < due):
            continue
        excess, wait = check(tol)
        due = half_step + wait
        if last or excess <= tol:
            if last or sampled >= size or not check.may_have_missed(tol):
                break
            space.extend(random_rows(size - sampled, a.shape[half_step % 2 == 0], a, seed=1))
            sampled = size
    return check.result()


class _Check:
    """What the subspace has captured, and how much is missing: the gains of half steps shrink geometrically."""

    def __init__(self, space: BlockKrylov, job: _Job) -> None:
        self.space = space
        self.job = job

    def __call__(self, tol: float) -> tuple[float, int]:
        """Estimate of the relative excess, and of how many half steps to wait before the next check."""
        core, rank, energy = self.space.core(), self.job.rank, self.job.energy
        gram = core @ core.t()
        values, vectors = torch.linalg.eigh(gram)
        squares = values.flip(0)[:rank]
        captured = float(squares.sum())
        self.core, self.left = core, vectors.flip(1)[:, :rank]
        self.images = core.t() @ self.left
        self.smallest = max(float(squares[-1]), 0.0) ** 0.5
        self.tail = energy - captured
        if self.tail <= _FLOOR * energy:
            return 0.0, 1
        # What the approximation would lose if the last block of either basis were dropped from it bounds the gains of
        # the last two half steps.
        block = self.space.last_block
        gains = self.images[-block:].square().sum(0)
        gain = float(gains.sum())
        earlier = float((self.left[-block:].square().sum(0) * squares).sum())
        ratio = min((gain + 1e-300) / (earlier + 1e-300), 0.99)
        if 1 < gain / (2 * tol * self.tail) < 8:  # near enough to pay for the gain itself
            last = core[:, -block:]
            gain = captured - float(torch.linalg.eigvalsh(gram - last @ last.t())[-rank:].sum())
        # Gains are small also where convergence stalls, in a cluster of singular values: residuals are not.
        next_square = float(values[-rank - 1]) if len(values) > rank else 0.0
        gaps = (squares - next_square) / 2
        bound = float(((gaps.square() + squares * gains).sqrt() - gaps).sum())
        excess = max(gain * max(1.0, ratio / (1 - ratio)), bound / _SLACK) / (2 * self.tail)
        return excess, max(1, int(_PATIENCE * math.log(max(excess / tol, 1.0)) / -math.log(ratio)))

    def may_have_missed(self, tol: float) -> bool:
        """Whether the subspace is nearly invariant, as it is when equal singular values outnumber a block."""
        outside = self.job.energy - float(self.core.square().sum())
        return self.space.edge < _SMALL_EDGE * self.smallest and outside > tol * self.tail + _FLOOR * self.job.energy

    def result(self) -> SVDResult:
        s, right = _normalized(self.images.t())
        u, vh = self.space.triplets(self.left, right.t())
        return SVDResult(u, s.float(), vh)


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Norms and directions of rows that are orthogonal up to rounding and descend in norm; orthonormal in any case."""
    norms = torch.linalg.vector_norm(x, dim=-1)
    s = norms.cummin(-1).values  # rounding may disorder the smallest
    if bool((s[..., -1] <= 1e-5 * s[..., 0]).any()):
        return s, orthonormal_rows(x)
    return s, x / norms[..., None]


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
    s, vh = _normalized(projected)
    return SVDResult(u.float(), s.float(), vh.float())
