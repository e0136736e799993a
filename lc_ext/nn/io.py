"""One file for a partly packed model: safetensors, with the packed layers described in the metadata.

The metadata has one entry, ``lc_ext``: a JSON object of ``format`` ("lc_ext.packed"), ``format_version`` (1),
``modules`` (path of a packed layer -> its class and constructor arguments), ``shared`` (path of a module that is also
elsewhere -> that path), ``tied`` (name of a tensor that is stored under another name -> that name) and ``sha256`` of
all that and of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .._files import replacing
from .low_rank_linear import LowRankLinear
from .lut_linear import LUTLinear
from .nm_linear import NMLinear
from .packed import PackedLinear
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = ["load", "save"]

FORMAT, VERSION = "lc_ext.packed", 1
_CLASSES = {cls.__name__: cls for cls in (LUTLinear, NMLinear, SparseLinear, LowRankLinear, SumLinear, nn.Linear)}
_Model = TypeVar("_Model", bound=nn.Module)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model with packed layers to one file.

    Parameters
    ----------
    model : any module; its packed layers may be anywhere in it, or be it.
    path : the file. It is replaced only when the new one is complete and on disk.

    Raises
    ------
    TypeError : if the state dict of ``model`` holds something that is not a dense tensor.
    OSError : if the file cannot be written.

    Notes
    -----
    Tensors that are the same (tied weights) are stored once; tensors on a GPU are copied to the host.
    """
    tensors, tied = _tensors(model)
    modules, shared = _modules(model)
    spec = {"format": FORMAT, "format_version": VERSION, "modules": modules, "shared": shared, "tied": tied}
    spec["sha256"] = _digest(spec, tensors)
    with replacing(path) as scratch:
        safetensors.torch.save_file(tensors, scratch, metadata={"lc_ext": json.dumps(spec)})


def load(path: str | os.PathLike[str], model: _Model) -> _Model:
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    path : the file.
    model : a dense model of the architecture that was packed. The ``nn.Linear`` layers that the file holds packed are
        replaced, on their device; every other tensor is overwritten.

    Returns
    -------
    model : ``model``, or the packed layer that takes its place if ``model`` is itself one ``nn.Linear``.

    Raises
    ------
    ValueError : naming the file and the reason, if the file is corrupt, truncated, of another format or version, or
        for another architecture. ``model`` is unchanged then.
    OSError : if the file cannot be read.
    """
    with open(path, "rb"):  # an OSError, if there is one, rather than safetensors' own error
        pass
    try:
        tensors, spec = _read(path)
        packed, rest = _build(spec, tensors, model)
    except (ValueError, TypeError, RuntimeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    model.load_state_dict(rest, strict=False)  # names, shapes and dtypes are those of the model: _build has checked
    for name, layer in packed.items():
        if not name:
            return layer  # type: ignore[return-value]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What to store, each tensor once and in its own memory, and the names that mean another's tensor."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, t in model.state_dict().items():
        if not isinstance(t, Tensor) or t.layout != torch.strided:
            raise TypeError(f"{name} in the state dict of the model must be a dense tensor, got {type(t).__name__}")
        key = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        if t.numel() and key in seen:
            tied[name] = seen[key]
            continue
        seen[key] = name
        own = t.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in storages:  # a view of more, or of another's
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        tensors[name] = own
    return tensors, tied


def _modules(model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    modules: dict[str, Any] = {}
    shared: dict[str, str] = {}
    first: dict[nn.Module, str] = {}

    def visit(module: nn.Module, path: str) -> None:
        if isinstance(module, PackedLinear):
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
    if isinstance(layer, PackedLinear):
        return {"class": name, "arguments": layer.config()}
    assert isinstance(layer, nn.Linear)
    shape = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {"class": name, "arguments": {**shape, "bias": layer.bias is not None}}


def _digest(spec: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    described = {key: value for key, value in spec.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        if t.numel():
            digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of our format, whole."""
    with safetensors.safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lc_ext")
        if text is None:
            raise ValueError(f"no metadata of {FORMAT}: not written by lc_ext.nn.save")
        spec = json.loads(text)
        if not isinstance(spec, dict) or spec.get("format") != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}")
        if spec.get("format_version") != VERSION:
            raise ValueError(f"format_version must be {VERSION}, got {spec.get('format_version')!r}")
        for key in ("modules", "shared", "tied"):
            if not isinstance(spec.get(key), dict):
                raise ValueError(f"metadata must hold an object {key!r}")
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    if spec.get("sha256") != _digest(spec, tensors):
        raise ValueError("corrupt: the checksum does not match")
    for name, stored in spec["tied"].items():
        if name in tensors or stored not in tensors:
            raise ValueError(f"tensor {name!r} is tied to {stored!r}, which is not stored")
        tensors[name] = tensors[stored]
    return tensors, spec


def _build(
    spec: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """The packed layers by path, and the tensors of the rest; ``model`` is only looked at."""
    packed: dict[str, nn.Module] = {}
    rest = dict(tensors)
    expected = dict(model.state_dict())
    paths = {**{path: path for path in spec["modules"]}, **spec["shared"]}
    for path, source in paths.items():
        dense = _dense_at(model, path)
        for name in [name for name in expected if _inside(name, path)]:
            del expected[name]
        own = {name: rest.pop(name) for name in list(rest) if _inside(name, path)}
        if path != source:
            if source not in packed:
                raise ValueError(f"module {path!r} is shared with {source!r}, which is not packed")
            packed[path] = packed[source]
            continue
        with torch.device("meta"):  # no memory before the shapes are known to be those of the file
            layer = _construct(spec["modules"][path], path)
        if (layer.in_features, layer.out_features) != (dense.in_features, dense.out_features):
            raise ValueError(
                f"module {path!r} is {layer.in_features} -> {layer.out_features} in the file, "
                f"{dense.in_features} -> {dense.out_features} in the model"
            )
        prefix = len(path) + 1 if path else 0
        layer.load_state_dict({name[prefix:]: t for name, t in own.items()}, strict=True, assign=True)
        packed[path] = layer.to(dense.weight.device).train(dense.training)
    if missing := sorted(set(expected) - set(rest)):
        raise ValueError(f"tensors of the model are not in the file: {', '.join(missing)}")
    if unknown := sorted(set(rest) - set(expected)):
        raise ValueError(f"tensors in the file are not in the model: {', '.join(unknown)}")
    for name, t in rest.items():
        if t.shape != expected[name].shape or t.dtype != expected[name].dtype:
            raise ValueError(
                f"tensor {name!r} is {t.dtype} {tuple(t.shape)} in the file, "
                f"{expected[name].dtype} {tuple(expected[name].shape)} in the model"
            )
    return packed, rest


def _inside(name: str, path: str) -> bool:
    return not path or name.startswith(path + ".")


def _dense_at(model: nn.Module, path: str) -> nn.Linear:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"module {path!r} is not in the model") from error
    if not isinstance(module, nn.Linear):
        raise ValueError(f"module {path!r} must be an nn.Linear in the model, got {type(module).__name__}")
    return module


def _construct(described: Any, path: str) -> Any:
    """The layer that ``described`` describes, with no data."""
    if not isinstance(described, dict) or not isinstance(described.get("arguments"), dict):
        raise ValueError(f"module {path!r} has no class and arguments")
    name, arguments = described.get("class"), described["arguments"]
    cls = _CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"module {path!r} is of class {name!r}, not one of {sorted(_CLASSES)}")
    if cls is not SumLinear:
        return cls(**arguments)
    parts = described.get("parts")
    if not isinstance(parts, list):
        raise ValueError(f"module {path!r} has no parts")
    layers = [_construct(part, f"{path}.parts.{i}") for i, part in enumerate(parts)]
    layer = SumLinear(
        layers, torch.zeros(layers[0].out_features, dtype=torch.float32) if arguments.get("bias") and layers else None
    )
    if layer.config() != arguments:
        raise ValueError(f"module {path!r} has arguments {arguments}, but its parts make {layer.config()}")
    return layer
