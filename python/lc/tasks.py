"""Tasks: which parameters get which compression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from .compressions import Compression

__all__ = ["BoundTask", "Target", "Task", "bind"]

Target = str | nn.Module | nn.Parameter


@dataclass
class Task:
    """Compress some parameters of a model.

    Parameters
    ----------
    targets : one or a list of: the exact name of a parameter (``"fc1.weight"``); the name of a module or a module
        itself, which means its weights; a parameter; a pattern ``"re:..."`` that the whole name of a parameter matches.
        Patterns and modules take only parameters of two dimensions or more, so no biases and no normalisation.
    compression : what to do with each of them.
    joint : compress all of them as one: one codebook, one budget of survivors. Default: each on its own.
    """

    targets: Target | Sequence[Target]
    compression: Compression
    joint: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.compression, Compression):
            raise TypeError(f"compression must be an lc.Compression, got {type(self.compression).__name__}")


@dataclass
class BoundTask:
    """A compression and the parameters of a model that it holds, with the state of the LC algorithm for them.

    ``delta`` is Delta(Theta) and ``multipliers`` are the lambda of the augmented Lagrangian, in at least float32.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    compression: Compression
    delta: list[Tensor] = field(default_factory=list)
    multipliers: list[Tensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    def weights(self) -> list[Tensor]:
        """The parameters now, in the dtype of the LC algorithm's own tensors."""
        return [p.detach().to(state_dtype(p)) for p in self.parameters]


def state_dtype(parameter: Tensor) -> torch.dtype:
    """float32 for half precision, whose steps would be lost in rounding; else the parameter's own dtype."""
    return torch.promote_types(parameter.dtype, torch.float32)


def bind(model: nn.Module, tasks: Task | Sequence[Task]) -> list[BoundTask]:
    """Find the parameters of each task. A parameter is compressed by one task, once, however many names it has.

    Raises
    ------
    TypeError, ValueError : for a target that matches nothing, naming the nearest candidates; a parameter that two tasks
        or two targets match; a parameter that is not floating-point or does not require a gradient.
    """
    bound: list[BoundTask] = []
    owner: dict[nn.Parameter, str] = {}
    for task in [tasks] if isinstance(tasks, Task) else tasks:
        if not isinstance(task, Task):
            raise TypeError(f"tasks must be lc.Task, got {type(task).__name__}")
        single = isinstance(task.targets, (str, nn.Module, nn.Parameter))
        targets = cast("list[Target]", [task.targets] if single else task.targets)
        found: dict[nn.Parameter, str] = {}
        for target in targets:
            for parameter, name in _match(model, target).items():
                if parameter in owner:
                    raise ValueError(f"parameter {name!r} is matched twice, by {target!r} and as {owner[parameter]!r}")
                if "parametrizations." in name:
                    raise ValueError(f"parameter {name!r} belongs to a parametrization: remove that first")
                if not parameter.is_floating_point():
                    raise TypeError(f"parameter {name!r} must be floating-point, got {parameter.dtype}")
                if not parameter.requires_grad:
                    raise ValueError(f"parameter {name!r} does not require a gradient, so no L step could move it")
                owner[parameter] = found[parameter] = name
        groups = [list(found)] if task.joint else [[p] for p in found]
        for group in groups:
            bound.append(BoundTask([found[p] for p in group], group, task.compression.fresh()))
    if not bound:
        raise ValueError("tasks must hold at least one task, got an empty list")
    return bound


def _match(model: nn.Module, target: Target) -> dict[nn.Parameter, str]:
    named = dict(model.named_parameters(remove_duplicate=False))
    first: dict[nn.Parameter, str] = {}  # the first name of each, in the model's order
    for name, p in named.items():
        first.setdefault(p, name)
    if isinstance(target, nn.Parameter):
        if target not in first:
            raise ValueError(f"the parameter of shape {tuple(target.shape)} is not one of the model's")
        return {target: first[target]}
    if isinstance(target, nn.Module):
        paths = [path for path, module in model.named_modules(remove_duplicate=False) if module is target]
        if not paths:
            raise ValueError(f"module {type(target).__name__} is not one of the model's")
        return _weights_below(named, paths[0], type(target).__name__)
    if not isinstance(target, str):
        raise TypeError(f"a target must be a name, a pattern, a module or a parameter, got {type(target).__name__}")
    if target.startswith("re:"):
        try:
            pattern = re.compile(target[3:])
        except re.error as error:
            raise ValueError(f"target {target!r} is not a valid pattern: {error}") from None
        matches = {p: name for p, name in first.items() if p.dim() >= 2 and pattern.fullmatch(name)}
        if not matches:
            raise ValueError(f"target {target!r} matches none of {sorted(first.values())}")
        return matches
    if target in named:
        return {named[target]: target}
    if any(path == target for path, _ in model.named_modules(remove_duplicate=False)):
        return _weights_below(named, target, target)
    candidates = [*named, *(path for path, _ in model.named_modules() if path)]
    near = difflib.get_close_matches(target, candidates, n=5, cutoff=0.3) or sorted(named)
    raise ValueError(f"target {target!r} is no parameter or module of the model; did you mean one of {near}?")


def _weights_below(named: dict[str, nn.Parameter], path: str, label: str) -> dict[nn.Parameter, str]:
    prefix = f"{path}." if path else ""
    found: dict[nn.Parameter, str] = {}
    for name, p in named.items():
        if name.startswith(prefix) and p.dim() >= 2:
            found.setdefault(p, name)
    if not found:
        raise ValueError(f"module {label!r} has no parameter of two dimensions or more")
    return found
