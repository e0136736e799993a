"""The l0 norm as a penalty, and the l2 norm as a penalty and as a constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from .. import _native
from . import _check, _prune
from ._prune import ListPruneResult, MaskKind, PruneResult
from .l1_ball import BallResult, ListBallResult

__all__ = ["l0_penalty", "l0_penalty_reference", "l2_ball", "l2_penalty"]


@overload
def l0_penalty(
    x: Tensor,
    alpha_over_mu: float,
    weights: Tensor | None = None,
    *,
    mask: MaskKind = "bool",
    out: PruneResult | None = None,
) -> PruneResult: ...
@overload
def l0_penalty(
    x: Sequence[Tensor],
    alpha_over_mu: float,
    weights: Sequence[Tensor] | None = None,
    *,
    mask: MaskKind = "bool",
    out: ListPruneResult | None = None,
) -> ListPruneResult: ...
def l0_penalty(
    x: Tensor | Sequence[Tensor],
    alpha_over_mu: float,
    weights: Tensor | Sequence[Tensor] | None = None,
    *,
    mask: MaskKind = "bool",
    out: PruneResult | ListPruneResult | None = None,
) -> Any:
    """Minimise alpha ||theta||_0 + mu / 2 sum h (x - theta)^2: keep an entry iff h x^2 > 2 alpha / mu.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device. Finite.
    alpha_over_mu : finite, not negative.
    weights : tensor like x (a list for a list), the h, not negative; by default ones. h x^2 is computed in float32 as
        (h |x|) |x|; without weights the comparison is exact.
    mask : "bool", "bits" or None, as in :func:`topk_prune`.
    out : a previous result for tensors of the same shapes and dtypes, whose memory is used again.

    Returns
    -------
    values : like ``x``, survivors in place and zeros elsewhere.
    mask : true for the survivors.
    threshold : float32 scalar tensor: entries with a score (|x|, or h x^2 with weights) above it survive.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range of an argument, for NaN or Inf in ``x``, and for
        NaN, Inf or negative weights.

    Notes
    -----
    O(N), one pass. The same for every instruction set and number of threads.

    Examples
    --------
    >>> ops.l0_penalty(torch.tensor([0.5, -3.0, 1.0]), 1.0).values  # those above sqrt(2) survive
    tensor([ 0., -3.,  0.])
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    bound = _bound(2 * _prune.number(alpha_over_mu, "alpha_over_mu"), squared=weights is None)
    score = _prune.scores_of(xs, single, weights, None)
    kind = _prune.mask_kind(mask)
    if out is not None and not isinstance(out, PruneResult if single else ListPruneResult):
        raise TypeError(f"out must be a previous result of l0_penalty for such an x, got {type(out).__name__}")
    values, masks = _prune.outputs(given, kind, out, single)
    if out is not None:
        _prune.no_overlap([*values, *masks], [*given, *score.given])
    if _native.has_kernel("threshold_prune", xs[0]):
        wide, sizes = _prune.float32_buffers(values), [t.numel() for t in xs]
        if _native.call("threshold_prune", xs, sizes, score.kind, score.given, bound, wide, masks, kind) < 0:
            score.check(xs)
        _prune.narrow(values, wide)
    else:
        score.check(xs)
        for i, (t, s) in enumerate(zip(xs, score.tensors(xs), strict=True)):
            keep = s > bound
            values[i].copy_(torch.where(keep, t, 0))
            if masks:
                masks[i].copy_(_prune.as_mask(keep, kind))
    threshold = torch.tensor(bound, dtype=torch.float32, device=xs[0].device)
    if single:
        return PruneResult(values[0], masks[0] if kind else None, threshold)
    return ListPruneResult(values, masks if kind else None, threshold)


def l0_penalty_reference(
    x: Sequence[Tensor], alpha_over_mu: float, weights: Sequence[Tensor] | None = None
) -> ListPruneResult:
    """The definition in plain torch: squares of float32 numbers are exact in float64."""
    scores = [
        t.double() ** 2 if weights is None else (weights[i].float() * t.float().abs() * t.float().abs()).double()
        for i, t in enumerate(x)
    ]
    masks = [s > 2 * alpha_over_mu for s in scores]
    bound = _bound(2 * alpha_over_mu, squared=weights is None)
    return ListPruneResult(
        [t.where(m, t.new_zeros(())) for t, m in zip(x, masks, strict=True)], masks, torch.tensor(bound)
    )


def l2_penalty(
    x: Tensor | Sequence[Tensor], alpha_over_mu: float, weights: Tensor | Sequence[Tensor] | None = None
) -> Tensor | list[Tensor]:
    """Minimise alpha ||theta||^2 + mu / 2 sum h (x - theta)^2: theta = x h / (h + 2 alpha / mu).

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device. Finite.
    alpha_over_mu : finite, not negative.
    weights : tensor like x (a list for a list), the h, not negative; by default ones.

    Returns
    -------
    like ``x``; x itself, copied, if alpha is 0.

    Raises
    ------
    TypeError, ValueError : as for :func:`l0_penalty`.

    Notes
    -----
    O(N), plain torch.

    Examples
    --------
    >>> ops.l2_penalty(torch.tensor([3.0, 4.0]), 1.0)
    tensor([1.0000, 1.3333])
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    hs = None if weights is None else _prune.like_list(weights, "weights", xs, single)
    shrink = 2 * _prune.number(alpha_over_mu, "alpha_over_mu")
    _prune.check_values(xs, hs or [])
    if shrink == 0:
        results = [t.to(g.dtype, copy=True) for t, g in zip(xs, given, strict=True)]
    elif hs is None:
        results = [(t * (1 / (1 + shrink))).to(g.dtype) for t, g in zip(xs, given, strict=True)]
    else:
        results = [(t * (h / (h + shrink))).to(g.dtype) for t, h, g in zip(xs, hs, given, strict=True)]
    return results[0] if single else results


@overload
def l2_ball(x: Tensor, radius: float, *, weights: Tensor | None = None) -> BallResult: ...
@overload
def l2_ball(x: Sequence[Tensor], radius: float, *, weights: Sequence[Tensor] | None = None) -> ListBallResult: ...
def l2_ball(
    x: Tensor | Sequence[Tensor], radius: float, *, weights: Tensor | Sequence[Tensor] | None = None
) -> BallResult | ListBallResult:
    """Project ``x`` on {theta : ||theta||_2 <= radius}.

    Minimises sum h (x - theta)^2: theta = x h / (h + lambda), with the lambda that makes the norm the radius; without
    weights that is x radius / ||x||.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device, taken as one vector. Finite.
    radius : finite, not negative.
    weights : tensor like x (a list for a list), the h, not negative; by default ones. Entries of weight 0 are given up
        before any other is touched.

    Returns
    -------
    values : like ``x``; equal to ``x`` if it is in the ball, zeros if the radius is 0.
    threshold : float64 scalar tensor, lambda: 0 if ``x`` is in the ball, inf if the radius is 0.

    Raises
    ------
    TypeError, ValueError : as for :func:`l1_ball`.

    Notes
    -----
    O(N), plain torch, norms in float64. With weights, Newton's method on 1 / ||theta||, until lambda stands still.

    Examples
    --------
    >>> ops.l2_ball(torch.tensor([3.0, 4.0]), 2.5).values
    tensor([1.5000, 2.0000])
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    hs = [torch.ones((), device=t.device) for t in xs]  # broadcast
    if weights is not None:
        hs = _prune.like_list(weights, "weights", xs, single)
    radius = _prune.number(radius, "radius")
    _prune.check_values(xs, [] if weights is None else hs)
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in xs))
    if norm <= radius:
        values, shift = [t.to(g.dtype, copy=True) for t, g in zip(xs, given, strict=True)], 0.0
    elif radius == 0:
        values, shift = [torch.zeros_like(t, dtype=g.dtype) for t, g in zip(xs, given, strict=True)], math.inf
    else:
        shift = norm / radius - 1 if weights is None else _secular_root(xs, hs, radius)
        factors = [torch.where(h > 0, h.double() / (h.double() + shift), 0) for h in hs]
        values = [(t * f.float()).to(g.dtype) for t, f, g in zip(xs, factors, given, strict=True)]
    shift_tensor = torch.tensor(shift, dtype=torch.float64, device=xs[0].device)
    return BallResult(values[0], shift_tensor) if single else ListBallResult(values, shift_tensor)


def _bound(value: float, *, squared: bool) -> float:
    """The largest float32 b with b <= value, or b^2 <= value: entries above it are the ones to keep."""
    wanted = math.sqrt(value) if squared else value
    b = torch.tensor(wanted, dtype=torch.float64).float()
    power = 2 if squared else 1
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    while float(b) ** power > value:
        b = torch.nextafter(b, down)
    while float(torch.nextafter(b, up)) ** power <= value:
        b = torch.nextafter(b, up)
    return float(b)


def _secular_root(xs: Sequence[Tensor], hs: Sequence[Tensor], radius: float) -> float:
    """The lambda with ||x h / (h + lambda)|| = radius, 0 if there is none: 1 / norm is concave in lambda, so Newton's
    method on it rises to the root from 0."""
    shift = 0.0
    while True:
        norm2 = slope = 0.0
        for t, h in zip(xs, hs, strict=True):
            for part, weight in zip(t.reshape(-1).split(1 << 20), h.reshape(-1).split(1 << 20), strict=True):
                some = weight > 0
                w = weight[some].double()
                squares = (part[some].double() * w / (w + shift)) ** 2
                norm2 += float(squares.sum())
                slope += float((squares / (w + shift)).sum())
        norm = math.sqrt(norm2)
        if norm <= radius:
            return shift
        step = norm2 / slope * (norm / radius - 1)
        if shift + step <= shift * (1 + 1e-15):
            return shift
        shift += step
