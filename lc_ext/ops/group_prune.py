"""Prune whole groups of weights, such as filters, by their norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from . import _check, _prune
from .topk_prune import kappa_of

__all__ = ["GroupPruneResult", "ListGroupPruneResult", "group_lasso", "group_prune"]

Groups = str | tuple[int, int]
Costs = float | Tensor | Sequence[float | Tensor] | None


class GroupPruneResult(NamedTuple):
    """Result of :func:`group_prune` on one tensor."""

    values: Tensor
    mask: Tensor
    group_mask: Tensor
    threshold: Tensor


class ListGroupPruneResult(NamedTuple):
    """Result of :func:`group_prune` on a list of tensors."""

    values: list[Tensor]
    mask: list[Tensor]
    group_mask: list[Tensor]
    threshold: Tensor


@overload
def group_prune(
    x: Tensor,
    keep: int | float | None = None,
    *,
    penalty: float | None = None,
    groups: Groups = "row",
    costs: Costs = None,
    weights: Tensor | None = None,
) -> GroupPruneResult: ...
@overload
def group_prune(
    x: Sequence[Tensor],
    keep: int | float | None = None,
    *,
    penalty: float | None = None,
    groups: Groups = "row",
    costs: Costs = None,
    weights: Sequence[Tensor] | None = None,
) -> ListGroupPruneResult: ...
def group_prune(
    x: Tensor | Sequence[Tensor],
    keep: int | float | None = None,
    *,
    penalty: float | None = None,
    groups: Groups = "row",
    costs: Costs = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> GroupPruneResult | ListGroupPruneResult:
    """Keep the groups of weights of the largest norm ||x_g||^2 = sum h x^2, zero the others.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of two dimensions or more, or a list of them on one device. Finite.
    keep : the constraint. Without costs, the number of groups to keep, over all tensors: int, or float in [0, 1], a
        fraction, rounded. With costs, the budget that the costs of the kept groups must not exceed: groups are taken in
        the order of ||x_g||^2 / c_g, each that still fits.
    penalty : alpha / mu, instead of keep: minimises alpha sum of c_g over kept groups + mu / 2 sum h (x - theta)^2,
        that is, keeps a group iff ||x_g||^2 > 2 c_g alpha / mu.
    groups : "row" or "filter", one for each index of the first dimension; "column" or "channel", of the second; or
        (a, b), blocks of a x b of the matrix of the first dimension against the rest, whose sides a and b must divide.
    costs : c_g > 0, by default ones: a number, or a tensor of the shape of the group mask; a list of such for a list.
    weights : tensor like x (a list for a list), the h, not negative; by default ones.

    Returns
    -------
    values : like ``x``, zeros in the groups given up.
    mask : bool, like ``x``.
    group_mask : bool, of shape (groups,), or (rows / a, columns / b) for blocks.
    threshold : float64 scalar tensor: the least ||x_g||^2 / c_g kept, inf if none is; with a penalty, 2 alpha / mu.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range of an argument, for NaN or Inf in ``x``, and for
        NaN, Inf or negative weights.

    Notes
    -----
    O(N), plain torch, sums in float64. Among equal ratios the lowest group is kept, counted through the list in order.

    Examples
    --------
    >>> found = ops.group_prune(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), 1)
    >>> found.values, found.group_mask
    (tensor([[3., 4.],
            [0., 0.]]), tensor([ True, False]))
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    hs = [] if weights is None else _prune.like_list(weights, "weights", xs, single)
    views = [_GroupView(t, groups) for t in xs]
    cost = _costs(costs, views, single)
    if (keep is None) == (penalty is None):
        raise ValueError(f"keep or penalty must be given, and not both, got {keep} and {penalty}")
    _prune.check_values(xs, hs)
    norms = [v.squares(t, hs[i] if hs else None) for i, (v, t) in enumerate(zip(views, xs, strict=True))]
    ratio = torch.cat([n.reshape(-1) for n in norms]) / torch.cat([c.reshape(-1) for c in cost])
    if penalty is not None:
        threshold = torch.tensor(2 * _prune.number(penalty, "penalty"), dtype=torch.float64, device=ratio.device)
        kept = ratio > threshold
    else:
        assert keep is not None
        order = ratio.sort(descending=True, stable=True).indices
        if costs is None:
            chosen = order[: kappa_of(keep, ratio.numel())]
        else:
            chosen = _within_budget(order, torch.cat([c.reshape(-1) for c in cost]), _prune.number(keep, "keep"))
        kept = torch.zeros_like(ratio, dtype=torch.bool)
        kept[chosen] = True
        threshold = ratio[kept].min() if bool(kept.any()) else ratio.new_tensor(torch.inf)
    group_masks = [k.reshape(n.shape) for k, n in zip(kept.split([n.numel() for n in norms]), norms, strict=True)]
    masks = [v.spread(g) for v, g in zip(views, group_masks, strict=True)]
    values = [torch.where(m, t, 0).to(g.dtype) for m, t, g in zip(masks, xs, given, strict=True)]
    if single:
        return GroupPruneResult(values[0], masks[0], group_masks[0], threshold)
    return ListGroupPruneResult(values, masks, group_masks, threshold)


def group_lasso(
    x: Tensor | Sequence[Tensor], alpha_over_mu: float, *, groups: Groups = "row", costs: Costs = None
) -> Tensor | list[Tensor]:
    """Minimise alpha sum c_g ||theta_g|| + mu / 2 ||x - theta||^2: theta_g = x_g max(1 - c_g alpha / (mu ||x_g||), 0).

    Parameters
    ----------
    x, groups, costs : as for :func:`group_prune`.
    alpha_over_mu : finite, not negative.

    Returns
    -------
    like ``x``.

    Raises
    ------
    TypeError, ValueError : as for :func:`group_prune`.

    Notes
    -----
    O(N), plain torch, norms in float64.

    Examples
    --------
    >>> ops.group_lasso(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), 2.5)
    tensor([[1.5000, 2.0000],
            [0.0000, 0.0000]])
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    views = [_GroupView(t, groups) for t in xs]
    cost = _costs(costs, views, single)
    shrink = _prune.number(alpha_over_mu, "alpha_over_mu")
    _prune.check_values(xs, [])
    results = []
    for g, t, view, c in zip(given, xs, views, cost, strict=True):
        norm = view.squares(t, None).sqrt()
        factor = torch.where(norm > 0, 1 - shrink * c / norm, 0).clamp(min=0)
        results.append((t * view.spread(factor.float())).to(g.dtype))
    return results[0] if single else results


class _GroupView:
    """Where the groups of one tensor are."""

    def __init__(self, x: Tensor, groups: Groups) -> None:
        if x.dim() < 2:
            raise ValueError(f"x must have at least two dimensions to have groups, got shape {tuple(x.shape)}")
        rows, columns = x.shape[0], math.prod(x.shape[1:])
        self.whole = x.shape
        if groups in ("row", "filter"):
            self.shape, self.summed = x.shape, tuple(range(1, x.dim()))
        elif groups in ("column", "channel"):
            self.shape, self.summed = x.shape, (0, *range(2, x.dim()))
        elif isinstance(groups, tuple) and len(groups) == 2:
            a, b = (_check.integer(side, "groups", 1) for side in groups)
            if rows % a or columns % b:
                raise ValueError(f"groups must divide the {rows} x {columns} matrix of x, got {groups}")
            self.shape, self.summed = torch.Size((rows // a, a, columns // b, b)), (1, 3)
        else:
            raise ValueError(f"groups must be 'row', 'filter', 'column', 'channel' or (a, b), got {groups!r}")
        self.group_shape = [s for i, s in enumerate(self.shape) if i not in self.summed]

    def squares(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """sum h x^2 of each group, in float64."""
        v = x.reshape(self.shape)
        h = None if weights is None else weights.reshape(self.shape)
        parts, rows = [], max(1, (1 << 20) // max(1, math.prod(self.shape[1:])))  # no float64 copy of the whole
        for start in range(0, self.shape[0], rows):
            products = v[start : start + rows].double() ** 2
            parts.append((products if h is None else products.mul_(h[start : start + rows])).sum(self.summed))
        if not parts:
            return torch.zeros(self.group_shape, dtype=torch.float64, device=x.device)
        return torch.stack(parts).sum(0) if 0 in self.summed else torch.cat(parts)

    def spread(self, of_groups: Tensor) -> Tensor:
        """A value of each group at each of its entries."""
        for d in self.summed:
            of_groups = of_groups.unsqueeze(d)
        return of_groups.expand(self.shape).reshape(self.whole)


def _costs(costs: Costs, views: Sequence[_GroupView], single: bool) -> list[Any]:
    each = [costs] * len(views) if costs is None or isinstance(costs, int | float) else [costs] if single else costs
    if not isinstance(each, Sequence) or len(each) != len(views):
        raise ValueError(f"costs must be a number, or a list of {len(views)} entries like x")
    result = []
    for c, view in zip(each, views, strict=True):
        t = torch.as_tensor(1.0 if c is None else c, dtype=torch.float64)
        if t.dim() and list(t.shape) != view.group_shape:
            raise ValueError(f"costs must be numbers or have the shape {tuple(view.group_shape)}, got {tuple(t.shape)}")
        if not bool((t > 0).all() & t.isfinite().all()):
            raise ValueError(f"costs must be positive and finite, got {c}")
        result.append(t.expand(view.group_shape))
    return result


def _within_budget(order: Tensor, costs: Tensor, budget: float) -> Tensor:
    """The groups that fit, taken in order."""
    chosen, spent = [], 0.0
    for group, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        if spent + cost <= budget:
            spent += cost
            chosen.append(group)
    return torch.tensor(chosen, dtype=torch.int64, device=order.device)
