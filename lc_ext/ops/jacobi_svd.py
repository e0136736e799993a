"""Singular value decompositions of many small matrices, a matrix in each lane of the vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from . import _check
from .block_krylov import orthonormal_rows

__all__ = ["jacobi_svd", "jacobi_svd_reference"]

_SIDE = 48  # up to which it is quicker than one matrix after the other (measured: sides 3 to 100)
_POOR = 1e-3  # of the largest value, below which the rows of the longer side are too short to divide by


def jacobi_svd(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular triplets of each of many small matrices.

    Parameters
    ----------
    a : float32, float16 or bfloat16 tensor of shape (count, m, n), finite.
    rank : 1 to min(m, n).

    Returns
    -------
    u : (count, m, rank), s : (count, rank) descending, vh : (count, rank, n), float32; the vectors are orthonormal.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, a rank out of range.

    Notes
    -----
    One-sided Jacobi rotations (Hestenes 1958) of the rows of the shorter side until their cosines are below 1e-6, four
    to nine sweeps of O(mn min(m, n)). Quicker than a decomposition of each where the matrices are many, at least as
    many as the vectors have lanes, and their shorter side is at most 48. The same result for any number of threads and
    any instruction set.

    Examples
    --------
    >>> u, s, vh = ops.jacobi_svd(torch.randn(100, 9, 16), 2)
    >>> u.shape, s.shape, vh.shape
    (torch.Size([100, 9, 2]), torch.Size([100, 2]), torch.Size([100, 2, 16]))
    """
    w = _check.float32(a, "a")
    if w.dim() != 3 or not w.numel():
        raise ValueError(f"a must have shape (count, m, n), none of them 0, got {tuple(w.shape)}")
    rank = _check.integer(rank, "rank", 1, min(w.shape[1:]))
    _check.finite(w, "a")
    if not _native.has_kernel("jacobi_svd", w):
        return jacobi_svd_reference(w, rank)
    peak = torch.linalg.vector_norm(w, torch.inf, dim=(1, 2), keepdim=True)
    ordinary = bool(((peak > 1e-6) & (peak < 1e6)).all())
    exponent = None if ordinary else torch.frexp(peak)[1]
    if exponent is not None:
        w = torch.ldexp(w, -exponent)
    u, s, vh = jacobi_triplets(w, rank)
    return u, s if exponent is None else torch.ldexp(s, exponent[:, 0]), vh


def jacobi_svd_reference(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in float64, and the path of other devices."""
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return u[:, :, :rank].float(), s[:, :rank].float(), vh[:, :rank].float()


def jacobi_pays(a: Tensor) -> bool:
    """Whether there are so many matrices, and so small, that this is quicker than one after the other (measured)."""
    count, side, length = a.shape[0], min(a.shape[1:]), max(a.shape[1:])
    return side <= _SIDE and length <= 4096 and count >= 2 + side // 4 and _native.has_kernel("jacobi_svd", a)


def jacobi_triplets(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same on contiguous float32 of a scale whose squares neither overflow nor vanish, unchecked."""
    count, m, n = a.shape
    left, s, right = a.new_empty(count, rank, m), a.new_empty(count, rank), a.new_empty(count, rank, n)
    _native.call("jacobi_svd", a, count, m, n, rank, left, s, right)
    poor = (s[:, -1] <= _POOR * s[:, 0]).nonzero()[:, 0]
    if len(poor):
        longer = left if m > n else right
        longer[poor] = orthonormal_rows(longer[poor])
    return left.mT.contiguous(), s, right
