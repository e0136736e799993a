"""One file for a partly packed model: safetensors, or a smaller archive, with the packed layers described in it.

The metadata of the safetensors has one entry, ``lc_ext``: a JSON object of ``format`` ("lc_ext.packed"),
``format_version`` (1), ``modules`` (path of a packed layer -> its class and constructor arguments), ``shared`` (path of
a module that is also elsewhere -> that path), ``tied`` (name of a tensor that is stored under another name -> that
name) and ``sha256`` of all that and of every tensor. Where there is something to say also ``structure``, how the whole
model is built (:mod:`lc_ext.nn.structure`), or ``needs_model``, why that cannot be said, and ``fused`` (path of an
``nn.Identity`` -> that of the layer before it, which has taken over the activation that was there). An archive has the
same in its header: :mod:`lc_ext.nn.archive`.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, TypeVar, overload

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .._files import replacing
from . import structure
from ._described import check_fused, construct, fused_activations, packed_modules
from ._header import MAGICS
from .archive import empty_tensors, read_archive, read_tensors, write_archive

__all__ = ["load", "save"]

FORMAT, VERSION = "lc_ext.packed", 1
ARCHIVE = ".lcz"
# The most elements that an archive may make of its bytes where no model says how many there should be: ten times as
# many as one of binary weights, of which one in a thousand differs, has.
_BUILT, _BUILT_PER_BYTE = 1 << 24, 256
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

    A model of packed layers, of the usual layers and containers of ``torch.nn`` and of ``lc.models`` is described in
    the file, so that ``load`` can build it. Of another one only the packed layers are.
    """
    tensors, tied = _tensors(model)
    modules, shared = packed_modules(model)
    spec: dict[str, Any] = {"format": FORMAT, "format_version": VERSION}
    spec.update(modules=modules, shared=shared, tied=tied)
    if fused := fused_activations(model):
        spec["fused"] = fused
    try:
        spec["structure"] = structure.describe(model, {**modules, **shared})
    except structure.Unknown as error:
        spec["needs_model"] = str(error)
    if os.fspath(path).endswith(ARCHIVE):
        with replacing(path) as scratch, open(scratch, "wb") as file:
            write_archive(file, spec, tensors, model)
        return
    spec["sha256"] = _digest(spec, tensors)
    with replacing(path) as scratch:
        safetensors.torch.save_file(tensors, scratch, metadata={"lc_ext": json.dumps(spec)})


@overload
def load(path: str | os.PathLike[str]) -> nn.Module: ...
@overload
def load(path: str | os.PathLike[str], model: _Model) -> _Model: ...
def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    path : the file.
    model : a dense model of the architecture that was packed. The layers that the file holds packed are replaced, on
        their device; every other tensor is overwritten. Without it the model is built, on the CPU, if the file says
        how.

    Returns
    -------
    model : ``model``, or the packed layer that takes its place if ``model`` is itself one layer. One that was built is
        in the mode, training or evaluation, that it was saved in.

    Raises
    ------
    ValueError : naming the file and the reason, if the file is corrupt, truncated, of another format or version, for
        another architecture, or does not say how its model is built. ``model`` is unchanged then.
    OSError : if the file cannot be read.

    Notes
    -----
    Nothing in a file is imported or executed: what is built are classes of a fixed list, by their own constructors.

    Examples
    --------
    >>> layers.save(nn.Sequential(layers.LUTLinear(8, 4, bits=2), nn.ReLU()), "net.safetensors")
    >>> layers.load("net.safetensors")[0]
    LUTLinear(in_features=8, out_features=4, bits=2, codebook_size=4, bias=True)
    """
    with open(path, "rb") as file:  # an OSError, if there is one, rather than safetensors' own error
        archive = file.read(4) in MAGICS
    try:
        tensors, spec, into = _read_archive(path, model) if archive else _read(path, model)
        packed, rest = _build(spec, tensors, into)
        fused = check_fused(spec.get("fused", {}), packed, into)
    except (ValueError, TypeError, RuntimeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    # Names, shapes and dtypes are those of the model: _build has checked.
    into.load_state_dict(_parameters(rest, into) if model is None else rest, strict=False, assign=model is None)
    for name in fused:
        packed[name] = nn.Identity().train(into.get_submodule(name).training)
    for name, layer in packed.items():
        if not name:
            return layer
        parent, _, child = name.rpartition(".")
        setattr(into.get_submodule(parent), child, layer)
    return into


def _parameters(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model without memory, as its parameters where it has them; those that are tied as one."""
    made: dict[int, nn.Parameter] = {}
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: made.setdefault(id(t), nn.Parameter(t)) if name in names else t for name, t in tensors.items()}


def _skeleton(spec: dict[str, Any]) -> nn.Module:
    if "structure" in spec:
        return structure.build(spec["structure"], {**spec["modules"], **spec["shared"]})
    reason = str(spec.get("needs_model", "it was written before files did"))[:200]
    raise ValueError(f"the file does not say how its model is built, give load a model to read it into: {reason}")


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


def _digest(spec: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    described = {key: value for key, value in spec.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        if t.numel():
            digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: str | os.PathLike[str], model: nn.Module | None) -> tuple[dict[str, Tensor], dict[str, Any], nn.Module]:
    """Tensors and description of a file of our format, whole, and the model to read it into."""
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
    return tensors, spec, _skeleton(spec) if model is None else model


def _read_archive(
    path: str | os.PathLike[str], model: nn.Module | None
) -> tuple[dict[str, Tensor], dict[str, Any], nn.Module]:
    """The same of an archive. Its tensors are decoded only if their shapes are those of the model."""
    spec, reader = read_archive(path)
    _check_spec(spec)
    if model is None:
        into, most = _skeleton(spec), _BUILT + _BUILT_PER_BYTE * os.path.getsize(path)
    else:
        into, most = model, 4 * sum(t.numel() for t in model.state_dict().values()) + 1024  # of a few sparse parts
    empty = empty_tensors(spec, most)
    _tie(empty, spec)
    _build(spec, empty, into)
    tensors = dict(read_tensors(spec, reader))
    _tie(tensors, spec)
    return tensors, spec, into


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
            layer = construct(spec["modules"][path], path)
        try:
            if not isinstance(dense, structure.Hole):
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
        built = expected[name].is_meta and t.is_floating_point() and expected[name].is_floating_point()
        if t.shape != expected[name].shape or (t.dtype != expected[name].dtype and not built):
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
