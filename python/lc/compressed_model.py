"""The model with other weights in place: its compressed ones for an evaluation, with fresh batch statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .distributed.sharded import local, reshard, unwrapped
from .distributed.world import World
from .tasks import BoundTask

__all__ = ["compressed", "install", "recalibrate_alike", "recalibrate_bn", "unwrapped"]


@torch.no_grad()
def install(tasks: Sequence[BoundTask], tensors: Sequence[Sequence[Tensor]]) -> None:
    """Copy ``tensors[i][j]`` into parameter j of task i, or its local shard."""
    for task, values in zip(tasks, tensors, strict=True):
        for p, value in zip(task.parameters, values, strict=True):
            local(p).copy_(value)


@contextlib.contextmanager
def compressed(
    model: nn.Module, tasks: Sequence[BoundTask], batches: Iterable[Any] | None = None, world: World | None = None
) -> Iterator[nn.Module]:
    """The model with its compressed weights and in evaluation mode; both are undone afterwards.

    With ``batches``, the statistics of its batch normalisations are those of the compressed net on these inputs.
    """
    reshard(model)
    weights = [[local(p.detach()).clone() for p in task.parameters] for task in tasks]
    modes = {module: module.training for module in model.modules()}
    statistics = [(b, b.clone()) for norm in _norms(model) for b in norm.buffers(recurse=False)] if batches else []
    install(tasks, [task.delta for task in tasks])
    try:
        if batches is not None:
            recalibrate_alike(model, batches, world or World())
        model.eval()
        yield model
    finally:
        reshard(model)
        install(tasks, weights)
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def recalibrate_alike(model: nn.Module, batches: Iterable[Any], world: World) -> None:
    """:func:`recalibrate_bn` in every process; the statistics of the first are then those of all."""
    recalibrate_bn(unwrapped(model), batches)
    reshard(model)
    for norm in _norms(model):
        for buffer in norm.buffers(recurse=False):
            buffer.copy_(world.broadcast(buffer))


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of every batch normalisation to those of ``batches`` under the present weights.

    Parameters
    ----------
    model : its weights stay as they are, and so do the training modes of its modules.
    batches : inputs; or tuples such as (input, label), of which the first item is taken; or dictionaries of keyword
        arguments. A hundred are plenty.

    Raises
    ------
    ValueError : if the model has batch normalisations and there are no batches.

    Notes
    -----
    The mean over the batches of each batch's mean and variance. Compressed weights change what reaches a normalisation;
    without this a net pruned to 10 % may fall to chance. No effect on a model without batch normalisation.

    Examples
    --------
    >>> lc.recalibrate_bn(model, batches)
    """
    norms = _norms(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    seen = 0
    try:
        for batch in batches:
            if isinstance(batch, dict):
                model(**batch)
            else:
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("batches must hold at least one batch: the statistics have been reset (an iterator used up?)")


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    batch_norm = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, batch_norm) and m.track_running_stats]
