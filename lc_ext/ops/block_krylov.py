"""Block Krylov subspaces for the largest singular triplets of a matrix: the iterative part of ``truncated_svd``."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native

__all__ = ["BlockKrylov", "orthonormal_rows", "random_rows"]

_LOST = 1e-6  # of the norm of a product: what is left is rounding noise


class BlockKrylov:
    """Block Lanczos for ``a.t() @ a``, with full orthogonalization and an explicit core.

    A basis ``v`` of orthonormal rows. Those already multiplied come first, and ``images`` are ``v @ a.t()``; the last
    ``fresh`` ones are new directions. The left basis needs no orthogonalization (Simon and Zha 2000), so one pass over
    the matrix gives ``x = v @ a.t()`` and ``x @ a`` together. The eigenvalues of ``core`` are the best squares of
    singular values that the basis can give (Rayleigh and Ritz), and they grow from step to step.

    Products are in float32, the small problems in float64: the error of the approximation is of second order in the
    rounding errors of the basis.

    Parameters
    ----------
    a : float32 matrix (m, n), contiguous, n >= 16, of a scale whose fourth powers are far from overflow.
    start : rows (b, n) to start from, b <= min(m, n); they need not be orthonormal, nor independent.
    capacity : rows to make room for; more are made as needed.
    """

    def __init__(self, a: Tensor, start: Tensor, capacity: int = 0) -> None:
        self.a = a
        self.size = 0  # rows that were multiplied
        self.fresh = 0
        self._native = _native.has_kernel("krylov_steps", a)
        self._v, self._images, self._h = a.new_empty(0, a.shape[1]), a.new_empty(0, a.shape[0]), a.new_empty(0, 0)
        self._reserve(max(capacity, 2 * start.shape[0]))
        self.extend(start)

    def extend(self, rows: Tensor) -> None:
        """Add directions, to be multiplied with the fresh ones."""
        at, count = self.size + self.fresh, rows.shape[0]
        self._reserve(at + count)
        self._v[at : at + count] = rows
        if self._native:
            _native.call("krylov_extend", self._v, self._v.shape[0], self._v.shape[1], at, count)
        else:
            _orthonormalize(self._v, at, count)
        self.fresh += count

    def steps(self, count: int = 1) -> None:
        """Multiply the fresh rows, which gives as many new ones; so many times."""
        self._reserve(self.size + (count + 1) * self.fresh)
        if self._native:
            capacity, size = self._v.shape[0], self.size
            _native.call(
                "krylov_steps", self.a, *self.a.shape, self._v, self._images, self._h, capacity, size,
                size + self.fresh, count,
            )  # fmt: skip
            self.size += count * self.fresh
            return
        for _ in range(count):
            begin, end = self.size, self.size + self.fresh
            self._images[begin:end] = self._v[begin:end] @ self.a.t()
            self._v[end : end + self.fresh] = self._images[begin:end] @ self.a
            self._h[: end + self.fresh, begin:end] = _orthonormalize(self._v, end, self.fresh)
            self.size = end

    def core(self) -> Tensor:
        """``v @ a.t() @ a @ v.t()`` for the rows that were multiplied, in float64; only its upper triangle."""
        return self._h[: self.size, : self.size]

    def coupling(self) -> Tensor:
        """The coefficients (fresh, size) of ``a.t() @ a @ v.t()`` on the fresh rows: what the core leaves out."""
        return self._h[self.size : self.size + self.fresh, : self.size]

    def keep(self, directions: Tensor) -> None:
        """Replace the fresh rows by combinations of them: orthonormal columns (fresh, count)."""
        fresh = slice(self.size, self.size + self.fresh)
        self.fresh = directions.shape[1]
        kept = slice(self.size, self.size + self.fresh)
        self._v[kept] = directions.t().to(self._v.dtype) @ self._v[fresh]
        self._h[kept, : self.size] = directions.t() @ self._h[fresh, : self.size]

    def combine(self, coefficients: Tensor) -> Tensor:
        """Combinations (count, n) of the first rows of the basis: coefficients (rows, count)."""
        return coefficients.t().to(self._v.dtype) @ self._v[: len(coefficients)]

    def combine_images(self, coefficients: Tensor) -> Tensor:
        """The same of the images: (count, m)."""
        return coefficients.t().to(self._v.dtype) @ self._images[: len(coefficients)]

    def _reserve(self, rows: int) -> None:
        capacity = self._v.shape[0]
        if rows <= capacity:
            return
        grown = min(max(rows, capacity + capacity // 2), self.a.shape[1])
        used = self.size + self.fresh
        v, images, h = self._v, self._images, self._h
        self._v, self._images = v.new_empty(grown, v.shape[1]), v.new_empty(grown, self.a.shape[0])
        self._h = v.new_zeros(grown, grown, dtype=torch.float64)
        self._v[:used], self._images[: self.size], self._h[:used, : self.size] = (
            v[:used],
            images[: self.size],
            h[:used, : self.size],
        )


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


def _orthonormalize(v: Tensor, at: int, count: int) -> Tensor:
    """Makes rows of v orthonormal, also to those before; returns the coefficients of what they were on all of them."""
    basis, x = v[:at], v[at : at + count]
    norms = torch.linalg.vector_norm(x, dim=1)
    inner = x.new_zeros(at, count)
    for _ in range(2):
        part = basis @ x.t()
        inner += part
        x -= part.t() @ basis
    q, r = torch.linalg.qr(x.t())
    lost = r.diagonal().abs() <= _LOST * norms
    if bool(lost.any()):  # they lay in the basis: any others will do
        q = torch.where(lost, random_rows(count, v.shape[1], v, seed=1 + at).t(), q)
        r = r * ~lost[:, None]
    for _ in range(2):  # what little was left is made orthogonal once more
        again, correction = torch.linalg.qr(q - basis.t() @ (basis @ q))
        r = correction @ r
        q = again
    v[at : at + count] = q.t()
    return torch.cat([inner, r])
