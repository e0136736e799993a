"""Parameters that FSDP2 (``fully_shard``) has cut into shards: DTensors, split on dimension 0 over some processes.

The state of the LC algorithm for them is made of plain tensors, the local shards: elementwise work needs no more. Also
what else a model is wrapped in when several processes train it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn

from .world import World

__all__ = ["find_world", "is_dtensor", "local", "reshard", "rows_of", "shard_of", "unwrapped"]


def is_dtensor(t: Tensor) -> bool:
    """Whether ``t`` is a DTensor. (Nobody can have one before its module, which takes time to import, is there.)"""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """This process's shard of a DTensor, in the same memory; or the tensor itself."""
    if not is_dtensor(t):
        return t
    shard: Tensor = t.to_local()  # type: ignore[attr-defined]
    return shard


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and (Distributed)DataParallel."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        model = cast(nn.Module, inner)
    return model


def rows_of(shape: tuple[int, ...], rank: int, size: int) -> tuple[int, int]:
    """The rows of a tensor that a process holds, first and last: equal shares, the last ones smaller or empty."""
    share = math.ceil(shape[0] / size)
    return min(rank * share, shape[0]), min((rank + 1) * share, shape[0])


def shard_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor that belongs to the local shard of ``like``."""
    if not is_dtensor(like) or is_dtensor(whole):
        return local(whole)
    mesh: Any = like.device_mesh  # type: ignore[attr-defined]
    first, last = rows_of(tuple(like.shape), mesh.get_local_rank(), mesh.size())
    return whole[first:last].clone()


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 has gathered for a forward pass, so that the shards are what counts."""
    for module in model.modules():
        free: Any = getattr(module, "reshard", None)
        if free is not None and hasattr(module, "unshard"):
            free()


def find_world(model: nn.Module, group: dist.ProcessGroup | None) -> World:
    """The processes that train ``model``: ``group``, or else those of its DistributedDataParallel or its shards.

    Raises
    ------
    ValueError : for parameters that are split in another way than ``fully_shard`` does on a mesh of one dimension.
    """
    reshard(model)
    found = [group, *_of_wrappers(model), *_of_shards(model.parameters())]
    groups = [g for g in found if g is not None]
    if any(dist.get_process_group_ranks(g) != dist.get_process_group_ranks(groups[0]) for g in groups):
        raise ValueError("the model is spread over another group of processes than the one that was given")
    return World(groups[0] if groups else None)


def _of_wrappers(model: nn.Module) -> Iterable[dist.ProcessGroup]:
    return [m.process_group for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]


def _of_shards(parameters: Iterable[nn.Parameter]) -> Iterable[dist.ProcessGroup]:
    groups = {}
    for p in parameters:
        if not is_dtensor(p):
            continue
        mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
        first, last = rows_of(tuple(p.shape), mesh.get_local_rank(), mesh.size()) if mesh.ndim == 1 else (0, 0)
        if mesh.ndim != 1 or not placements[0].is_shard(0) or local(p.detach()).shape[0] != last - first:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is placed as {placements} on a mesh of shape "
                f"{tuple(mesh.shape)}: only shards of dimension 0 over one dimension of processes are known"
            )
        groups[mesh.get_group().group_name] = mesh.get_group()
    return groups.values()
