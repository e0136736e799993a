"""From a compressed model to one that stores and runs its weights packed."""

from __future__ import annotations

import copy
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lc_ext.nn import LUTEmbedding, LUTLinear, PackedLayer, PackedLinear
from lc_ext.nn._activations import activation_of

from .compressed_model import unwrapped
from .compressions import Compression
from .profiling import Profile, profile
from .tasks import BoundTask, tasks_of

__all__ = ["pack"]

MODES = ("exact", "fast", "int8")

log = logging.getLogger(__name__)


@torch.no_grad()
def pack(
    model: nn.Module,
    example_input: Any = None,
    *,
    modes: Sequence[str] = ("exact",),
    batches: Sequence[int] = (1, 32),
    fuse_activations: bool = True,
) -> nn.Module:
    """A copy of a compressed model, its compressed layers replaced by packed ones.

    Packed are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Embedding``.

    Parameters
    ----------
    model : compressed by an :class:`lc.LCAlgorithm` whose run has ended.
    example_input : None; or what the model is called with, a tensor or a tuple of arguments. Then each packed layer is
        timed against its dense one (:func:`lc.profile`), and a warning names those that are slower, and where.
    modes : arithmetics that layers of codes may use, "exact", "fast" (16-bit tables) and "int8". With an example input,
        each layer takes the one that is fastest over the batches; without, all take the first.
    batches : batch sizes to time.
    fuse_activations : whether a packed linear layer takes over the ``nn.ReLU``, ``nn.GELU`` or ``nn.SiLU`` that follows
        it directly in an ``nn.Sequential``, and leaves an ``nn.Identity`` there: the same function, computed while the
        result is in the cache. False where something else uses the layer's result before its activation.

    Returns
    -------
    packed : a new model with layers of :mod:`lc_ext.nn` in place. ``lc.save`` writes it, ``lc.load`` reads it.

    Raises
    ------
    TypeError, ValueError : if the model was not compressed, or its weights have changed since; for an unknown mode.

    Notes
    -----
    Layers of other types keep their compressed weights in dense form, and a warning names them.

    Examples
    --------
    >>> algorithm = lc.compress(model, lc.Task(nn.Linear, lc.Quantize(2)), train_epoch, mu=[1e-2], epochs_per_step=1)
    >>> lc.pack(model)[0]
    LUTLinear(in_features=8, out_features=16, bits=1, codebook_size=2, bias=True)
    """
    if not modes or any(mode not in MODES for mode in modes):
        raise ValueError(f"modes must be some of {MODES}, got {modes!r}")
    if not isinstance(fuse_activations, bool):
        raise TypeError(f"fuse_activations must be True or False, got {fuse_activations!r}")
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
    result = copy.deepcopy(model, {id(layer): new for layer, new in packed.items()})
    _set_mode(result, modes[0])
    if fuse_activations:
        _fuse(result)
    if example_input is not None and packed:
        _choose_modes(result, example_input, modes, batches)
    return result


def _set_mode(module: nn.Module, mode: str) -> None:
    for m in module.modules():
        if isinstance(m, LUTLinear):
            m.mode = mode


def _fuse(model: nn.Module) -> None:
    """Let packed layers apply the activations that follow them, where these are all that sees their results."""
    places = Counter(child for module in model.modules() for child in module._modules.values())
    for module in model.modules():
        if type(module) is not nn.Sequential:
            continue
        for (_, layer), (name, after) in itertools.pairwise(list(module._modules.items())):
            if not isinstance(layer, PackedLinear) or layer.activation is not None or after is None:
                continue
            seen = places[layer] > 1 or any(m._forward_hooks or m._forward_pre_hooks for m in (layer, after))
            if not seen and (activation := activation_of(after)) is not None:
                layer.activation = activation
                module._modules[name] = nn.Identity().train(after.training)


def _choose_modes(packed: nn.Module, example_input: Any, modes: Sequence[str], batches: Sequence[int]) -> None:
    """Give each layer its fastest mode, and warn of the layers that are slower than dense."""
    profiles: dict[str, Profile] = {}
    for mode in modes:
        _set_mode(packed, mode)
        profiles[mode] = profile(packed, example_input, batches=batches)
    _set_mode(packed, modes[0])  # of layers that the model did not call
    for layers in zip(*(p.layers for p in profiles.values()), strict=True):
        ratios = [
            sum(layer.milliseconds[b] / max(layer.dense_milliseconds[b], 1e-9) for b in batches) for layer in layers
        ]
        best = min(range(len(modes)), key=ratios.__getitem__)
        layer = layers[best]
        _set_mode(packed.get_submodule(layer.name), modes[best])
        if layer.slower_at:
            times = ", ".join(
                f"{layer.milliseconds[b]:.3f} ms against {layer.dense_milliseconds[b]:.3f} at batch {b}"
                for b in layer.slower_at
            )
            log.warning("%s, %s, is slower than dense: %s", layer.name, layer.kind, times)


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
