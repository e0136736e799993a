"""Packed layers as JSON, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .conv import LUTConv1d, LUTConv2d, PackedConv, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d
from .low_rank_conv import LowRankConv1d, LowRankConv2d
from .low_rank_linear import LowRankLinear
from .lut_embedding import LUTEmbedding
from .lut_linear import LUTLinear
from .nm_linear import NMLinear
from .packed import PackedLayer
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = ["construct", "packed_modules"]

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
        return cls(*layers, **arguments)
    layer = SumLinear(
        layers, torch.zeros(layers[0].out_features, dtype=torch.float32) if arguments.get("bias") and layers else None
    )
    if layer.config() != arguments:
        raise ValueError(f"module {path!r} has arguments {arguments}, but its parts make {layer.config()}")
    return layer
