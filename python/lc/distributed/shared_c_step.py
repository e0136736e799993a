"""C steps of parameters of which every process has a replica: shared out, each solved once, and what was learned sent.

Greedy bin packing of the estimated costs says who solves what. From the owner goes what its compression has learned,
which is small (codes, codebooks, survivors, factors), and every process makes Delta from that itself. Every process
solves the tasks of a single pass, such as pruning: that takes less time than to pack, send and unpack the result.
"""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..tasks import BoundTask
from .wire import decode, encode, fingerprint
from .world import World

__all__ = ["Fit", "Shifted", "bin_pack", "fit_shared"]

Shifted = Callable[[BoundTask], list[Tensor]]
Fit = Callable[[BoundTask, list[Tensor], list[Tensor] | None], list[Tensor]]


def bin_pack(costs: Sequence[float], bins: int) -> list[int]:
    """A bin for each cost: the dearest first, each to the bin that has least so far, the lowest of equals."""
    heap = [(0.0, b) for b in range(bins)]
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, owners[i] = heapq.heappop(heap)
        heapq.heappush(heap, (load + costs[i], owners[i]))
    return owners


def cost_of(task: BoundTask) -> float:
    """The estimated time of a C step: the same number in every process and at every step."""
    return task.compression.cost([tuple(p.shape) for p in task.parameters])


def owners_of(tasks: Sequence[BoundTask], world: World) -> list[int | None]:
    """Who solves each task: None for everyone."""
    costs = [cost_of(task) for task in tasks]
    shared = [i for i, task in enumerate(tasks) if costs[i] > sum(p.numel() for p in task.parameters)]
    owners: list[int | None] = [None] * len(tasks)
    for i, owner in zip(shared, bin_pack([costs[i] for i in shared], world.size), strict=True):
        owners[i] = owner
    return owners


def fit_shared(tasks: Sequence[BoundTask], shifted: Shifted, fit: Fit, world: World) -> None:
    """Set the Delta of every task, and what its compression has learned, alike in all processes.

    Raises
    ------
    ValueError : if the processes do not have the same weights.
    """
    if not tasks:
        return
    owners = owners_of(tasks, world)
    payloads: dict[int, Tensor] = {}
    headers: dict[int, tuple[bytes, int, int]] = {}  # description, bytes, fingerprint of Delta
    failure: tuple[int, Exception] | None = None
    for i, task in enumerate(tasks):
        if owners[i] not in (world.rank, None):
            continue
        try:
            task.set_delta(fit(task, shifted(task), task.metric))
            if owners[i] is None:
                continue
            described, payloads[i] = encode(task.compression.state_dict())
            headers[i] = pickle.dumps(described), payloads[i].numel(), fingerprint(task.delta)
        except Exception as error:
            failure = i, error
            break
    world.raise_first(failure and failure[1], failure[0] if failure else 0)
    weights = [fingerprint(task.weights()) for task in tasks]
    everyone = world.gather((weights, headers))
    for i, task in enumerate(tasks):
        if len({theirs[i] for theirs, _ in everyone}) > 1:
            raise ValueError(f"the processes have different weights of {task.name}: are the gradients averaged?")
    differs = torch.zeros(len(tasks), dtype=torch.int64)
    for i, owner in enumerate(owners):
        if owner is None:
            continue
        task = tasks[i]
        described, size, expected = everyone[owner][1][i]
        mine = owner == world.rank
        buffer = world.broadcast(payloads.pop(i) if mine else torch.empty(size, dtype=torch.uint8), owner)
        if not mine:
            state = decode(pickle.loads(described), buffer, task.parameters[0].device)
            task.compression.load_state_dict(state)
            task.set_delta(task.compression.decompress())
            differs[i] = fingerprint(task.delta) != expected
    _resend(tasks, owners, world.sum(differs).tolist(), world)


def _resend(tasks: Sequence[BoundTask], owners: Sequence[int | None], differs: Sequence[int], world: World) -> None:
    """Send Delta itself where ``decompress`` gave another one than ``fit``, as on processors of another kind."""
    for task, owner, wrong in zip(tasks, owners, differs, strict=True):
        if wrong and owner is not None:
            task.delta = [world.broadcast(d, owner) for d in task.delta]
