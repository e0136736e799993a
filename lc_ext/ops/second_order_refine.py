"""Second-order refinement of codes: codes, exact entries and codebook in turn, each the best given the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from ._moment import damped_moment
from .second_order import codebooks_of, exact_of
from .topk_prune import topk_prune
from .weighted_low_rank import weighted_error

__all__ = ["SecondOrderRefined", "second_order_exact", "second_order_refine"]

_RIDGE = 1e-6  # of the largest diagonal entry, so that a codeword without weights stays
_FITTED = 32  # codewords whose codebook is fitted anew: their cost is that many products with the moment


class SecondOrderRefined(NamedTuple):
    """Result of :func:`second_order_refine`."""

    values: Tensor
    codes: Tensor
    codebook: Tensor
    error: float


@torch.no_grad()
def second_order_refine(
    w: Tensor,
    moment: Tensor,
    codebook: Tensor,
    codes: Tensor,
    *,
    values: Tensor | None = None,
    exact: Tensor | None = None,
    damping: float = 0.01,
    rounds: int = 2,
    fit_codebook: bool = True,
) -> SecondOrderRefined:
    """Lower the error of codes that a sweep has found: see :func:`second_order_quantize`.

    A round goes twice over the columns, each entry moving to the codeword that is best while all others stand, and then
    solves for the codewords that are best for these codes. The error never rises.

    Parameters
    ----------
    w, moment, exact, damping : as for :func:`second_order_quantize`.
    codebook : ascending codewords, (k,) for all rows or (m, k) for each its own.
    codes : uint8 tensor of shape (m, n), below k.
    values : float32 tensor of shape (m, n), read where ``exact`` is true. Default: ``w``.
    rounds : at least 1; most of what there is to gain comes with 2.
    fit_codebook : False: the codewords stay. They also stay where there are more than 32.

    Returns
    -------
    values : float32 tensor of shape (m, n).
    codes : uint8 tensor of shape (m, n).
    codebook : ascending, of the shape of ``codebook``.
    error : as for :func:`second_order_quantize`.

    Raises
    ------
    TypeError, ValueError : as :func:`second_order_quantize`, and for codes of another dtype or shape, or not below k.

    Notes
    -----
    O(rounds m n^2 k). Coordinate descent on the codes: Behdin et al., "QuantEase" (2023). Codewords: the normal
    equations of each row.

    Examples
    --------
    >>> inputs = torch.randn(200, 8)
    >>> w, codebook = torch.randn(4, 8), torch.tensor([-1.0, 0.0, 1.0])
    >>> moment = inputs.T @ inputs / 200
    >>> first = ops.second_order_quantize(w, moment, codebook)
    >>> ops.second_order_refine(w, moment, codebook, first.codes).error <= first.error * 1.0001
    True
    """
    a, h64 = damped_moment(w, moment, damping)
    books = codebooks_of(codebook, a).clone()
    held = exact_of(exact, a)
    rounds = _check.integer(rounds, "rounds", 1)
    if codes.dtype != torch.uint8 or codes.shape != a.shape:
        raise ValueError(f"codes must be uint8 of shape {tuple(a.shape)}, got {codes.dtype} of {tuple(codes.shape)}")
    if int(codes.max()) >= books.shape[1]:
        raise ValueError(f"codes must be below the {books.shape[1]} codewords, got {int(codes.max())}")
    kept = a if values is None else _check.float32(values, "values", a)
    if kept.shape != a.shape:
        raise ValueError(f"values must have shape {tuple(a.shape)}, got {tuple(kept.shape)}")
    h, now = h64.float(), codes.long()
    q = torch.where(held, kept, books.gather(1, now))
    for left in range(rounds, 0, -1):
        _descend(a, h, books, held, q, now)
        if fit_codebook and books.shape[1] <= _FITTED and left > 1:
            books, now = _fitted(a, h, books, held, q, now, codebook.dim() == 1)
            q = torch.where(held, q, books.gather(1, now))
    shared = books[0] if codebook.dim() == 1 else books
    return SecondOrderRefined(q, now.to(torch.uint8), shared.clone(), weighted_error(a - q, moment=h64))


@torch.no_grad()
def second_order_exact(w: Tensor, moment: Tensor, codebook: Tensor, count: int, *, damping: float = 0.01) -> Tensor:
    """The entries that are best stored as they are, beside codes: those whose rounding costs most.

    Parameters
    ----------
    w, moment, codebook, damping : as for :func:`second_order_quantize`.
    count : how many, 0 to m n.

    Returns
    -------
    exact : bool tensor of shape (m, n): the largest (w - q)^2 / [moment^-1]_jj with q the nearest codeword, what the
        rounding of one entry adds to the error once all others have made up for it (optimal brain surgeon). Ties go to
        the lower index.

    Raises
    ------
    TypeError, ValueError : as :func:`second_order_quantize`, and for a count out of range.

    Examples
    --------
    >>> w, moment = torch.tensor([[0.9, 5.0], [-1.2, 1.0]]), torch.eye(2)
    >>> ops.second_order_exact(w, moment, torch.tensor([-1.0, 1.0]), 1)
    tensor([[False,  True],
            [False, False]])
    """
    a, h = damped_moment(w, moment, damping)
    books = codebooks_of(codebook, a)
    count = _check.integer(count, "count", 0, a.numel())
    if count == 0:
        return torch.zeros_like(a, dtype=torch.bool)
    factor, failed = torch.linalg.cholesky_ex(h)
    if bool(failed):
        raise ValueError("moment must be positive semidefinite: it has no Cholesky factor, even damped")
    inverse = torch.cholesky_inverse(factor).diagonal()
    off = a - books.gather(1, _nearest(books, a))
    mask: Tensor = topk_prune(off / inverse.sqrt().float(), count).mask
    return mask


def _nearest(books: Tensor, x: Tensor) -> Tensor:
    return torch.searchsorted(((books[:, 1:] + books[:, :-1]) / 2).contiguous(), x.contiguous())


def _descend(a: Tensor, h: Tensor, books: Tensor, held: Tensor, q: Tensor, codes: Tensor) -> None:
    """Two passes over the columns of ``q`` and ``codes``, in place."""
    slope, diagonal = ((q - a) @ h).t().contiguous(), h.diagonal().tolist()
    columns, free = q.t().contiguous(), ~held.t()
    for j in [*range(len(columns))] * 2:
        best = columns[j] - slope[j] / diagonal[j]
        nearest = _nearest(books, best[:, None])[:, 0]
        new = torch.where(free[j], books.gather(1, nearest[:, None])[:, 0], best)
        slope.addr_(h[j], new - columns[j])
        columns[j], codes[:, j] = new, nearest
    q.copy_(columns.t())


def _fitted(
    a: Tensor, h: Tensor, books: Tensor, held: Tensor, q: Tensor, codes: Tensor, shared: bool
) -> tuple[Tensor, Tensor]:
    """The best codewords for these codes, ascending, and the codes in their order."""
    rows, k = books.shape
    target = torch.where(held, a - q, a)
    ones = [((codes == i) & ~held).float() for i in range(k)]
    gram = torch.zeros(rows, k, k, dtype=torch.float64, device=a.device)
    right = torch.zeros(rows, k, dtype=torch.float64, device=a.device)
    for i in range(k):
        through = ones[i] @ h
        for j in range(i, k):
            gram[:, i, j] = gram[:, j, i] = (through * ones[j]).sum(1)
        right[:, i] = (through * target).sum(1)
    if shared:
        gram, right = gram.sum(0, keepdim=True), right.sum(0, keepdim=True)
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).amax(1, keepdim=True).clamp_min(1e-300)
    right += ridge * books[: len(right)].double()
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    found = torch.linalg.solve(gram, right).float().expand(rows, k)
    ascending, order = found.sort(dim=1, stable=True)
    return ascending.contiguous(), order.argsort(dim=1).gather(1, codes)
