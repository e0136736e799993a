"""C steps of parameters that are cut into shards.

Pruning, and codebooks of many weights, exchange counts and sums (:mod:`lc.shard_statistics`): every process keeps what
was learned of its shards. For any other compression an owner, found by greedy bin packing, gathers the weights of the
task, solves it, keeps what was learned, and deals out the shards of Delta. That goes on in rounds, a task for each
process at a time, so that no process ever holds more than the largest task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks import BoundTask
from .shard_statistics import Shards, statistics_of
from .sharded import rows_of
from .shared_c_step import Fit, Shifted, bin_pack, cost_of
from .world import World

__all__ = ["deal_shards", "fit_sharded", "gather_shards", "owners_of"]


def owners_of(tasks: Sequence[BoundTask], world: World) -> list[int | None]:
    """Who solves each task and keeps what was learned: None for all together."""
    alone = [i for i, task in enumerate(tasks) if statistics_of(task) is None]
    owners: list[int | None] = [None] * len(tasks)
    for i, owner in zip(alone, bin_pack([cost_of(tasks[i]) for i in alone], world.size), strict=True):
        owners[i] = owner
    return owners


def fit_sharded(tasks: Sequence[BoundTask], shifted: Shifted, fit: Fit, world: World) -> None:
    """Set the shards of the Delta of every task, what its compression has learned, and the size of that."""
    owners = owners_of(tasks, world)
    for task, owner in zip(tasks, owners, strict=True):
        statistics = statistics_of(task)
        if owner is None and statistics is not None:
            shapes = [tuple(p.shape) for p in task.parameters]
            v = world.together(lambda task=task: _finite(task, shifted(task)))  # type: ignore[misc]
            task.set_delta(statistics.fit(task.compression, Shards(v, shapes, world), task.metric))
            task.noted = statistics.report(task.compression, Shards(task.delta, shapes, world))
    queues = [[i for i in _dearest_first(tasks) if owners[i] == rank] for rank in range(world.size)]
    for turn in range(max((len(queue) for queue in queues), default=0)):
        _round(tasks, [queue[turn] if turn < len(queue) else None for queue in queues], shifted, fit, world)


def _finite(task: BoundTask, v: list[Tensor]) -> list[Tensor]:
    if not all(bool(torch.linalg.vector_norm(t, dtype=torch.float64).isfinite()) for t in v):
        raise ValueError(f"task {task.name}: x contains NaN or Inf")
    return v


def _dearest_first(tasks: Sequence[BoundTask]) -> list[int]:
    return sorted(range(len(tasks)), key=lambda i: (-cost_of(tasks[i]), i))


def _round(tasks: Sequence[BoundTask], chosen: Sequence[int | None], shifted: Shifted, fit: Fit, world: World) -> None:
    """One task for each owner: ``chosen[owner]``."""
    gathered: tuple[list[Tensor], list[Tensor] | None] = [], None
    for owner, i in enumerate(chosen):
        if i is not None:
            v = _gather_all(tasks[i], shifted(tasks[i]), owner, world)
            h = tasks[i].metric
            whole_h = None if h is None else _gather_all(tasks[i], h, owner, world)
            if owner == world.rank:
                gathered = v, whole_h
    mine = chosen[world.rank]
    projected: list[Tensor] = []
    report: dict[str, Any] = {}
    failure: Exception | None = None
    if mine is not None:
        try:
            projected = fit(tasks[mine], *gathered)
            tasks[mine].noted = None
            report = tasks[mine].report()
        except Exception as error:
            failure = error
    world.raise_first(failure, math.inf if mine is None else mine)
    everyone = world.gather(report)
    for owner, i in enumerate(chosen):
        if i is not None:
            tasks[i].noted = everyone[owner]
            whole = projected if owner == world.rank else [None] * len(tasks[i].parameters)
            pairs = zip(whole, tasks[i].weights(), tasks[i].parameters, strict=True)
            tasks[i].delta = [deal_shards(d, w, p.shape, owner, world) for d, w, p in pairs]


def _gather_all(task: BoundTask, shards: Sequence[Tensor], owner: int, world: World) -> list[Tensor]:
    wholes = [gather_shards(t, p.shape, owner, world) for t, p in zip(shards, task.parameters, strict=True)]
    return [whole for whole in wholes if whole is not None]


def gather_shards(shard: Tensor, shape: Sequence[int], owner: int, world: World) -> Tensor | None:
    """The whole tensor for the owner, None for the others."""
    whole = world.collect(_padded(shard, shape, world), owner)
    return None if whole is None else whole[: math.prod(shape)].view(*shape)


def deal_shards(whole: Tensor | None, like: Tensor, shape: Sequence[int], owner: int, world: World) -> Tensor:
    """The shard, like this process's own, of a tensor that the owner has."""
    piece = _padded(like, shape, world)
    if whole is not None:
        whole = whole.to(piece.dtype).flatten()
        whole = F.pad(whole, (0, world.size * piece.numel() - whole.numel()))
    return world.deal(whole, piece, owner)[: like.numel()].view(like.shape).clone()


def _padded(shard: Tensor, shape: Sequence[int], world: World) -> Tensor:
    """A shard as a vector of the size of the largest: only the last ones are smaller."""
    first, last = rows_of(tuple(shape), 0, world.size)
    return F.pad(shard.detach().flatten(), (0, (last - first) * math.prod(shape[1:]) - shard.numel()))
