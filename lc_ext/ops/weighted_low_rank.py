"""Low rank where errors do not all weigh the same: weights of rows and columns, or the second moment of the input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from ._moment import checked_moment
from .truncated_svd import truncated_svd

__all__ = ["LowRankFactors", "weighted_error", "weighted_low_rank"]

_CONDITION = 1e-5  # of a Cholesky factor's diagonal: below it the eigenvectors are taken


class LowRankFactors(NamedTuple):
    """Result of :func:`weighted_low_rank`: ``w`` is about ``left @ right``."""

    left: Tensor
    right: Tensor


def weighted_low_rank(
    w: Tensor,
    rank: int,
    *,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
    moment: Tensor | None = None,
    damping: float = 0.0,
    tol: float = 1e-6,
) -> LowRankFactors:
    """The matrix of rank ``rank`` nearest to ``w`` where errors are weighted, exactly.

    It minimizes the sum over i, j of row_weights[i] col_weights[j] (w - left right)[i, j]^2; with ``moment``, the
    second moment E[x x^T] of a layer's input, it minimizes the error of the layer's output, the sum over i of
    row_weights[i] E[((w - left right) x)[i]^2].

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n), finite.
    rank : 1 to min(m, n).
    row_weights : (m,), at least 0, for example the mean squared gradients of the outputs. Default: all 1.
    col_weights : (n,), at least 0, for example the mean squared inputs. Default: all 1.
    moment : (n, n), symmetric positive semidefinite, also singular; not together with ``col_weights``.
    damping : this part of the mean of the diagonal of ``moment`` (of ``col_weights``) is added to the diagonal, so that
        directions that the sample of inputs missed are not free.
    tol : as in :func:`truncated_svd`.

    Returns
    -------
    left : (m, rank).
    right : (rank, n), both float32.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, negative weights, a moment that is not symmetric or
        has a negative eigenvalue.

    Notes
    -----
    With moment = S S^T the truncated SVD of diag(row_weights)^1/2 w S gives right singular vectors v, and
    left = w S v^T, right = v S^-1 (pseudoinverse). S is the Cholesky factor in float64, or eigenvectors times the
    roots of eigenvalues where that one is nearly singular; O(n^3). Rows of weight 0 are still projected, not zeroed.

    Examples
    --------
    >>> left, right = ops.weighted_low_rank(torch.randn(30, 20), 4, col_weights=torch.rand(20))
    >>> left.shape, right.shape
    (torch.Size([30, 4]), torch.Size([4, 20]))
    """
    a = _check.float32(w, "w")
    if a.dim() != 2:
        raise ValueError(f"w must be a matrix, got shape {tuple(a.shape)}")
    m, n = a.shape
    rank = _check.integer(rank, "rank", 1, min(m, n))
    _check.finite(a, "w")
    rows = _weights(row_weights, "row_weights", m, a)
    columns = _weights(col_weights, "col_weights", n, a)
    if not isinstance(damping, (int, float)) or not 0 <= damping < float("inf"):
        raise ValueError(f"damping must be a finite number of at least 0, got {damping!r}")
    wide = a.double()
    if moment is None:
        columns = columns + damping * columns.mean()
        root = columns.sqrt()
        inverse = torch.where(root > 0, 1 / root, 0.0)
        projected = wide * root
        right = _right_vectors(projected, rows, rank, tol)
        return _factors(projected @ right.t(), right * inverse, rank)
    if col_weights is not None:
        raise ValueError("moment and col_weights exclude each other, got both")
    factor, triangular = _square_root(checked_moment(moment, n, a), damping)
    projected = wide @ factor
    right = _right_vectors(projected, rows, rank, tol)
    left = projected @ right.t()
    if triangular:
        return _factors(left, torch.linalg.solve_triangular(factor, right, upper=False, left=False), rank)
    norms = factor.square().sum(0)  # columns are orthogonal, so this is the pseudoinverse
    return _factors(left, (right / norms) @ factor.t(), rank)


def weighted_error(
    error: Tensor,
    *,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
    moment: Tensor | None = None,
) -> float:
    """What :func:`weighted_low_rank` minimizes, for an error matrix (m, n), in float64.

    Examples
    --------
    >>> ops.weighted_error(torch.ones(2, 3), row_weights=torch.tensor([1.0, 2.0]))
    9.000000000000002
    """
    e = error.double()
    if row_weights is not None:
        e = row_weights.double().sqrt()[:, None] * e
    if col_weights is not None:
        e = e * col_weights.double().sqrt()
    return float((e @ moment.double() * e).sum() if moment is not None else e.square().sum())


def _weights(value: Tensor | None, name: str, size: int, like: Tensor) -> Tensor:
    if value is None:
        return torch.ones(size, dtype=torch.float64, device=like.device)
    weights = _check.float32(value, name, like)
    if weights.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(weights.shape)}")
    _check.finite(weights, name)
    if bool((weights < 0).any()):
        raise ValueError(f"{name} must be at least 0, got {float(weights.min())}")
    return weights.double()


def _square_root(moment: Tensor, damping: float) -> tuple[Tensor, bool]:
    """S with moment = S S^T, and whether it is triangular; otherwise its columns are orthogonal and not zero."""
    diagonal = moment.diagonal()
    if damping:
        moment = moment + damping * diagonal.mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    factor, failed = torch.linalg.cholesky_ex(moment)
    pivots = factor.diagonal()
    if not bool(failed) and bool(pivots.min() > _CONDITION * pivots.max()):
        return factor, True
    values, vectors = torch.linalg.eigh(moment)
    top = max(float(values[-1]), 0.0)
    if float(values[0]) < -1e-5 * top or float(values[-1]) < 0:
        raise ValueError(f"moment must be positive semidefinite, got an eigenvalue of {float(values[0]):g}")
    keep = values > 1e-12 * top
    return vectors[:, keep] * values[keep].sqrt(), False


def _right_vectors(projected: Tensor, rows: Tensor, rank: int, tol: float) -> Tensor:
    """Right singular vectors of the matrix with weighted rows, in float64; no more of them than it has columns."""
    rank = min(rank, projected.shape[1])
    if not rank:
        return projected.new_zeros(0, 0)
    return truncated_svd((projected * rows.sqrt()[:, None]).float(), rank, tol=tol).vh.double()


def _factors(left: Tensor, right: Tensor, rank: int) -> LowRankFactors:
    """In float32, with zeros where the moment left fewer directions than the rank."""
    missing = rank - left.shape[1]
    pad = torch.nn.functional.pad
    return LowRankFactors(pad(left, (0, missing)).float(), pad(right, (0, 0, 0, missing)).float())
