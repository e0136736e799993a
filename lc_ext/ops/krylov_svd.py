"""The largest singular triplets from block Krylov subspaces: cold from random rows, warm from known ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .block_krylov import BlockKrylov, orthonormal_rows, random_rows

__all__ = ["Problem", "normalized_rows"]

Triplets = tuple[Tensor, Tensor, Tensor]

_OVERSAMPLING = 8
_BLOCK = 4  # rows of a cold start: with fewer the kernel waits for memory, with more the subspace gets larger
_WIDE_BLOCK = 16  # on devices without that kernel
_SAFETY = 3.0  # the estimate of what is missing is up to 5 times too low far from convergence
_SLACK = 20.0  # how far the bound from the residuals may exceed the tolerance: it takes the gaps at their smallest
_CLUSTER = 0.01  # relative width of what counts as equal squares
_PROBE_STEPS = 4  # with new random rows beside a cluster
_WARM_PROBE_STEPS = 2  # with the random rows beside a warm start
_NATURAL = 0.3  # of what a half step gains may come from those rows anyway
_DROPPED = 0.25  # of the tolerance: what residuals may be left out in further warm steps
_HOPELESS = 5.0  # times the tolerance after the first warm step: a cold start takes less time
_CHECK = 6.0  # times the cube of its size, over the entries of the matrix: half a check, in rows (measured)
_NEARLY_ZERO = 1e-3  # beside the largest: rounding errors of the largest may show in such rows
_FLOOR = 2.0**-21  # of the energy: what float32 bases cannot tell from zero


class Problem:
    """A matrix and what is wanted of it.

    Parameters
    ----------
    a : float32 matrix (m, n), contiguous, of a scale whose fourth powers neither overflow nor vanish.
    rank : number of triplets.
    energy : ||a||^2.
    tol : relative excess of the error.
    limit : size of a subspace that is too large.
    """

    def __init__(self, a: Tensor, rank: int, energy: float, tol: float, limit: int) -> None:
        self.a, self.rank, self.energy, self.tol, self.limit = a, rank, energy, tol, limit

    def cold(self) -> Triplets | None:
        """Narrow blocks until ``tol`` holds; None if the subspace would get too large."""
        block, columns = _BLOCK if self.a.is_cpu else _WIDE_BLOCK, self.a.shape[1]
        digits = -math.log10(max(self.tol, 1e-12))
        expected = int(self.rank * (1.3 + 0.11 * digits) + 4 * digits)  # measured: i^-0.6
        if self.tol == 0 or columns < 16 or expected + 2 * block > self.limit:
            return None
        space = BlockKrylov(self.a, random_rows(block, columns, self.a), expected + 2 * block)
        wait, probed = max(expected // block, -(-self.rank // block)), -math.inf
        while space.size + (wait + 1) * space.fresh <= self.limit:
            space.steps(wait)
            ritz = _Ritz(self, space)
            if ritz.excess(half_step=False) <= self.tol:
                gained = ritz.captured - probed > 2 * self.tol * ritz.tail + _FLOOR * self.energy
                if not gained or not ritz.has_cluster():
                    return ritz.triplets()
                probed, wait = ritz.captured, _PROBE_STEPS
                space.extend(random_rows(space.fresh, columns, self.a, seed=space.size))
            else:
                wait = ritz.wait()
        return None

    def warm(self, start: Tensor, max_steps: int | None, first: int = 1) -> Triplets | None:
        """Wide blocks until ``tol`` holds, after the step ``first`` or later, or ``max_steps`` are made.

        None if a cold start or the exact solver would take less time.
        """
        size, side = self.rank + _OVERSAMPLING, min(self.a.shape)
        start = start[: max(self.rank, side // 4)]
        width = max(size, len(start))
        limit = side if max_steps else self.limit
        if self.tol == 0 or self.a.shape[1] < 16 or min(max_steps or 3, 3) * width + width > limit:
            return None
        space = BlockKrylov(
            self.a, torch.cat([start, random_rows(width - len(start), self.a.shape[1], self.a)]), 2 * width
        )
        step, dropped = 0, 0.0
        while space.size + 2 * space.fresh <= limit:
            space.steps()
            step += 1
            ritz = _Ritz(self, space, first=step == 1)
            excess = ritz.excess(half_step=True) + dropped
            if step == max_steps or (excess <= self.tol and step > 1):
                return ritz.half_step()
            if excess <= self.tol and step >= first:
                found = ritz.half_step()
                if not self._finds_others(space, ritz):
                    return found
                return self.warm(space.combine(ritz.vectors[:, : self.rank]), max_steps, first=2)
            if step == 1 and max_steps is None and excess > _HOPELESS * self.tol:
                break
            if step > 1:
                directions, left_out = ritz.unconverged(_DROPPED * self.tol - dropped)
                space.keep(directions)
                dropped += left_out
        return None

    def _finds_others(self, space: BlockKrylov, ritz: _Ritz) -> bool:
        """Whether the rows beside the wanted ones lead to larger values, which the start did not know."""
        others = ritz.vectors[:, self.rank : self.rank + _OVERSAMPLING]
        space.keep(torch.linalg.qr(space.coupling() @ others)[0])
        space.steps(_WARM_PROBE_STEPS)
        gain = _Ritz(self, space).captured - ritz.captured
        return gain > max(_NATURAL * float((ritz.residuals / ritz.squares).sum()), 2 * self.tol * ritz.tail)


class _Ritz:
    """What a subspace has captured, and how much is missing, from the residuals.

    With ``first`` the last block is the only one, and the value next to those wanted says how large those are that the
    residuals point to (measured: 0.8 to 1.3 times it); later the last block says it.
    """

    def __init__(self, problem: Problem, space: BlockKrylov, first: bool = False) -> None:
        self.problem, self.space, self.first = problem, space, first
        values, vectors = torch.linalg.eigh(space.core(), UPLO="U")
        self.values, self.vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        self.squares, rank = self.values[: problem.rank], problem.rank
        self.next = self.values[rank] if len(values) > rank else values.new_zeros(())
        self.captured = float(self.squares.sum())
        self.tail = problem.energy - self.captured
        self.coupling = space.coupling() @ self.vectors[:, :rank]
        self.residuals = self.coupling.square().sum(0)
        last = min(space.fresh, space.size)
        mean = self.next if first else space.core().diagonal()[-last:].mean()
        self.gaps = (self.squares - mean.minimum(self.squares[-1])).clamp_min(1e-300)

    def excess(self, half_step: bool) -> float:
        """Estimate of the relative excess of the error, of :meth:`half_step` or of :meth:`triplets`."""
        if self.tail <= _FLOOR * self.problem.energy:
            return 0.0
        # To second order a pair gains residual^2 / gap, and a half step residual^2 / value of it. The bound takes the
        # gap to the next pair; the estimate that to where most of the residual lies.
        half = (self.squares - self.next) / 2
        bound = float(((half.square() + self.residuals).sqrt() - half).sum())
        gain = float((self.residuals / self.gaps).minimum(self.residuals.sqrt()).sum())
        self.gain = gain
        gained = float((self.residuals / self.squares.clamp_min(1e-300)).sum()) if half_step else 0.0
        estimate = _SAFETY * (gain - gained) if self.first else _SAFETY * gain - gained
        return max(estimate, (bound - gained) / _SLACK, 0.0) / (2 * self.tail)

    def unconverged(self, budget: float) -> tuple[Tensor, float]:
        """Directions of the residuals that matter, orthonormal columns (fresh, count), and the excess of the others."""
        rank, unit = self.problem.rank, 2 * self.tail / _SAFETY
        gains, order = (self.residuals / self.gaps).minimum(self.residuals.sqrt()).sort()
        sums = gains.cumsum(0)
        count = int((sums <= budget * unit).sum())
        others = self.vectors[:, rank : rank + _OVERSAMPLING]
        directions = torch.cat([self.coupling[:, order[count:]], self.space.coupling() @ others], 1)
        return torch.linalg.qr(directions)[0], float(sums[count - 1]) / unit if count else 0.0

    def wait(self) -> int:
        """How many steps to make before the next check."""
        last, size = self.space.fresh, self.space.size
        earlier = float((self.vectors[-last:, : self.problem.rank].square().sum(0) * self.gaps).sum())
        ratio = min(max(self.gain / (earlier + 1e-300), 1e-3), 0.99)
        rows = math.log(max(self.excess(False) / self.problem.tol, 1.0)) / -math.log(ratio) * last
        # At least what costs as much as half a check, and not far on the word of a rate that will improve.
        rows = min(max(rows, _CHECK * size**3 / self.space.a.numel()), size / 5)
        return max(1, int(rows / last))

    def has_cluster(self) -> bool:
        """Whether as many values are nearly equal as the blocks have rows: of more, the others would not show."""
        width, rank = self.space.fresh, self.problem.rank
        if self.tail <= _FLOOR * self.problem.energy or len(self.values) < width or width > rank + _OVERSAMPLING:
            return False
        last = self.values[width - 1 :][:rank]
        first = self.values[: len(last)]
        return bool((first - last <= _CLUSTER * first).any())

    def triplets(self) -> Triplets:
        """The best product with right vectors in the subspace."""
        mix = self.vectors[:, : self.problem.rank]
        s, u = normalized_rows(self.space.combine_images(mix))
        return u.t(), s, self.space.combine(mix)

    def half_step(self) -> Triplets:
        """The best product with the left vectors of :meth:`triplets`: what ``u.t() @ a`` is, the fresh rows know."""
        if float(self.squares[-1]) <= 1e-6 * float(self.squares[0]):
            return self.triplets()
        mix, s = self.vectors[:, : self.problem.rank], self.squares.sqrt()
        _, u = normalized_rows(self.space.combine_images(mix))
        rest = self.coupling / s
        values, turn = torch.linalg.eigh(self.squares.diag() + rest.t() @ rest)
        s_new, turn = values.flip(0).sqrt(), turn.flip(1)
        right = torch.cat([mix * s, rest]) @ turn / s_new
        return u.t() @ turn.float(), s_new.float(), self.space.combine(right)


def normalized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Norms and directions of rows that are orthogonal up to rounding and descend in norm; orthonormal in any case."""
    norms = torch.linalg.vector_norm(x, dim=-1)
    s = norms.cummin(-1).values  # rounding may disorder the smallest
    if bool((s[..., -1] <= _NEARLY_ZERO * s[..., 0]).any()):
        return s, orthonormal_rows(x)
    return s, x / norms[..., None]
