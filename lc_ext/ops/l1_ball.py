"""The l1 norm as a constraint and as a penalty: soft thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .. import _native
from . import _check, _prune

__all__ = ["BallResult", "ListBallResult", "l1_ball", "l1_ball_reference", "l1_penalty", "l1_penalty_reference"]


class BallResult(NamedTuple):
    """The projection of one tensor on a ball."""

    values: Tensor
    threshold: Tensor


class ListBallResult(NamedTuple):
    """The projection of a list of tensors, as one vector, on a ball."""

    values: list[Tensor]
    threshold: Tensor


@overload
def l1_ball(
    x: Tensor, radius: float, *, weights: Tensor | None = None, out: BallResult | None = None
) -> BallResult: ...
@overload
def l1_ball(
    x: Sequence[Tensor], radius: float, *, weights: Sequence[Tensor] | None = None, out: ListBallResult | None = None
) -> ListBallResult: ...
def l1_ball(
    x: Tensor | Sequence[Tensor],
    radius: float,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    out: BallResult | ListBallResult | None = None,
) -> BallResult | ListBallResult:
    """Project ``x`` on {theta : sum |theta| <= radius}.

    Minimises sum h (x - theta)^2: theta = sign(x) max(|x| - tau / h, 0), with the tau that makes the sum the radius.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device, taken as one vector. Finite.
    radius : finite, not negative.
    weights : tensor like x (a list for a list), the h, not negative; by default ones. Entries of weight 0 are given up
        before any other is touched.
    out : a previous result for tensors of the same shapes and dtypes, whose values are used again.

    Returns
    -------
    values : like ``x``; equal to ``x`` if it is in the ball, zeros if the radius is 0.
    threshold : float64 scalar tensor, tau: 0 if ``x`` is in the ball, inf if the radius is 0.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range of an argument, for NaN or Inf in ``x``, and for
        NaN, Inf or negative weights.

    Notes
    -----
    O(N), no sort: a sample gives a first tau, then Newton's method on the sum, which is piecewise linear, until the set
    of entries above tau stays as it was; tau is then exact to float64. Values are computed in float64 and rounded once;
    1 / h is rounded to float32. The same for every instruction set and number of threads.

    Examples
    --------
    >>> ops.l1_ball(torch.tensor([3.0, -1.0, 0.5]), 2.0).values
    tensor([2., 0., 0.])
    """
    if out is not None and not isinstance(out, BallResult if isinstance(x, Tensor) else ListBallResult):
        raise TypeError(f"out must be a previous result of l1_ball for such an x, got {type(out).__name__}")
    xs, hs, values = _arguments(x, weights, None if out is None else out.values)
    radius = _prune.number(radius, "radius")
    device = xs[0].device
    if _native.has_kernel("l1_threshold", xs[0]):
        tau = torch.empty((), dtype=torch.float64, device=device)
        if not _native.call("l1_threshold", xs, [t.numel() for t in xs], hs, radius, tau):
            _prune.check_values(xs, hs)
    else:
        _prune.check_values(xs, hs)
        tau = torch.tensor(_threshold(xs, hs, radius), dtype=torch.float64, device=device)
    found = float(tau)
    if found < 0:
        tau.zero_()
        for v, t in zip(values, xs, strict=True):
            v.copy_(t)
    else:
        _soften(xs, hs, found, values)
    return BallResult(values[0], tau) if isinstance(x, Tensor) else ListBallResult(values, tau)


def l1_ball_reference(
    x: Sequence[Tensor], radius: float, weights: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], float]:
    """The definition in plain torch and float64: tau from sorted h |x|; -1 if x is in the ball."""
    tau = _threshold(x, weights or [], radius)
    return [t.clone() for t in x] if tau < 0 else l1_penalty_reference(x, tau, weights), tau


@overload
def l1_penalty(
    x: Tensor, alpha_over_mu: float, weights: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def l1_penalty(
    x: Sequence[Tensor],
    alpha_over_mu: float,
    weights: Sequence[Tensor] | None = None,
    *,
    out: list[Tensor] | None = None,
) -> list[Tensor]: ...
def l1_penalty(
    x: Tensor | Sequence[Tensor],
    alpha_over_mu: float,
    weights: Tensor | Sequence[Tensor] | None = None,
    *,
    out: Tensor | list[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """Minimise alpha sum |theta| + mu / 2 sum h (x - theta)^2: the soft threshold at alpha / (mu h).

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device. Finite.
    alpha_over_mu : finite, not negative. 0 returns x.
    weights : tensor like x (a list for a list), the h, not negative; by default ones. Weight 0 gives 0.
    out : a previous result for tensors of the same shapes and dtypes, whose memory is used again.

    Returns
    -------
    like ``x``: sign(x) max(|x| - alpha / (mu h), 0), computed in float64 and rounded; 1 / h is rounded to float32.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range of an argument, for NaN or Inf in ``x``, and for
        NaN, Inf or negative weights.

    Notes
    -----
    O(N), one pass. The same for every instruction set and number of threads.

    Examples
    --------
    >>> ops.l1_penalty(torch.tensor([3.0, -1.0, 0.5]), 0.75)
    tensor([ 2.2500, -0.2500,  0.0000])
    """
    if out is not None and not isinstance(out, Tensor if isinstance(x, Tensor) else list):
        raise TypeError(f"out must be a previous result of l1_penalty for such an x, got {type(out).__name__}")
    xs, hs, values = _arguments(x, weights, out)
    threshold = _prune.number(alpha_over_mu, "alpha_over_mu")
    if threshold == 0:
        _prune.check_values(xs, hs)
        for v, t in zip(values, xs, strict=True):
            v.copy_(t)
    else:
        _soften(xs, hs, threshold, values)
    return values[0] if isinstance(x, Tensor) else values


def l1_penalty_reference(
    x: Sequence[Tensor], alpha_over_mu: float, weights: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The definition in plain torch and float64."""
    results = []
    for t, shift in zip(x, _inverses(x, weights or []), strict=True):
        size = t.double().abs() - (alpha_over_mu * shift.double()).nan_to_num(torch.inf)  # 0 / 0: a weight of 0 gives 0
        results.append((t.double().sign() * size.clamp(min=0)).to(t.dtype) + 0.0)
    return results


def _arguments(
    x: Tensor | Sequence[Tensor], weights: object, out: Tensor | list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """x and the weights in float32, and memory for the result."""
    single = isinstance(x, Tensor)
    given: Sequence[Tensor] = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    hs = [] if weights is None else _prune.like_list(weights, "weights", xs, single)
    previous = None if out is None else _prune.Outputs(out, None)
    values, _ = _prune.outputs(given, 0, previous, single)
    if out is not None:
        _prune.no_overlap(values, [*given, *hs])
    return xs, hs, values


def _soften(xs: list[Tensor], hs: list[Tensor], threshold: float, values: list[Tensor]) -> None:
    if _native.has_kernel("soft_threshold", xs[0]):
        wide = _prune.float32_buffers(values)
        if not _native.call("soft_threshold", xs, [t.numel() for t in xs], hs, threshold, wide):
            _prune.check_values(xs, hs)
        _prune.narrow(values, wide)
        return
    _prune.check_values(xs, hs)
    for v, r in zip(values, l1_penalty_reference(xs, threshold, hs), strict=True):
        v.copy_(r)


def _inverses(x: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [1 / h.float().abs() for h in weights] if weights else [torch.ones_like(t, dtype=torch.float32) for t in x]


def _threshold(x: Sequence[Tensor], weights: Sequence[Tensor], radius: float) -> float:
    size = torch.cat([t.reshape(-1).double().abs() for t in x])
    inverse = torch.cat([i.reshape(-1).double() for i in _inverses(x, weights)])
    if radius == 0:
        return math.inf
    if size.sum() <= radius:
        return -1.0
    finite = inverse < torch.inf
    size, inverse = size[finite], inverse[finite]
    if size.sum() <= radius:
        return 0.0
    ratio, order = (size / inverse).sort(descending=True)
    taus = (size[order].cumsum(0) - radius) / inverse[order].cumsum(0)
    above = taus[ratio > taus]
    return float(above[-1] if len(above) else ratio[0])  # a tiny radius is lost beside the largest entry
