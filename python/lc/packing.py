"""From a compressed model to one that stores and runs its weights packed."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from lc_ext.nn import LUTEmbedding, LUTLinear, PackedLayer

from .compressed_model import unwrapped
from .compressions import Compression
from .tasks import BoundTask, tasks_of

__all__ = ["pack"]

log = logging.getLogger(__name__)


@torch.no_grad()
def pack(model: nn.Module) -> nn.Module:
    """A copy of a compressed model, its compressed layers replaced by packed ones.

    Packed are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Embedding``.

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
                made = _packed(layer, task.compression, i) if name == "weight" else None
                if made is None:
                    of, by = type(layer).__name__, type(task.compression).__name__
                    log.warning("%s.%s of %s, by %s, has no packed layer: it stays dense", path, name, of, by)
                    continue
                packed[layer] = made.to(p.device).train(layer.training)
    # deepcopy takes the packed layers for copies of the dense ones, so no dense weight is copied.
    return copy.deepcopy(model, {id(layer): new for layer, new in packed.items()})


def _packed(layer: nn.Module, compression: Compression, i: int) -> PackedLayer | None:
    """The packed form of a layer, if there is one."""
    bias = getattr(layer, "bias", None)
    bias = bias.detach().float() if isinstance(bias, Tensor) else None
    if type(layer) is nn.Linear:
        return compression.linear(i, bias)
    if type(layer) in (nn.Conv1d, nn.Conv2d):
        return compression.conv(i, layer, bias)
    if type(layer) is nn.Embedding and layer.max_norm is None:
        table = compression.linear(i, None)
        return LUTEmbedding(table, layer.padding_idx) if isinstance(table, LUTLinear) else None
    return None


def _check_unchanged(task: BoundTask) -> None:
    for name, p, delta in zip(task.names, task.parameters, task.delta, strict=True):
        if not torch.equal(p.detach(), delta.to(p)):
            raise ValueError(
                f"parameter {name!r} does not hold its compressed weights: run the LC algorithm to its end, and pack "
                "before any further training"
            )
