"""Schedules of the penalty parameter mu."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .tasks import Task, bind

__all__ = ["auto_mu", "check_schedule", "exponential"]


def exponential(mu0: float, growth: float, steps: int) -> list[float]:
    """``mu0 * growth**n`` for n = 0, ..., steps - 1.

    Published runs take a growth of 1.1 with about 40 steps, 1.2 to 1.4 with fewer. A good mu0 is small enough that the
    first steps move the weights freely: 1e-3 to 1e-5 times the weight decay scale is a common place to start.

    Raises
    ------
    ValueError : unless mu0 > 0, growth >= 1 and steps >= 1.

    Examples
    --------
    >>> lc.exponential(0.5, 2.0, 4)
    [0.5, 1.0, 2.0, 4.0]
    """
    if not (mu0 > 0 and math.isfinite(mu0)):
        raise ValueError(f"mu0 must be positive and finite, got {mu0}")
    if not (growth >= 1 and math.isfinite(growth)):
        raise ValueError(f"growth must be at least 1 and finite, got {growth}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return [mu0 * growth**n for n in range(steps)]


def check_schedule(mu: Iterable[float]) -> list[float]:
    """``mu`` as a non-empty list of positive finite floats that never falls."""
    values = [float(m) for m in mu]
    if not values:
        raise ValueError("mu must hold at least one value, got an empty schedule")
    for before, after in zip([0.0, *values[:-1]], values, strict=True):
        if not (after > 0 and math.isfinite(after) and after >= before):
            raise ValueError(f"mu must be positive, finite and never fall, got {after} after {before}")
    return values


def auto_mu(
    model: nn.Module,
    tasks: Task | Sequence[Task],
    loss: Callable[[nn.Module], Tensor],
    *,
    steps: int = 20,
    start: float = 0.05,
    gap: float = 1e-3,
) -> list[float]:
    """A schedule from the loss and the weights themselves: no mu0 and growth to be found by hand.

    Parameters
    ----------
    model, tasks : as for :class:`lc.LCAlgorithm`; the model is left as it is.
    loss : ``loss(model)`` is the training loss as a tensor, on a few batches, with its graph.
    steps : number of values.
    start : the first penalty, mu0/2 ||w - Delta||^2 at direct compression, as a part of what the loss is there: of
        max(L(w), L(Delta) - L(w)). Small enough to let the first L steps move freely.
    gap : what ||w - Delta|| / ||w|| should come down to. A minimum of the penalised loss has w - Delta = -grad L / mu,
        so the last mu is ||grad L|| / (gap ||w||), with the geometric mean of the gradients at w and at Delta.

    Returns
    -------
    mu0 * growth**n, with a growth of 1.05 to 4. With too few steps for that growth the start is higher: a schedule that
    does not end hard leaves a net that is not compressed.

    Raises
    ------
    ValueError : if the loss is not finite, or direct compression changes no weight.

    Examples
    --------
    >>> mu = lc.auto_mu(model, lc.Task(nn.Linear, lc.Quantize(2)), lambda m: F.cross_entropy(m(x), y))
    >>> len(mu), mu == sorted(mu)
    (20, True)
    """
    bound = bind(model, tasks)
    if any(task.sharded for task in bound):
        raise ValueError("auto_mu knows no schedule for a model that is cut into shards: give mu")
    if any(task.compression.penalised for task in bound):
        raise ValueError("auto_mu knows no schedule for compressions with a cost of their own: give mu")
    weights = [task.weights() for task in bound]
    deltas = [task.compression.fit([w.float() for w in own]) for task, own in zip(bound, weights, strict=True)]
    parameters = [p for task in bound for p in task.parameters]
    flat_w, flat_d = [w for own in weights for w in own], [d for own in deltas for d in own]
    distance = sum(_squares(w - d) for w, d in zip(flat_w, flat_d, strict=True))
    norm = math.sqrt(sum(_squares(w) for w in flat_w))
    before = [p.detach().clone() for p in parameters]
    reference, slope_there = _loss_and_slope(loss, model, parameters)
    try:
        with torch.no_grad():
            for p, d in zip(parameters, flat_d, strict=True):
                p.copy_(d)
        value, slope_here = _loss_and_slope(loss, model, parameters)
    finally:
        with torch.no_grad():
            for p, w in zip(parameters, before, strict=True):
                p.copy_(w)
    slope = math.sqrt(slope_there * slope_here)
    excess = max(reference, value - reference)
    if not (math.isfinite(excess) and math.isfinite(slope)):
        raise ValueError(f"loss must be finite, got {reference} and, compressed, {value}")
    if not (distance > 0 and excess > 0):
        raise ValueError(f"direct compression leaves nothing to do: distance {distance}, loss {excess}")
    mu0 = 2 * start * excess / distance
    last = slope / (gap * norm)
    growth = min(max((last / mu0) ** (1 / max(steps - 1, 1)), 1.05), 4.0)
    return exponential(max(mu0, last / growth ** (steps - 1)), growth, steps)


def _loss_and_slope(
    loss: Callable[[nn.Module], Tensor], model: nn.Module, parameters: Sequence[nn.Parameter]
) -> tuple[float, float]:
    value = loss(model)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return float(value.detach()), math.sqrt(sum(_squares(g) for g in gradients if g is not None))


def _squares(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2
