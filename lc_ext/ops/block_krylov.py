"""Block Krylov subspaces for the largest singular triplets of a matrix: the iterative part of ``truncated_svd``."""

from __future__ import annotations

import torch
from torch import Tensor

from .skinny_matmul import product, subtract_product

__all__ = ["BlockKrylov", "orthonormal_rows", "random_rows"]

_ORTHOGONAL = 1e-5  # products of basis rows: their squares enter the error
_CHOLESKY = 64  # columns
_ILL = 2.0  # mean square of the rows of the inverse factor: 1 for orthogonal columns


class BlockKrylov:
    """Golub-Kahan bidiagonalization by blocks, with full orthogonalization and an explicit core.

    Two bases, of orthonormal rows: ``v`` of length n and ``u`` of length m. A half step multiplies the newest rows of
    one, in turn, and extends the other, so that afterwards ``v @ a.t() == core @ u`` or ``u @ a == core.t() @ v`` up
    to rounding, for the one just multiplied. The singular values of ``core`` are then the best that its span can give
    (Rayleigh and Ritz), and they grow from half step to half step.

    Products are in float32, the small problems in float64: the error of the approximation is of second order in the
    rounding errors of the bases.

    Parameters
    ----------
    a : float32 matrix (m, n), contiguous, of a scale whose squares are far from overflow.
    start : rows (b, n) to start from, b <= min(m, n); they need not be orthonormal, nor independent.
    """

    def __init__(self, a: Tensor, start: Tensor) -> None:
        self.a = a
        capacity = min(4 * start.shape[0], *a.shape)
        self._bases = [a.new_empty(capacity, a.shape[1]), a.new_empty(capacity, a.shape[0])]  # v, u
        self._core = a.new_zeros(capacity, capacity)
        self._sizes = [0, 0]
        self._turn = 0  # the basis that is multiplied next
        self._fresh = 0  # its rows not yet multiplied
        self.edge = torch.inf  # smallest diagonal of a residual block so far
        self.extend(start)

    @property
    def size(self) -> int:
        """Rows of the basis that was multiplied last: the rank that the subspace can give."""
        return self._sizes[1 - self._turn]

    def extend(self, rows: Tensor) -> None:
        """Add directions to the basis that is multiplied next."""
        _, q, _ = _orthonormal(rows.t().contiguous(), self._bases[self._turn][: self._sizes[self._turn]])
        self._append(self._turn, q)
        self._fresh += q.shape[1]

    def half_step(self) -> None:
        """Multiply the newest rows of one basis, which extends the other."""
        this, other = self._turn, 1 - self._turn
        new = slice(self._sizes[this] - self._fresh, self._sizes[this])
        known = slice(0, self._sizes[other])
        x = product(self.a, self._bases[this][new].t().contiguous(), transpose=this == 1)
        inner, q, r = _orthonormal(x, self._bases[other][known])
        self._append(other, q)
        self._fresh = q.shape[1]
        core = self._core if this == 1 else self._core.t()  # other, this
        core[known, new] = inner
        core[known.stop : self._sizes[other], new] = r
        self.edge = min(self.edge, float(r.diagonal().abs().min()))
        self._turn = other

    def core(self) -> Tensor:
        """The core in float64, its rows belonging to the basis that was multiplied last."""
        v, u = self._sizes
        core = self._core[:v, :u].double()
        return core if self._turn == 1 else core.t()

    @property
    def last_block(self) -> int:
        """How many rows the last half step added: they are the last columns of the core."""
        return self._fresh

    def triplets(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """u (m, r) and vh (r, n) from coefficients on the basis multiplied last (left) and on the other (right)."""
        last, other = 1 - self._turn, self._turn
        a = left.float().t() @ self._bases[last][: self._sizes[last]]
        b = right.float().t() @ self._bases[other][: self._sizes[other]]
        return (a.t(), b) if last == 1 else (b.t(), a)

    def _append(self, basis: int, q: Tensor) -> None:
        used, added = self._sizes[basis], q.shape[1]
        if used + added > self._core.shape[0]:
            self._grow(used + added)
        self._bases[basis][used : used + added] = q.t()
        self._sizes[basis] = used + added

    def _grow(self, size: int) -> None:
        capacity = self._core.shape[0]
        grown = min(max(size, 2 * capacity), *self.a.shape)
        for i, (old, used) in enumerate(zip(self._bases, self._sizes, strict=True)):
            self._bases[i] = old.new_empty(grown, old.shape[1])
            self._bases[i][:used] = old[:used]
        core = self._core
        self._core = core.new_zeros(grown, grown)
        self._core[:capacity, :capacity] = core


def random_rows(rows: int, columns: int, like: Tensor, seed: int = 0) -> Tensor:
    """Normal rows, always the same, so that results are reproducible."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def orthonormal_rows(x: Tensor) -> Tensor:
    """Orthonormal rows with the directions of rows that are orthogonal up to rounding, also where they vanish."""
    q, r = torch.linalg.qr(x.mT)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(x.dtype)
    rows: Tensor = q.mT * signs[..., None]
    return rows


def _orthonormal(x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``inner, q, r`` with ``x == basis.t() @ inner + q @ r``.

    ``x`` is (n, b) and may be overwritten; the basis has orthonormal rows. The columns of q are orthonormal, and
    orthogonal to the basis, whatever x is.
    """
    inner = product(basis, x, transpose=False)
    x = subtract_product(x, basis, inner)
    q, r = _qr(x)
    # What is small beside what was subtracted is rounding noise in part, and so is a dependent direction. Errors of the
    # basis itself grow from block to block; a sample of its rows shows when.
    kept = r.diagonal().square()
    poor = bool((kept <= 2.5e-5 * (inner.square().sum(0) + r.square().sum(0))).any())
    if poor or (len(basis) and float((basis[:: max(1, len(basis) // 32)] @ q).abs().max()) > _ORTHOGONAL):
        q, again, correction = _project(q, basis)
        lost = correction.diagonal().abs() < 0.1
        if bool(lost.any()):  # they lay in the basis: any others will do
            random = random_rows(q.shape[1], q.shape[0], q, seed=1 + len(basis)).t()
            for _ in range(2):
                q, _, _ = _project(torch.where(lost, random, q), basis)
                lost = torch.zeros_like(lost)
        inner = torch.addmm(inner, again, r)
        r = q.t() @ x
    return inner, q, r


def _project(x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of x less their part in the basis, orthonormalized; that part; the triangular factor."""
    x = x.contiguous()
    inner = product(basis, x, transpose=False)
    q, r = _qr(subtract_product(x, basis, inner))
    return q, inner, r


def _qr(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns and the triangular factor. Where columns are many, through the Gram matrix, which takes half
    the time of Householder's way, unless they are too nearly dependent for that."""
    if x.shape[1] >= _CHOLESKY:
        gram = (x.t() @ x).double()
        norms = gram.diagonal().sqrt().clamp_min(1e-300)
        factor, failed = torch.linalg.cholesky_ex(gram / (norms * norms[:, None]))
        identity = torch.eye(len(gram), dtype=gram.dtype, device=x.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        if not bool(failed) and float(inverse.square().sum()) <= _ILL * len(gram):
            return ((inverse / norms).float() @ x.t()).t(), (factor * norms[:, None]).t().float()
    q, r = torch.linalg.qr(x)
    return q, r
