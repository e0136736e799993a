"""Tasks: which parameters get which compression."""

from __future__ import annotations

import difflib
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from .compressions import Compression
from .distributed.sharded import is_dtensor, local, shard_of, unwrapped

__all__ = ["BoundTask", "Target", "Task", "bind", "first_match", "remember", "tasks_of"]

Target = str | nn.Module | nn.Parameter | type[nn.Module]


@dataclass
class Task:
    """Compress some parameters of a model.

    Parameters
    ----------
    targets : one or a list of: the exact name of a parameter (``"fc1.weight"``); the name of a module or a module
        itself, which means its weights; a class of modules such as ``nn.Conv2d``, which means the weights of all of
        them; a parameter; a pattern ``"re:..."`` that the whole name of a parameter matches. Patterns, classes and
        modules take only parameters of two dimensions or more, so no biases and no normalisation.
    compression : what to do with each of them.
    joint : compress all of them as one: one codebook, one budget of survivors. Default: each on its own.

    Examples
    --------
    >>> tasks = [lc.Task("0", lc.Quantize(2)), lc.Task("2.weight", lc.Prune(0.1) + lc.Quantize(4))]
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
    ``metric`` holds the weights h of the distance sum_i h_i (w_i - Delta_i)^2, of mean one, or None for all one.
    Of parameters that are cut into shards, each process has its shards of all these, and the compression has learned
    something in the owner alone, or of the shards; so ``noted`` then has what :meth:`report` is over all.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    compression: Compression
    delta: list[Tensor] = field(default_factory=list)
    multipliers: list[Tensor] = field(default_factory=list)
    metric: list[Tensor] | None = None
    noted: dict[str, Any] | None = None

    @property
    def sharded(self) -> bool:
        """Whether the parameters are DTensors."""
        return is_dtensor(self.parameters[0])

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    def weights(self) -> list[Tensor]:
        """The parameters now, or their local shards, in the dtype of the LC algorithm's own tensors."""
        return [local(p.detach()).to(state_dtype(p)) for p in self.parameters]

    def set_delta(self, projected: Sequence[Tensor]) -> None:
        """Keep what a C step gave."""
        self.delta = [d.to(state_dtype(p)) for d, p in zip(projected, self.parameters, strict=True)]

    def report(self) -> dict[str, Any]:
        """What the compression says of itself: its bits, its weight bits, and its summary."""
        if self.noted is not None:
            return self.noted
        c = self.compression
        return {"bits": c.bits(), "weight_bits": c.weight_bits(), "summary": c.summary()}


def state_dtype(parameter: Tensor) -> torch.dtype:
    """float32 for half precision, whose steps would be lost in rounding; else the parameter's own dtype."""
    return torch.promote_types(parameter.dtype, torch.float32)


_compressed: weakref.WeakKeyDictionary[nn.Module, list[BoundTask]] = weakref.WeakKeyDictionary()


def remember(model: nn.Module, tasks: Sequence[BoundTask]) -> None:
    """Note that ``model`` is compressed by ``tasks``; of several on one parameter, the latest counts."""
    mine = {p for task in tasks for p in task.parameters}
    others = [task for task in _compressed.get(model, []) if not mine.intersection(task.parameters)]
    _compressed[model] = [*others, *tasks]


def tasks_of(model: nn.Module) -> list[BoundTask]:
    """The tasks that an :class:`lc.LCAlgorithm` has run on ``model``."""
    if model not in _compressed:
        raise ValueError("model has not been compressed by an LCAlgorithm")
    if any(task.sharded for task in _compressed[model]):
        raise ValueError("model is cut into shards: put it together first, with algorithm.collect(plain)")
    return _compressed[model]


def first_match(model: nn.Module, rules: Sequence[tuple[Target, Compression | None]]) -> list[Task]:
    """Tasks from ordered rules: a parameter takes the compression of the first rule that matches it.

    Parameters
    ----------
    rules : pairs of a target and a compression, or None to leave what it matches alone. A last rule ``("re:.*", ...)``
        is a default. A rule all of whose parameters were taken by rules before it adds no task.

    Raises
    ------
    TypeError, ValueError : for a target that matches nothing at all, naming the nearest candidates.

    Examples
    --------
    >>> tasks = lc.first_match(model, [("0", None), ("2.bias", lc.Prune(2)), (nn.Linear, lc.Quantize(16))])
    """
    model = unwrapped(model)
    taken: set[nn.Parameter] = set()
    tasks = []
    for target, compression in rules:
        found = [p for p in _match(model, target) if p not in taken]
        taken.update(found)
        if compression is not None and found:
            tasks.append(Task(found, compression))
    return tasks


def bind(model: nn.Module, tasks: Task | Sequence[Task], metric: Mapping[str, Tensor] | None = None) -> list[BoundTask]:
    """Find the parameters of each task. A parameter is compressed by one task, once, however many names it has.

    ``metric`` holds the weights of some parameters by name; they are scaled to mean one in each group. Those of
    parameters of the model that no task compresses are not used.

    Raises
    ------
    TypeError, ValueError : for a target that matches nothing, naming the nearest candidates; a parameter that two tasks
        or two targets match; a parameter that is not floating-point or does not require a gradient.
    """
    model = unwrapped(model)
    bound: list[BoundTask] = []
    owner: dict[nn.Parameter, str] = {}
    for task in [tasks] if isinstance(tasks, Task) else tasks:
        if not isinstance(task, Task):
            raise TypeError(f"tasks must be lc.Task, got {type(task).__name__}")
        single = isinstance(task.targets, (str, nn.Module, nn.Parameter, type))
        targets = cast("list[Target]", [task.targets] if single else task.targets)
        found: dict[nn.Parameter, str] = {}
        for target in targets:
            for parameter, name in _match(model, target).items():
                if parameter in owner:
                    raise ValueError(f"parameter {name!r} is matched twice, by {target!r} and as {owner[parameter]!r}")
                if "parametrizations." in name and target != name and target is not parameter:
                    raise ValueError(
                        f"parameter {name!r} belongs to a parametrization: name it in full to compress what the "
                        "parametrization is made of, or remove that first"
                    )
                if not parameter.is_floating_point():
                    raise TypeError(f"parameter {name!r} must be floating-point, got {parameter.dtype}")
                if not parameter.requires_grad:
                    raise ValueError(f"parameter {name!r} does not require a gradient, so no L step could move it")
                owner[parameter] = found[parameter] = name
        groups = [list(found)] if task.joint else [[p] for p in found]
        for group in groups:
            if len({is_dtensor(p) for p in group}) > 1:
                raise ValueError(f"{[found[p] for p in group]} are compressed jointly, but only some are sharded")
            bound.append(BoundTask([found[p] for p in group], group, task.compression.fresh()))
    if not bound:
        raise ValueError("tasks must hold at least one task, got an empty list")
    if metric is not None:
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if unknown := sorted(set(metric) - known):
            raise ValueError(f"metric names {unknown}, which are no parameters of the model")
        _bind_metric(bound, metric)
    return bound


def _bind_metric(bound: Sequence[BoundTask], metric: Mapping[str, Tensor]) -> None:
    for task in bound:
        given = [metric.get(name) for name in task.names]
        if all(h is None for h in given):
            continue
        if not task.compression.weighted:
            raise TypeError(f"{task.compression!r} of {task.name} knows no metric")
        weights = []
        for name, p, h in zip(task.names, task.parameters, given, strict=True):
            if h is None:
                h = torch.ones(p.shape, device=p.device)
            h = h.detach().to(p.device, torch.float32)
            if h.shape != p.shape or not bool(((h > 0) & h.isfinite()).all()):
                raise ValueError(
                    f"metric[{name!r}] must be positive and finite of shape {tuple(p.shape)}, got {tuple(h.shape)}"
                )
            weights.append(h)
        mean = sum(float(h.double().sum()) for h in weights) / sum(h.numel() for h in weights)
        task.metric = [shard_of(h, p) / mean for h, p in zip(weights, task.parameters, strict=True)]


def _match(model: nn.Module, target: Target) -> dict[nn.Parameter, str]:
    named = dict(model.named_parameters(remove_duplicate=False))
    first: dict[nn.Parameter, str] = {}  # the first name of each, in the model's order
    for name, p in named.items():
        first.setdefault(p, name)
    if isinstance(target, nn.Parameter):
        if target not in first:
            raise ValueError(f"the parameter of shape {tuple(target.shape)} is not one of the model's")
        return {target: first[target]}
    if isinstance(target, type):
        if not issubclass(target, nn.Module):
            raise TypeError(f"a target must be a class of modules, got {target.__name__}")
        of_class = {p for module in model.modules() if isinstance(module, target) for p in module.parameters(False)}
        matches = {p: name for p, name in first.items() if p.dim() >= 2 and p in of_class}
        if not matches:
            kinds = sorted({type(module).__name__ for module in model.modules()})
            raise ValueError(f"target {target.__name__} matches no weights; the model is made of {kinds}")
        return matches
    if isinstance(target, nn.Module):
        target = unwrapped(target)
        paths = [path for path, module in model.named_modules(remove_duplicate=False) if module is target]
        if not paths:
            raise ValueError(f"module {type(target).__name__} is not one of the model's")
        return _weights_below(named, paths[0], type(target).__name__)
    if not isinstance(target, str):
        raise TypeError(
            "a target must be a name, a pattern, a module, a class of modules or a parameter, "
            f"got {type(target).__name__}"
        )
    if target.startswith("re:"):
        try:
            pattern = re.compile(target[3:])
        except re.error as error:
            raise ValueError(f"target {target!r} is not a valid pattern: {error}") from None
        by_pattern = {p: name for p, name in first.items() if p.dim() >= 2 and pattern.fullmatch(name)}
        if not by_pattern:
            raise ValueError(f"target {target!r} matches none of {sorted(first.values())}")
        return by_pattern
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
