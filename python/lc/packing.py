"""From a compressed model to one that stores and runs its weights packed."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from .compressed_model import unwrapped
from .tasks import BoundTask, tasks_of

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

    Examples
    --------
    >>> algorithm = lc.compress(model, lc.Task(nn.Linear, lc.Quantize(2)), train_epoch, mu=[1e-2], epochs_per_step=1)
    >>> lc.pack(model)[0]
    LUTLinear(in_features=8, out_features=16, bits=1, codebook_size=2, bias=True)
    """
    model = unwrapped(model)
    packed: dict[nn.Module, nn.Module] = {}  # layer -> what takes its place
    for task in tasks_of(model):
        _check_unchanged(task)
        for i, p in enumerate(task.parameters):
            for path, layer in model.named_modules():  # all that share the weight
                name = next((name for name, own in layer.named_parameters(recurse=False) if own is p), None)
                if name is None:
                    continue
                if type(layer) is not nn.Linear or name != "weight":
                    log.warning("%s.%s of %s has no packed layer: it stays dense", path, name, type(layer).__name__)
                    continue
                bias = None if layer.bias is None else layer.bias.detach().float()
                made = task.compression.linear(i, bias)
                if made is None:
                    log.warning("%s has no packed layer for %s: it stays dense", path, type(task.compression).__name__)
                    continue
                packed[layer] = made.to(p.device).train(layer.training)
    # deepcopy takes the packed layers for copies of the dense ones, so no dense weight is copied.
    return copy.deepcopy(model, {id(layer): new for layer, new in packed.items()})


def _check_unchanged(task: BoundTask) -> None:
    for name, p, delta in zip(task.names, task.parameters, task.delta, strict=True):
        if not torch.equal(p.detach(), delta.to(p)):
            raise ValueError(
                f"parameter {name!r} does not hold its compressed weights: run the LC algorithm to its end, and pack "
                "before any further training"
            )
