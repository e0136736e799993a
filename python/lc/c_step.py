"""The C step: Theta <- Pi(w - lambda / (mu h)), then lambda <- lambda - mu h (w - Delta), for every task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .distributed.sharded_c_step import fit_sharded
from .distributed.shared_c_step import fit_shared
from .distributed.world import World
from .tasks import BoundTask

__all__ = ["c_step", "shifts"]


@torch.no_grad()
def c_step(
    tasks: Sequence[BoundTask], mu: float, multipliers: bool, world: World, update: bool = True
) -> tuple[list[float], float]:
    """The C steps of all tasks; without ``update`` the multipliers stay.

    Returns sum h (w - Delta)^2 for each, and sum w^2 over all of them.

    Raises
    ------
    ValueError : for weights that are not finite; and whatever a compression raises, in every process.
    """
    squares = world.together(lambda: [_finite_square(task) for task in tasks])
    for task in tasks:
        weights = task.weights()
        task.multipliers = [m.to(w.device) for m, w in zip(task.multipliers, weights, strict=True)]
        task.metric = task.metric and [h.to(w.device) for h, w in zip(task.metric, weights, strict=True)]

    def shifted(task: BoundTask) -> list[Tensor]:
        if not (mu and multipliers):
            return [w.float() for w in task.weights()]
        return [(w - s).float() for w, s in zip(task.weights(), shifts(task, mu), strict=True)]

    def fit(task: BoundTask, v: list[Tensor], metric: list[Tensor] | None) -> list[Tensor]:
        options: dict[str, Any] = {}
        if metric is not None:
            options["weights"] = metric
        if task.compression.penalised:
            options["mu"] = mu
        try:
            return task.compression.fit(v, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"task {task.name}: {error}") from error

    if world.alone:
        for task in tasks:
            task.set_delta(fit(task, shifted(task), task.metric))
        return [_update(task, mu, multipliers and update) for task in tasks], sum(squares)
    fit_shared([task for task in tasks if not task.sharded], shifted, fit, world)
    fit_sharded([task for task in tasks if task.sharded], shifted, fit, world)
    mine = [_update(task, mu, multipliers and update) for task in tasks]
    # a process knows its shards: their sums are added up in the order of the ranks, by all alike
    everyone = world.gather(
        [(d, s) if task.sharded else (0.0, 0.0) for d, s, task in zip(mine, squares, tasks, strict=True)]
    )
    for i, task in enumerate(tasks):
        if task.sharded:
            mine[i], squares[i] = sum(theirs[i][0] for theirs in everyone), sum(theirs[i][1] for theirs in everyone)
    return mine, sum(squares)


def shifts(task: BoundTask, mu: float) -> list[Tensor]:
    """lambda / (mu h)."""
    if task.metric is None:
        return [m / mu for m in task.multipliers]
    return [m / (mu * h.to(m.device)) for m, h in zip(task.multipliers, task.metric, strict=True)]


def _update(task: BoundTask, mu: float, multipliers: bool) -> float:
    residuals = [w - d for w, d in zip(task.weights(), task.delta, strict=True)]
    pulls = residuals if task.metric is None else [r * h for r, h in zip(residuals, task.metric, strict=True)]
    if mu and multipliers:
        for m, pull in zip(task.multipliers, pulls, strict=True):
            m.sub_(pull, alpha=mu)
    if task.metric is None:
        return sum(_squared_norm(r) for r in residuals)
    return sum(float((r.double() * p.double()).sum()) for r, p in zip(residuals, pulls, strict=True))


def _finite_square(task: BoundTask) -> float:
    square = sum(_squared_norm(w) for w in task.weights())
    if not math.isfinite(square):
        raise ValueError(f"the weights of {task.name} contain NaN or Inf: the L step has diverged")
    return square


def _squared_norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2
