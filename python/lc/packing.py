"""From a compressed model to one that stores and runs its weights packed."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from .algorithm import tasks_of
from .tasks import BoundTask

__all__ = ["pack"]

log = logging.getLogger(__name__)


@torch.no_grad()
def pack(model: nn.Module) -> nn.Module:
    """A copy of a compressed model, its compressed ``nn.Linear`` layers replaced by packed ones.

    Parameters
    ----------
    model : compressed by an :class:`lc.LCAlgorithm` whose run has ended.

    Returns
    -------
    packed : a new model with layers of :mod:`lc_ext.nn` in place. ``lc.save`` writes it, ``lc.load`` reads it.

    Raises
    ------
    ValueError : if the model was not compressed, or its weights have changed since.

    Notes
    -----
    Layers of other types keep their compressed weights in dense form, and a warning names them.
    """
    layers: dict[str, nn.Module] = {}
    for task in tasks_of(model):
        _check_unchanged(task)
        for i, name in enumerate(task.names):
            path, _, kind = name.rpartition(".")
            layer = model.get_submodule(path)
            if type(layer) is not nn.Linear or kind != "weight":
                log.warning("%s of %s has no packed layer: it stays dense", name, type(layer).__name__)
                continue
            bias = None if layer.bias is None else layer.bias.detach()
            packed = task.compression.linear(i, None if bias is None else bias.float())
            layers[path] = packed.to(layer.weight.device).train(layer.training)
    if "" in layers:
        return layers[""]
    # Leave the dense weights out of the copy.
    memo = {id(model.get_submodule(path)): layer for path, layer in layers.items()}
    return copy.deepcopy(model, memo)


def _check_unchanged(task: BoundTask) -> None:
    for name, p, delta in zip(task.names, task.parameters, task.delta, strict=True):
        if not torch.equal(p.detach(), delta.to(p)):
            raise ValueError(
                f"parameter {name!r} does not hold its compressed weights: run the LC algorithm to its end, and pack "
                "before any further training"
            )
