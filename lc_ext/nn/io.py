"""One file for a partly packed model: safetensors, or a smaller archive, with the packed layers described in it.

The metadata of the safetensors has one entry, ``lc_ext``: a JSON object of ``format`` ("lc_ext.packed"),
``format_version`` (1), ``modules`` (path of a packed layer -> its class and constructor arguments), ``shared`` (path of
a module that is also elsewhere -> that path), ``tied`` (name of a tensor that is stored under another name -> that
name) and ``sha256`` of all that and of every tensor. An archive has the same in its header:
:mod:`lc_ext.nn.archive`.
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
from ._header import MAGICS
from .archive import empty_tensors, read_archive, read_tensors, write_archive
from .conv import LUTConv1d, LUTConv2d, PackedConv, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d
from .low_rank_conv import LowRankConv1d, LowRankConv2d
from .low_rank_linear import LowRankLinear
from .lut_embedding import LUTEmbedding
from .lut_linear import LUTLinear
from .nm_linear import NMLinear
from .packed import PackedLayer
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = ["load", "save"]

FORMAT, VERSION = "lc_ext.packed", 1
ARCHIVE = ".lcz"
_LINEAR = (LUTLinear, NMLinear, SparseLinear, LowRankLinear, SumLinear, nn.Linear)
_CONV = (LUTConv1d, LUTConv2d, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d, LowRankConv1d, LowRankConv2d)
_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (*_LINEAR, *_CONV, LUTEmbedding)}
_Model = TypeVar("_Model", bound=nn.Module)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model with packed layers to one file.

    Parameters
    ----------
    model : any module; its packed layers may be anywhere in it, or be it.
    path : the file. It is replaced only when the new one is complete and on disk. A name that ends in ``.lcz`` makes an
        archive: codes, gaps and values are entropy-coded, for the smallest file; it takes the package ``constriction``.

    Raises
    ------
    ImportError : for an archive where the entropy coder is not installed.
    TypeError : if the state dict of ``model`` holds something that is not a dense tensor.
    OSError : if the file cannot be written.

    Notes
    -----
    Tensors that are the same (tied weights) are stored once; tensors on a GPU are copied to the host.
    """
    tensors, tied = _tensors(model)
    modules, shared = _modules(model)
    spec = {"format": FORMAT, "format_version": VERSION, "modules": modules, "shared": shared, "tied": tied}
    if os.fspath(path).endswith(ARCHIVE):
        with replacing(path) as scratch, open(scratch, "wb") as file:
            write_archive(file, spec, tensors, model)
        return
    spec["sha256"] = _digest(spec, tensors)
    with replacing(path) as scratch:
        safetensors.torch.save_file(tensors, scratch, metadata={"lc_ext": json.dumps(spec)})


def load(path: str | os.PathLike[str], model: _Model) -> _Model:
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    path : the file.
    model : a dense model of the architecture that was packed. The layers that the file holds packed are replaced, on
        their device; every other tensor is overwritten.

    Returns
    -------
    model : ``model``, or the packed layer that takes its place if ``model`` is itself one layer.

    Raises
    ------
    ValueError : naming the file and the reason, if the file is corrupt, truncated, of another format or version, or
        for another architecture. ``model`` is unchanged then.
    OSError : if the file cannot be read.
    """
    with open(path, "rb") as file:  # an OSError, if there is one, rather than safetensors' own error
        archive = file.read(4) in MAGICS
    try:
        tensors, spec = _read_archive(path, model) if archive else _read(path)
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
        _check_spec(spec)
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    if spec.get("sha256") != _digest(spec, tensors):
        raise ValueError("corrupt: the checksum does not match")
    _tie(tensors, spec)
    return tensors, spec


def _read_archive(path: str | os.PathLike[str], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same of an archive. Its tensors are decoded only if their shapes are those of the model."""
    spec, reader = read_archive(path)
    _check_spec(spec)
    most = 4 * sum(t.numel() for t in model.state_dict().values()) + 1024  # of a few sparse parts, for example
    empty = empty_tensors(spec, most)
    _tie(empty, spec)
    _build(spec, empty, model)
    tensors = dict(read_tensors(spec, reader))
    _tie(tensors, spec)
    return tensors, spec


def _check_spec(spec: Any) -> None:
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    if spec.get("format_version") != VERSION:
        raise ValueError(f"format_version must be {VERSION}, got {spec.get('format_version')!r}")
    for key in ("modules", "shared", "tied"):
        if not isinstance(spec.get(key), dict):
            raise ValueError(f"metadata must hold an object {key!r}")


def _tie(tensors: dict[str, Tensor], spec: dict[str, Any]) -> None:
    for name, stored in spec["tied"].items():
        if name in tensors or stored not in tensors:
            raise ValueError(f"tensor {name!r} is tied to {stored!r}, which is not stored")
        tensors[name] = tensors[stored]


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
        try:
            layer.check_replaces(dense)
        except ValueError as error:
            raise ValueError(f"module {path!r} {error}") from error
        prefix = len(path) + 1 if path else 0
        layer.load_state_dict({name[prefix:]: t for name, t in own.items()}, strict=True, assign=True)
        if not any(t.is_meta for t in own.values()):  # they are where only the shapes are to be checked
            layer = layer.to(_device_of(dense))
        packed[path] = layer.train(dense.training)
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


def _dense_at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"module {path!r} is not in the model") from error


def _device_of(module: nn.Module) -> torch.device:
    return next((t.device for t in module.parameters()), torch.device("cpu"))


def _construct(described: Any, path: str) -> Any:
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
    layers = [_construct(part, f"{path}.parts.{i}") for i, part in enumerate(parts)]
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
