"""The rank that is worth its cost: the low-rank C step with rank selection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from .conv_matrix import RankCost
from .truncated_svd import SVDResult, truncated_svd

__all__ = ["RankSelection", "rank_select", "rank_select_reference"]

_FIRST = 16  # singular values to begin with when nothing is known
_MARGIN = 8  # beyond the last rank
_SMALL = 512  # up to such a side the exact solver finds all in less time than two more attempts take


class RankSelection(NamedTuple):
    """Result of :func:`rank_select`."""

    rank: int
    svd: SVDResult
    cost: float
    dense: bool
    objective: float
    computed: SVDResult


def rank_select(
    w: Tensor,
    alpha_over_mu: float,
    *,
    cost: str | RankCost | Tensor | Mapping[int, float] = "storage",
    dense_cost: float | None = None,
    normalize: bool = False,
    max_rank: int | None = None,
    warm: RankSelection | SVDResult | Tensor | None = None,
    tol: float = 1e-6,
    max_steps: int | None = None,
) -> RankSelection:
    """The rank r that minimizes ``alpha_over_mu * C(r) + ||w - w_r||^2 / (2 nu)``, and the truncated SVD of that rank.

    ``w_r`` is the best approximation of rank r. r = 0 is a candidate, and so is the matrix as it is: error 0, cost
    ``dense_cost``.

    Parameters
    ----------
    w : float32, float16 or bfloat16 tensor of shape (m, n), finite.
    alpha_over_mu : weight of the cost, at least 0: alpha / mu in an LC algorithm.
    cost : C(r). "storage": r (m + n), dense m n; also the multiply-adds of a linear layer. A ``RankCost``, for example
        the multiply-adds of a convolution (:func:`conv_macs`). Or a table of measured costs: a tensor of those of the
        ranks 0, 1, ..., or a dict from ranks to costs; the ranks it names are then the candidates.
    dense_cost : cost of the matrix as it is, in place of what ``cost`` says. With a table the default is that it is no
        candidate. ``math.inf`` rules it out.
    normalize : nu = ||w||^2 instead of 1.
    max_rank : largest rank among the candidates.
    warm : an earlier selection of a similar matrix, or its singular triplets, or right singular vectors as rows.
    tol, max_steps : accuracy of the singular triplets, as in :func:`truncated_svd`. ``max_steps`` is for as many as
        ``warm`` has; further ones start cold.

    Returns
    -------
    rank : the lowest in a tie, which dense wins; min(m, n) if dense.
    svd : its triplets: u (m, rank), s (rank,), vh (rank, n). If dense, those that were computed.
    cost : of the choice.
    dense : whether to keep the matrix as it is.
    objective : the value of the minimum.
    computed : all triplets that were computed, to warm-start the next call.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, a negative weight, a table of the wrong kind.

    Notes
    -----
    The enumeration of Idelbayev and Carreira-Perpinan (CVPR 2020), exact up to the accuracy of the singular values.
    Only as many are computed as the choice needs: their number is doubled until no rank beyond can win, given that
    its further singular values are at most the last one known, and together at most what is left of ||w||^2.

    Examples
    --------
    >>> ops.rank_select(torch.randn(60, 3) @ torch.randn(3, 40), 1e-3).rank
    3
    """
    a = _check.float32(w, "w")
    if a.dim() != 2 or not a.numel():
        raise ValueError(f"w must be a matrix, got shape {tuple(a.shape)}")
    alpha = _nonnegative(alpha_over_mu, "alpha_over_mu")
    ranks, costs, dense = _candidates(a, cost, dense_cost, max_rank)
    energy = float(torch.linalg.vector_norm(a, dim=1).double().square().sum())
    if not math.isfinite(energy):
        raise ValueError("w contains NaN or Inf, or values whose squares overflow")
    scale = 0.5 / energy if normalize and energy else 0.5
    if isinstance(warm, RankSelection):
        warm = warm.computed
    start = warm.vh if isinstance(warm, SVDResult) else warm
    last, known = int(ranks[-1]), 0 if start is None else start.shape[0]
    best_dense = alpha * dense if dense < math.inf else math.inf
    number = min(last, known or _FIRST)
    while True:
        found = truncated_svd(a, number, warm=start, tol=tol, max_steps=max_steps) if number else _nothing(a)
        squares = found.s.double().square().cpu()
        errors = (energy - torch.cat([squares.new_zeros(1), squares.cumsum(0)])).clamp_min(0)
        if number == min(a.shape):
            errors = _tails(squares)
        inside = ranks <= number
        values = alpha * costs[inside] + scale * errors[ranks[inside]]
        best = min([best_dense, *values.tolist()])
        beyond = ranks[~inside]
        rest = errors[-1] - (beyond - number) * (squares[-1] if number else energy)
        if bool((alpha * costs[~inside] + scale * rest.clamp_min(0) >= best).all()):
            break
        number, start = last if min(a.shape) <= _SMALL else min(2 * number + _MARGIN, last), None
    if best == best_dense:
        return RankSelection(min(a.shape), found, dense, True, best, found)
    at = int(values.argmin())
    rank = int(ranks[at])
    svd = SVDResult(found.u[:, :rank], found.s[:rank], found.vh[:rank])
    return RankSelection(rank, svd, float(costs[at]), False, best, found)


def rank_select_reference(
    w: Tensor,
    alpha_over_mu: float,
    *,
    cost: str | RankCost | Tensor | Mapping[int, float] = "storage",
    dense_cost: float | None = None,
    normalize: bool = False,
    max_rank: int | None = None,
) -> tuple[int, float, bool]:
    """The definition: all singular values in float64, all candidates. Returns rank, objective, dense."""
    ranks, costs, dense = _candidates(w, cost, dense_cost, max_rank)
    squares = torch.linalg.svdvals(w.double()).square().cpu()
    nu = float(squares.sum()) if normalize and bool(squares.any()) else 1.0
    errors = _tails(squares)
    values = alpha_over_mu * costs + errors[ranks] / (2 * nu)
    at = int(values.argmin())
    if dense < math.inf and alpha_over_mu * dense <= float(values[at]):
        return min(w.shape), alpha_over_mu * dense, True
    return int(ranks[at]), float(values[at]), False


def _candidates(
    a: Tensor, cost: object, dense_cost: float | None, max_rank: int | None
) -> tuple[Tensor, Tensor, float]:
    """Ranks in ascending order, their costs in float64, the cost of the dense matrix."""
    side = min(a.shape)
    top = side if max_rank is None else min(side, _check.integer(max_rank, "max_rank", 0))
    dense = math.inf
    if isinstance(cost, str) and cost == "storage":
        cost = RankCost(sum(a.shape), a.numel())
    if isinstance(cost, RankCost):
        dense = _nonnegative(cost.dense, "cost", math.inf)
        costs = torch.arange(top + 1, dtype=torch.float64, device="cpu") * _nonnegative(cost.per_rank, "cost")
        ranks = torch.arange(top + 1, device="cpu")
    elif isinstance(cost, Mapping):
        chosen = sorted(_check.integer(r, "cost", 0) for r in cost)
        ranks = torch.tensor([r for r in chosen if r <= top], dtype=torch.int64, device="cpu")
        costs = torch.tensor([float(cost[int(r)]) for r in ranks], dtype=torch.float64, device="cpu")
    elif isinstance(cost, Tensor) and cost.dim() == 1:
        costs = cost[: top + 1].detach().double().cpu()
        ranks = torch.arange(len(costs), device="cpu")
    else:
        raise TypeError(f'cost must be "storage", a RankCost, a vector or a dict of costs, got {cost!r}')
    if not len(ranks) or not bool(torch.isfinite(costs).all()) or bool((costs < 0).any()):
        raise ValueError(f"cost must hold finite costs of at least 0 for ranks from 0 to {top}, got {cost!r}")
    if dense_cost is not None:
        dense = _nonnegative(dense_cost, "dense_cost", math.inf)
    return ranks, costs, float(dense)


def _tails(squares: Tensor) -> Tensor:
    """Squared errors at the ranks 0 to the full one."""
    return torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])


def _nonnegative(value: object, name: str, most: float = 1.7e308) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be at least 0{'' if most == math.inf else ' and finite'}, got {value}")
    return float(value)


def _nothing(a: Tensor) -> SVDResult:
    return SVDResult(a.new_zeros(a.shape[0], 0), a.new_zeros(0), a.new_zeros(0, a.shape[1]))
