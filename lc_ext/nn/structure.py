"""How a model is built, as JSON, for files that are read without a model to read them into.

A structure is a list with an entry for each module, a parent before its children, each with its ``path`` and one of
``class`` (with the constructor's ``arguments``), ``same`` (the path of a module that is also here) and ``packed``
(true: a packed layer, which the file describes elsewhere). ``training`` is false in evaluation mode.

Only the classes of a fixed list are made, by their own constructors, with arguments that have been checked one by one,
on the meta device: nothing in a file is imported or executed, and no memory is taken for what it claims.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ._module_arguments import ARGUMENTS, CONTAINERS, Kind

__all__ = ["Hole", "Unknown", "build", "describe", "register"]

MODULES, DEPTH = 100_000, 64  # the most that a structure may have


class Unknown(ValueError):
    """A model that has no structure: a module of another class, or one that was changed after it was made."""


class Hole(nn.Module):
    """Where a packed layer goes."""


_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in ARGUMENTS}
_NAMES: dict[type[nn.Module], str] = {cls: name for name, cls in _CLASSES.items()}


def register(cls: type[nn.Module], name: str, arguments: dict[str, Kind]) -> None:
    """Add a class of this project to the list: one whose ``config()`` returns its constructor's arguments.

    Parameters
    ----------
    cls : its constructor makes the same children each time; a structure lists them all, and may put others in place.
    name : what it is called in files, ``lc.models.ResNet`` for example.
    arguments : what each argument may be.
    """
    ARGUMENTS[cls], _CLASSES[name], _NAMES[cls] = arguments, cls, name


def describe(model: nn.Module, packed: Collection[str]) -> list[dict[str, Any]]:
    """The structure of a model.

    Parameters
    ----------
    packed : the paths of its packed layers.

    Raises
    ------
    Unknown : if it has none, naming the module.
    """
    entries: list[dict[str, Any]] = []
    first: dict[nn.Module, str] = {}

    def visit(module: nn.Module, path: str) -> None:
        if path in packed:
            entries.append({"path": path, "packed": True, **_mode(module)})
        elif module in first:
            entries.append({"path": path, "same": first[module]})
        else:
            first[module] = path
            entries.append({"path": path, **_describe(module, path), **_mode(module)})
            for name, child in module._modules.items():
                if child is None:
                    raise Unknown(f"module {path!r} has no child {name!r}")
                visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    try:
        skeleton = build(entries, packed)
    except ValueError as error:
        raise Unknown(str(error)) from error
    found, made = (_shapes(m, packed) for m in (model, skeleton))
    for name in {**found, **made}:
        if found.get(name) != made.get(name):
            raise Unknown(f"tensor {name!r} is not as the constructor of its module makes it")
    return entries


def build(structure: Any, packed: Collection[str]) -> nn.Module:
    """The model that a structure describes, on the meta device, with a :class:`Hole` for each packed layer.

    Parameters
    ----------
    structure : as read from a file: anything.
    packed : the paths of the packed layers.

    Raises
    ------
    ValueError : for anything that is not a structure, naming the module.
    """
    if not isinstance(structure, list) or not structure:
        raise ValueError(f"structure must be a list of modules, got {type(structure).__name__}")
    made: dict[str, nn.Module] = {}
    awaited: set[str] = set()  # paths of children that constructors have made, which must be listed too
    count = 0
    for entry in structure:
        path = _path_of(entry, made)
        try:
            module = _make(entry, path, made, packed)
            if path:
                _put(made, path, module)
        except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError, AssertionError, IndexError) as error:
            raise ValueError(f"module {path!r}: {error}") from error
        awaited.discard(path)
        if "same" in entry:
            continue
        made[path] = module
        awaited.update(f"{path}.{name}" if path else name for name in module._modules)
        count += sum(1 for _ in module.modules())
        _check_count(count)
    if awaited:
        raise ValueError(f"structure does not list module {min(awaited)!r}")
    _measure(made[""], {}, 1)
    return made[""]


def _describe(module: nn.Module, path: str) -> dict[str, Any]:
    cls = type(module)
    if cls not in _NAMES:
        raise Unknown(f"module {path!r} is of class {cls.__module__}.{cls.__qualname__}")
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise Unknown(f"module {path!r} has hooks or a forward of its own")
    if module._non_persistent_buffers_set:
        raise Unknown(f"module {path!r} has buffers that are not saved")
    values: Any = module.config() if hasattr(cls, "config") else vars(module)  # type: ignore[operator]
    arguments = {}
    for name, kind in ARGUMENTS[cls].items():
        value = getattr(module, "bias", None) is not None if name == "bias" else values[name]
        try:
            value = kind(value, name)
        except (TypeError, ValueError) as error:
            raise Unknown(f"module {path!r}: {error}") from error
        arguments[name] = list(value) if isinstance(value, tuple) else value
    return {"class": _NAMES[cls], **({"arguments": arguments} if arguments else {})}


def _mode(module: nn.Module) -> dict[str, bool]:
    return {} if module.training else {"training": False}


def _shapes(model: nn.Module, packed: Collection[str]) -> dict[str, torch.Size]:
    prefixes = tuple(f"{path}." if path else "" for path in packed)
    return {name: t.shape for name, t in model.state_dict().items() if not name.startswith(prefixes or ("\0",))}


def _path_of(entry: Any, made: dict[str, nn.Module]) -> str:
    path = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise ValueError(f"structure must hold objects with a path, got {str(entry)[:80]}")
    if (path == "") != (not made):
        raise ValueError("structure must begin with the module '', and have it once")
    if path.count(".") >= DEPTH:
        raise ValueError(f"structure must be at most {DEPTH} modules deep, got {path[:80]!r}...")
    if not isinstance(entry.get("training", True), bool):
        raise ValueError(f"module {path!r}: training must be True or False, got {entry['training']!r}")
    if entry.keys() - {"path", "training", "class", "arguments", "same", "packed"}:
        raise ValueError(f"module {path!r} has unknown entries: {sorted(entry)}")
    return path


def _make(entry: dict[str, Any], path: str, made: dict[str, nn.Module], packed: Collection[str]) -> nn.Module:
    if "same" in entry:
        same = entry["same"]
        module = made.get(same) if isinstance(same, str) else None
        if module is None or f"{path}.".startswith(f"{same}." if same else ""):
            raise ValueError(f"same must be the path of another module, before this one, got {same!r}")
        return module
    if "packed" in entry:
        if path not in packed:
            raise ValueError("it should be a packed layer, and is not described")
        module = Hole()
    else:
        name, given = entry.get("class"), entry.get("arguments", {})
        cls = _CLASSES.get(name) if isinstance(name, str) else None
        if cls is None:
            raise ValueError(f"class {name!r} is not one that a file may name")
        kinds = ARGUMENTS[cls]
        if not isinstance(given, dict) or given.keys() != kinds.keys():
            raise ValueError(f"{name} must have the arguments {', '.join(kinds) or 'none'}, got {str(given)[:200]}")
        arguments = {key: kind(given[key], key) for key, kind in kinds.items()}
        with torch.device("meta"):
            module = cls(**arguments)
    module.training = entry.get("training", True)
    return module


def _measure(module: nn.Module, known: dict[nn.Module, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Modules in a module, each as often as it is met, and how deep they go. A shared module may be in itself."""
    if module not in known and depth <= DEPTH:
        below = [_measure(child, known, depth + 1) for child in module._modules.values() if child is not None]
        known[module] = (1 + sum(n for n, _ in below), 1 + max((height for _, height in below), default=0))
        _check_count(known[module][0])
    count, height = known.get(module, (1, 1))
    if depth + height > DEPTH + 1:
        raise ValueError(f"structure must be at most {DEPTH} modules deep")
    return count, height


def _check_count(count: int) -> None:
    if count > MODULES:
        raise ValueError(f"structure must have at most {MODULES} modules")


def _put(made: dict[str, nn.Module], path: str, module: nn.Module) -> None:
    """Make a module the child of its parent."""
    above, _, name = path.rpartition(".")
    parent = made.get(above)
    if parent is None or path in made or not name or path != (f"{above}.{name}" if above else name):
        raise ValueError("its path is not that of a new child of a module before it")
    if isinstance(parent, CONTAINERS):
        if isinstance(parent, nn.ModuleList) and name != str(len(parent)):
            raise ValueError(f"a child of a ModuleList must be number {len(parent)}, got {name!r}")
        parent.add_module(name, module)
    elif name in parent._modules:
        parent._modules[name] = module
    else:
        raise ValueError(f"{type(parent).__name__} has no child {name!r}")
