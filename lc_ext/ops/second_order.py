"""Second-order C steps: each column that is fixed moves the columns to come, so that the layer's output stands."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from ._moment import damped_moment
from .topk_prune import topk_prune
from .weighted_low_rank import weighted_error

__all__ = ["SecondOrderPruned", "SecondOrderQuantized", "second_order_prune", "second_order_quantize"]


class SecondOrderQuantized(NamedTuple):
    """Result of :func:`second_order_quantize`."""

    values: Tensor
    codes: Tensor
    error: float
    plain_error: float


class SecondOrderPruned(NamedTuple):
    """Result of :func:`second_order_prune`."""

    values: Tensor
    mask: Tensor
    error: float
    plain_error: float


@torch.no_grad()
def second_order_quantize(
    w: Tensor,
    moment: Tensor,
    codebook: Tensor,
    *,
    exact: Tensor | None = None,
    damping: float = 0.01,
    block: int = 64,
) -> SecondOrderQuantized:
    """Round a matrix to given codewords so that the outputs of its layer, not its weights, change little.

    One sweep over the columns, the largest inputs first. A column is rounded, and the columns that are still free take
    up its error as well as they can in the metric of the inputs: GPTQ, for a codebook that need not be uniform.

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n), finite.
    moment : (n, n), the second moment E[x x^T] of the input, symmetric positive semidefinite.
    codebook : ascending codewords, (k,) for all rows or (m, k) for each its own, k from 1 to 256.
    exact : bool tensor of shape (m, n): entries that are stored as they are. They move with the others, and have no
        rounding error to hand on. Default: none.
    damping : this part of the mean of the diagonal of ``moment`` is added to its diagonal.
    block : columns between two updates of all that is to the right; a matter of speed alone.

    Returns
    -------
    values : float32 tensor of shape (m, n).
    codes : uint8 tensor of shape (m, n): nearest codewords, of exact entries too.
    error : sum over the rows of (w - values) moment (w - values)^T, damping included.
    plain_error : the same for rounding to nearest, which is returned where the sweep is no better.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, a codebook that does not ascend, a moment that is
        not symmetric positive semidefinite.

    Notes
    -----
    With moment^-1 = U^T U, U upper triangular, the error e_j = (w_j - q_j) / U_jj of column j moves the columns to its
    right by -e_j U_j: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ" (2023), after Hassibi and Stork's optimal brain
    surgeon. U in float64, the sweep in float32; O(n^3 + m n^2). Sums are those of torch's matrix products.

    Examples
    --------
    >>> inputs = torch.randn(200, 8)
    >>> w, codebook = torch.randn(4, 8), torch.tensor([-1.0, 0.0, 1.0])
    >>> result = ops.second_order_quantize(w, inputs.T @ inputs / 200, codebook)
    """
    a, h = damped_moment(w, moment, damping)
    _check.integer(block, "block", 1)
    books = codebooks_of(codebook, a)
    held = exact_of(exact, a)
    mids = (books[:, 1:] + books[:, :-1]) / 2

    def rounded(x: Tensor) -> tuple[Tensor, Tensor]:  # one column
        codes = (x[:, None] > mids).sum(1)
        return books.gather(1, codes[:, None])[:, 0], codes

    order = h.diagonal().argsort(descending=True, stable=True)
    u = _upper(h[order][:, order])
    columns, free = a[:, order].t().contiguous(), ~held[:, order].t()
    codes = torch.empty(columns.shape, dtype=torch.uint8, device=a.device)
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        errors = torch.zeros_like(columns[start:stop])
        for j in range(start, stop):
            q, codes[j] = rounded(columns[j])
            errors[j - start] = torch.where(free[j], columns[j] - q, 0) / u[j, j]
            columns[j + 1 : stop].addr_(u[j, j + 1 : stop], errors[j - start], alpha=-1)
            columns[j] = torch.where(free[j], q, columns[j])
        columns[stop:].addmm_(u[start:stop, stop:].t(), errors, alpha=-1)
    back = order.argsort()
    values, codes = columns[back].t().contiguous(), codes[back].t().contiguous()
    nearest = torch.searchsorted(mids.contiguous(), a)  # the lower of two equally near
    plain = torch.where(held, a, books.gather(1, nearest))
    error, plain_error = (weighted_error(a - q, moment=h) for q in (values, plain))
    if not error < plain_error:
        return SecondOrderQuantized(plain, nearest.to(torch.uint8), plain_error, plain_error)
    return SecondOrderQuantized(values, codes, error, plain_error)


@torch.no_grad()
def second_order_prune(
    w: Tensor,
    moment: Tensor,
    keep: float | int | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> SecondOrderPruned:
    """Zero entries of a matrix, and let the survivors make up for them in the outputs of the layer.

    One sweep over the columns from left to right. Survivors are chosen block by block, by w^2 / U_jj^2: the rise of the
    error if the entry goes and the columns to its right adapt.

    Parameters
    ----------
    w, moment, damping : as for :func:`second_order_quantize`.
    keep : float in [0, 1], the fraction of survivors; or int, their number. The blocks share it by their size.
    pattern : (n, m) in place of ``keep``: n survivors in each m consecutive entries of a row, of which there must be a
        whole number.
    block : columns from which survivors are chosen together.

    Returns
    -------
    values : float32 tensor of shape of ``w``, zero where pruned.
    mask : bool tensor, the survivors.
    error : as for :func:`second_order_quantize`.
    plain_error : the same for the largest w^2 moment_jj, unmoved, which is returned where the sweep is no better.

    Raises
    ------
    TypeError, ValueError : as :func:`second_order_quantize`; if not exactly one of ``keep`` and ``pattern`` is given.

    Notes
    -----
    Frantar and Alistarh, "SparseGPT" (2023). O(n^3 + m n^2).

    Examples
    --------
    >>> inputs = torch.randn(200, 8)
    >>> result = ops.second_order_prune(torch.randn(4, 8), inputs.T @ inputs / 200, pattern=(2, 4))
    """
    a, h = damped_moment(w, moment, damping)
    _check.integer(block, "block", 1)
    rows, n = a.shape
    if (keep is None) == (pattern is None):
        raise ValueError(f"exactly one of keep and pattern must be given, got {keep!r} and {pattern!r}")
    kept, group = _pattern(pattern, n) if pattern is not None else (0, block)
    total = 0 if keep is None else _count(keep, a.numel())
    u = _upper(h)
    columns, mask = a.t().contiguous(), torch.zeros(n, rows, dtype=torch.bool, device=a.device)
    width = group * max(1, block // group)
    for start in range(0, n, width):
        stop = min(start + width, n)
        errors = torch.zeros_like(columns[start:stop])
        for j in range(start, stop):
            if (j - start) % group == 0:
                end = min(j + group, stop)
                scores = (columns[j:end] / u.diagonal()[j:end, None]).square()
                if pattern is not None:
                    best = scores.argsort(dim=0, descending=True, stable=True)[:kept]
                    mask[j:end].scatter_(0, best, True)
                else:
                    share = total * end // n - total * j // n
                    best = scores.flatten().argsort(descending=True, stable=True)[:share]
                    mask[j:end].view(-1)[best] = True
            errors[j - start] = torch.where(mask[j], 0, columns[j]) / u[j, j]
            columns[j + 1 : stop].addr_(u[j, j + 1 : stop], errors[j - start], alpha=-1)
        columns[stop:].addmm_(u[start:stop, stop:].t(), errors, alpha=-1)
    values, mask = (columns * mask).t().contiguous(), mask.t().contiguous()
    plain_mask = _largest(a, h, total, kept, group if pattern is not None else 0)
    plain = a * plain_mask
    error, plain_error = (weighted_error(a - q, moment=h) for q in (values, plain))
    if not error < plain_error:
        return SecondOrderPruned(plain, plain_mask, plain_error, plain_error)
    return SecondOrderPruned(values, mask, error, plain_error)


def _largest(a: Tensor, h: Tensor, total: int, kept: int, group: int) -> Tensor:
    """The survivors by w^2 h_jj alone."""
    mask = torch.zeros_like(a, dtype=torch.bool)
    weights = h.diagonal().float().expand_as(a).contiguous()
    if group:
        scores = (a.square() * weights).view(len(a), -1, group)
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., :kept]
        mask.view(scores.shape).scatter_(-1, best, True)
    elif total:
        mask.copy_(topk_prune(a, total, weights=weights).mask)
    return mask


def _upper(h: Tensor) -> Tensor:
    """U, upper triangular, with h^-1 = U^T U."""
    factor, failed = torch.linalg.cholesky_ex(h)
    if bool(failed):
        raise ValueError("moment must be positive semidefinite: it has no Cholesky factor, even damped")
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    return upper.float()


def codebooks_of(codebook: Tensor, like: Tensor) -> Tensor:
    """One for each row of ``like``."""
    books = _check.float32(codebook, "codebook", like)
    shape = tuple(books.shape)
    if books.dim() == 1:
        books = books.expand(len(like), -1)
    if books.dim() != 2 or len(books) != len(like) or not 1 <= books.shape[1] <= 256:
        raise ValueError(f"codebook must have shape (k,) or ({len(like)}, k), k from 1 to 256, got {shape}")
    _check.finite(books, "codebook")
    if bool((books.diff(dim=1) < 0).any()):
        raise ValueError("codebook must ascend")
    return books


def exact_of(exact: Tensor | None, like: Tensor) -> Tensor:
    """The argument, or none of the entries."""
    if exact is None:
        return torch.zeros_like(like, dtype=torch.bool)
    if not isinstance(exact, Tensor) or exact.dtype != torch.bool:
        kind = exact.dtype if isinstance(exact, Tensor) else type(exact).__name__
        raise TypeError(f"exact must be a bool tensor, got {kind}")
    if exact.shape != like.shape or exact.device != like.device:
        raise ValueError(f"exact must have shape {tuple(like.shape)} on {like.device}, got {tuple(exact.shape)}")
    return exact


def _count(keep: float | int, n: int) -> int:
    if isinstance(keep, float):
        if not 0 <= keep <= 1:
            raise ValueError(f"keep must be a count, or a fraction between 0.0 and 1.0, got {keep}")
        return round(keep * n)
    return _check.integer(keep, "keep", 0, n)


def _pattern(pattern: tuple[int, int], columns: int) -> tuple[int, int]:
    kept, group = pattern
    group = _check.integer(group, "pattern[1]", 1)
    if columns % group:
        raise ValueError(f"pattern {pattern} must divide rows of {columns} entries")
    return _check.integer(kept, "pattern[0]", 0, group), group
