"""A model that is cut into shards, put together on the first process: to pack it, to save it, to look at it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..compressed_model import unwrapped
from ..tasks import BoundTask, remember
from .sharded import is_dtensor, local, reshard
from .sharded_c_step import gather_shards, owners_of
from .wire import decode, encode
from .world import World

__all__ = ["collect"]


@torch.no_grad()
def collect(model: nn.Module, tasks: Sequence[BoundTask], plain: nn.Module | None, world: World) -> nn.Module | None:
    """See :meth:`lc.LCAlgorithm.collect`."""
    model = unwrapped(model)
    reshard(model)
    mine = dict(model.state_dict(keep_vars=True))
    theirs = {} if plain is None or not world.first else plain.state_dict(keep_vars=True)

    def check() -> None:
        if not world.first:
            return
        if plain is None:
            raise ValueError("plain must be a model on the first process, got None")
        shapes = [{name: tuple(t.shape) for name, t in own.items()} for own in (mine, theirs)]
        if shapes[0] != shapes[1]:
            odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
            raise ValueError(f"plain must have the parameters and buffers of the model, got other ones: {odd}")

    world.together(check)
    for name, t in mine.items():
        whole = _whole(local(t.detach()), t.shape, world) if is_dtensor(t) else t.detach()
        if whole is not None and world.first:
            theirs[name].copy_(whole)
    split = [task for task in tasks if task.sharded]
    owner = dict(zip([task.name for task in split], owners_of(split, world), strict=True))
    parameters = {} if plain is None else dict(plain.named_parameters(remove_duplicate=False))
    bound = []
    for task in tasks:
        compression = task.compression.fresh()
        compression.load_state_dict(_learned(task, owner.get(task.name), world))
        shapes = [p.shape for p in task.parameters]
        delta = [_whole(d, shape, world) if task.sharded else d for d, shape in zip(task.delta, shapes, strict=True)]
        if world.first:
            whole = [d.to(parameters[name].device) for d, name in zip(delta, task.names, strict=True) if d is not None]
            bound.append(BoundTask(task.names, [parameters[n] for n in task.names], compression, whole))
    if not world.first or plain is None:
        return None
    remember(plain, bound)
    return plain


def _whole(shard: Tensor, shape: Sequence[int], world: World) -> Tensor | None:
    return gather_shards(shard, shape, 0, world)


def _learned(task: BoundTask, owner: int | None, world: World) -> dict[str, object]:
    """The state of a compression on the first process: from its owner, or from its shards."""
    if not task.sharded:
        return task.compression.state_dict()
    if owner is not None:
        described, buffer = encode(task.compression.state_dict()) if owner == world.rank else (None, torch.empty(0))
        described, size = world.gather((described, buffer.numel()))[owner]
        there = buffer if owner == world.rank else torch.empty(size, dtype=torch.uint8)
        state: dict[str, object] = decode(described, world.broadcast(there, owner), task.delta[0].device)
        return state
    state = dict(task.compression.state_dict())
    for name, value in state.items():
        if isinstance(value, list):  # a tensor like each parameter
            wholes = [_whole(t, p.shape, world) for t, p in zip(value, task.parameters, strict=True)]
            state[name] = [t for t in wholes if t is not None]
    return state
