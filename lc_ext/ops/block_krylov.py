"""Block Krylov subspaces for the largest singular triplets of a matrix: the iterative part of ``truncated_svd``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .skinny_matmul import product

__all__ = ["BlockKrylov", "random_rows"]

class BlockKrylov:
    """Golub-Kahan bidiagonalization by blocks, with full orthogonalization and an explicit core.

    Basis vectors are rows. After each step ``u @ a == core @ v`` up to rounding, ``u`` and ``v`` orthonormal, so the
    singular values of ``core`` are the best that the rows of ``u`` can give (Rayleigh and Ritz), and grow from step to
    step. The products are in float32, the small problems in float64: the error of the approximation is of second order
    in the rounding errors of the bases.

    Parameters
    ----------
    a : float32 matrix (m, n), of a scale whose squares are far from overflow.
    start : rows (b, n) to start from, b <= min(m, n); they need not be orthonormal, nor independent.
    """

    def __init__(self, a: Tensor, start: Tensor) -> None:
        self.a = a
        self.energy = float(torch.linalg.vector_norm(a, dim=1).double().square().sum())
        capacity = min(4 * start.shape[0], *a.shape)
        self.u, self.v = a.new_empty(capacity, a.shape[0]), a.new_empty(capacity, a.shape[1])
        self.core = torch.zeros(capacity, capacity, dtype=torch.float64, device=a.device)
        self.rows = self.columns = 0  # of core in use: sizes of the two bases
        self.edge = math.inf  # smallest diagonal of a residual block so far
        self._fresh = 0  # rows of v not yet multiplied by a
        self.extend(start)

    def extend(self, rows: Tensor) -> None:
        """Add directions to the right basis; the next step multiplies them too."""
        _, q, _ = _orthonormal(rows.t(), self.v[: self.columns])
        self._append_right(q.t())

    def step(self) -> None:
        """Multiply the newest directions by ``a``, and the images by its transpose."""
        new = slice(self.columns - self._fresh, self.columns)
        image = slice(self.rows, self.rows + self._fresh)
        inner, q, r = _orthonormal(product(self.a, self.v[new].t().contiguous(), False), self.u[: self.rows])
        self._reserve(image.stop)
        self.u[image] = q.t()
        self.core[: self.rows, new] = inner
        self.core[image, new] = r
        self.rows = image.stop
        inner, q, r = _orthonormal(product(self.a, q.contiguous(), True), self.v[: self.columns])
        self.core[image, : self.columns] = inner.t()
        self.edge = min(self.edge, float(r.diagonal().abs().min()))
        self._fresh = 0
        self._append_right(q.t())
        self.core[image, self.columns - self._fresh : self.columns] = r.t()

    def gram(self) -> Tensor:
        """Gram matrix of the rows of the core. That of an earlier step is a leading block of it."""
        core = self.core[: self.rows, : self.columns]
        return core @ core.t()

    def triplets(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best approximation of that rank in the subspace: u (m, rank), s (rank,), vh (rank, n)."""
        core = self.core[: self.rows, : self.columns].float()
        left, s, right = torch.linalg.svd(core, full_matrices=False)
        u = self.u[: self.rows].t() @ left[:, :rank]
        return u, s[:rank], right[:rank] @ self.v[: self.columns]

    def _append_right(self, q: Tensor) -> None:
        self._reserve(self.columns + q.shape[0])
        self.v[self.columns : self.columns + q.shape[0]] = q
        self.columns += q.shape[0]
        self._fresh += q.shape[0]

    def _reserve(self, size: int) -> None:
        capacity = self.core.shape[0]
        if size <= capacity:
            return
        grown = min(max(size, 2 * capacity), *self.a.shape)
        u, v, core = self.u, self.v, self.core
        self.u, self.v = u.new_empty(grown, u.shape[1]), v.new_empty(grown, v.shape[1])
        self.core = core.new_zeros(grown, grown)
        self.u[: self.rows] = u[: self.rows]
        self.v[: self.columns] = v[: self.columns]
        self.core[:capacity, :capacity] = core


def random_rows(rows: int, like: Tensor) -> Tensor:
    """Normal rows as long as those of ``like``, always the same, so that results are reproducible."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (rows, like.shape[1])
    return torch.randn(shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def _orthonormal(x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``inner, q, r`` with ``x == basis.t() @ inner + q @ r``, the columns of q orthonormal and orthogonal to the basis.

    ``x`` is (n, b), the basis has orthonormal rows.
    """
    inner = basis @ x
    x = torch.addmm(x, basis.t(), inner, alpha=-1)
    q, r = torch.linalg.qr(x)
    # What is small beside what was subtracted is rounding noise in part, and so is a dependent direction.
    kept = r.diagonal().square()
    if bool((kept <= 4e-4 * (inner.square().sum(0) + r.square().sum(0))).any()):
        again = basis @ q
        inner = torch.addmm(inner, again, r)
        q, correction = torch.linalg.qr(torch.addmm(q, basis.t(), again, alpha=-1))
        r = correction @ r
    return inner, q, r
