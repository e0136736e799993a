"""Truncated singular value decomposition: the low-rank C step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check

__all__ = ["SVDResult", "truncated_svd", "truncated_svd_reference"]

_OVERSAMPLING = 8


class SVDResult(NamedTuple):
    """Result of :func:`truncated_svd`: ``w`` is about ``u @ s.diag() @ vh``."""

    u: Tensor
    s: Tensor
    vh: Tensor


def truncated_svd(
    w: Tensor, rank: int, *, warm: Tensor | None = None, tol: float = 1e-7, max_sweeps: int = 12, exact: bool = True
) -> SVDResult:
    """The ``rank`` largest singular triplets of a matrix: its best approximation of that rank (Eckart and Young 1936).

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n), finite.
    rank : 1 to min(m, n).
    warm : approximate right singular vectors, as rows, shape (p, n): the ``vh`` of a similar matrix. A few block steps
        on that subspace replace the decomposition, if they converge.
    tol : the block steps end when the captured part of ||w||^2 grows by less than this part of the rest.
    max_sweeps : bound on the block steps.
    exact : if they have not converged by then, start cold. False: take what they reached, which is never worse than
        the best product with the right factor ``warm``.

    Returns
    -------
    u : (m, rank), s : (rank,) descending, vh : (rank, n), float32.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, or a rank out of range.

    Notes
    -----
    Cold: eigenvectors of the smaller Gram matrix, in float64 so that squaring costs no accuracy; O(mn min(m, n)).
    Warm: O(mn (rank + 8)) for each block step. On matmul and small dense solvers, so it runs on every device.
    """
    a = _check.float32(w, "w")
    if a.dim() != 2:
        raise ValueError(f"w must be a matrix, got shape {tuple(a.shape)}")
    rank = _check.integer(rank, "rank", 1, min(a.shape))
    _check.finite(a, "w")
    if warm is not None:
        basis = _check.float32(warm, "warm", a)
        if basis.dim() != 2 or basis.shape[1] != a.shape[1]:
            raise ValueError(f"warm must have shape (p, {a.shape[1]}), got {tuple(basis.shape)}")
        result, converged = _block_steps(a, rank, basis, tol, max_sweeps)
        if converged or not exact:
            return result
    if a.shape[0] > a.shape[1]:
        v, s, uh = truncated_svd(a.t(), rank)
        return SVDResult(uh.t().contiguous(), s, v.t().contiguous())
    wide = a.double()
    _, vectors = torch.linalg.eigh(wide @ wide.t())
    u = vectors.flip(1)[:, :rank]
    projected = u.t() @ wide
    s = projected.norm(dim=1)
    vh = projected / s.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return SVDResult(u.float(), s.float(), vh.float())


def truncated_svd_reference(w: Tensor, rank: int) -> SVDResult:
    """The definition: the full decomposition in float64, truncated."""
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return SVDResult(u[:, :rank].float(), s[:rank].float(), vh[:rank].float())


def _block_steps(a: Tensor, rank: int, basis: Tensor, tol: float, max_sweeps: int) -> tuple[SVDResult, bool]:
    """Subspace iteration from ``basis``, and whether it has converged."""
    size = min(rank + _OVERSAMPLING, *a.shape)
    if basis.shape[0] < size:  # a fixed random complement, so that the result is reproducible
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (size - basis.shape[0], a.shape[1])
        extra = torch.randn(shape, generator=generator, dtype=a.dtype, device="cpu").to(a.device)
        basis = torch.cat([basis, extra / a.shape[1] ** 0.5])
    energy, captured, converged = float(torch.linalg.vector_norm(a, dtype=torch.float64)) ** 2, -1.0, False
    v = basis.t()
    for _ in range(max(1, max_sweeps)):
        u, _ = torch.linalg.qr(a @ v)
        v, r = torch.linalg.qr(a.t() @ u)
        before = captured
        captured = float(torch.linalg.svdvals(r)[:rank].double().square().sum())
        converged = captured - before <= tol * max(energy - captured, tol * energy)
        if converged:
            break
    left, s, right = torch.linalg.svd(r.t())
    return SVDResult(u @ left[:, :rank], s[:rank], right[:rank] @ v.t()), converged
