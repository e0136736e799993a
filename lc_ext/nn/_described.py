"""Packed layers as JSON, and back."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from ._activations import activation_of
from .conv import LUTConv1d, LUTConv2d, PackedConv, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d
from .low_rank_conv import LowRankConv1d, LowRankConv2d
from .low_rank_linear import LowRankLinear
from .lut_embedding import LUTEmbedding
from .lut_linear import LUTLinear
from .nm_linear import NMLinear
from .packed import PackedLayer, PackedLinear
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = ["check_fused", "construct", "fused_activations", "packed_modules"]

_LINEAR = (LUTLinear, NMLinear, SparseLinear, LowRankLinear, SumLinear, nn.Linear)
_CONV = (LUTConv1d, LUTConv2d, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d, LowRankConv1d, LowRankConv2d)
_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (*_LINEAR, *_CONV, LUTEmbedding)}


def packed_modules(model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """The packed layers of a model by path, and the paths of those that are also elsewhere.

    Raises
    ------
    TypeError : for a class of packed layer that is not known.
    """
    modules: dict[str, Any] = {}
    shared: dict[str, str] = {}
    first: dict[nn.Module, str] = {}

    def visit(module: nn.Module, path: str) -> None:
        if isinstance(module, PackedLayer):
            if module in first:
                shared[path] = first[module]
            else:
                first[module] = path
                modules[path] = _describe(module)
            return
        for name, child in module._modules.items():
            if child is not None:
                visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return modules, shared


def fused_activations(model: nn.Module) -> dict[str, str]:
    """Paths of what stands in a ``Sequential`` for an activation that the layer before it has taken over -> that layer.

    ``load`` puts it there, too, where the model that is given has the activation.
    """
    fused: dict[str, str] = {}
    for path, module in model.named_modules():
        if type(module) is nn.Sequential:
            for (before, layer), (name, after) in itertools.pairwise(module._modules.items()):
                if isinstance(layer, PackedLinear) and layer.activation is not None and type(after) is nn.Identity:
                    prefix = f"{path}." if path else ""
                    fused[prefix + name] = prefix + before
    return fused


def check_fused(fused: Any, packed: dict[str, nn.Module], model: nn.Module) -> list[str]:
    """The paths in a model where an activation gives way to ``nn.Identity``.

    Parameters
    ----------
    fused : as a file says.
    packed : the layers of the file.

    Raises
    ------
    ValueError : if it does not fit the model, or the layers.
    """
    if not isinstance(fused, dict):
        raise ValueError(f"metadata must hold an object 'fused', got {type(fused).__name__}")
    paths = []
    for path, before in fused.items():
        layer = packed.get(before) if isinstance(before, str) else None
        above, _, name = path.rpartition(".")
        try:
            parent = model.get_submodule(above)
        except AttributeError as error:
            raise ValueError(f"module {path!r} is not in the model") from error
        prefix = f"{above}." if above else ""
        names = [prefix + child for child in parent._modules] if type(parent) is nn.Sequential else []
        if not isinstance(layer, PackedLinear) or (before, path) not in itertools.pairwise(names):
            raise ValueError(f"module {path!r} must follow a packed linear layer in a Sequential, got {before!r}")
        dense = parent._modules[name]
        assert dense is not None
        if type(dense) is nn.Identity:
            continue
        if layer.activation is None or activation_of(dense) != layer.activation:
            raise ValueError(f"module {path!r} must be {layer.activation} in the model, got {type(dense).__name__}")
        paths.append(path)
    return paths


def _describe(layer: nn.Module) -> dict[str, Any]:
    name = type(layer).__name__
    if _CLASSES.get(name) is not type(layer):
        raise TypeError(f"cannot save a layer of class {type(layer).__qualname__}: not one of {sorted(_CLASSES)}")
    if isinstance(layer, SumLinear):
        return {"class": name, "arguments": layer.config(), "parts": [_describe(part) for part in layer.parts]}
    if isinstance(layer, (PackedConv, LUTEmbedding)):
        return {"class": name, "arguments": layer.config(), "parts": [_describe(layer.matrix)]}
    if isinstance(layer, PackedLayer):
        return {"class": name, "arguments": layer.config()}
    assert isinstance(layer, nn.Linear)
    shape = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {"class": name, "arguments": {**shape, "bias": layer.bias is not None}}


def construct(described: Any, path: str) -> Any:
    """The layer that ``described`` describes, with no data."""
    if not isinstance(described, dict) or not isinstance(described.get("arguments"), dict):
        raise ValueError(f"module {path!r} has no class and arguments")
    name, arguments = described.get("class"), described["arguments"]
    cls = _CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"module {path!r} is of class {name!r}, not one of {sorted(_CLASSES)}")
    if not issubclass(cls, (SumLinear, PackedConv, LUTEmbedding)):
        return cls(**arguments)
    parts = described.get("parts")
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"module {path!r} has no parts")
    layers = [construct(part, f"{path}.parts.{i}") for i, part in enumerate(parts)]
    if cls is not SumLinear:
        if len(layers) != 1:
            raise ValueError(f"module {path!r} must have one matrix, got {len(layers)}")
        if getattr(layers[0], "activation", None) is not None:
            raise ValueError(f"module {path!r} must have a matrix without an activation")
        return cls(*layers, **arguments)
    bias = torch.zeros(layers[0].out_features, dtype=torch.float32) if arguments.get("bias") else None
    layer = SumLinear(layers, bias, arguments.get("activation"))
    if layer.config() != arguments:
        raise ValueError(f"module {path!r} has arguments {arguments}, but its parts make {layer.config()}")
    return layer
