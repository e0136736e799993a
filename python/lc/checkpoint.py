"""Checkpoints of a run: written after every step, read by a run that goes on where another was cut off.

A run that is resumed ends bit for bit as it would have ended, provided that everything the L step depends on is either
made anew in each L step or saved with it: the model, the state of the C steps, the multipliers, the history and the
random number generators of torch, python and numpy always are; pass optimizers that live longer than one L step, and
generators of your own, as ``state``.

Of several processes with replicas the first writes the file, with the random numbers and the ``state`` of each in it:
optimizers are taken to be replicas too. For a model that is cut into shards see :mod:`lc.sharded_checkpoint`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from lc_ext._files import replacing

from .distributed.sharded_checkpoint import latest, load_weights, plain_state, save_folder, sharded_state
from .distributed.world import World
from .history import History, StepRecord
from .tasks import BoundTask

__all__ = ["checkpoint_exists", "load_checkpoint", "save_checkpoint"]

FORMAT, VERSION = "lc.checkpoint", 1


def checkpoint_exists(path: str | os.PathLike[str], tasks: Sequence[BoundTask], world: World) -> bool:
    """Whether a run goes on from ``path``: the first process looks, for all."""
    return world.same(latest(Path(path)) is not None if _sharded(tasks) else Path(path).exists())


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    tasks: Sequence[BoundTask],
    schedule: Sequence[float],
    history: History,
    best: Mapping[str, Any],
    state: Mapping[str, Any],
    world: World,
) -> None:
    """Write everything to ``path``; a crash leaves the previous file, or folder, whole."""
    sharded = _sharded(tasks)
    replicas = {} if sharded else {name: item for name, item in state.items() if isinstance(item, Optimizer)}
    own = {
        "random": _random_state(),
        "state": {name: _state_of(name, item) for name, item in state.items() if name not in replicas},
    }
    everyone = [own] if sharded else world.gather(own)
    content = {
        "format": FORMAT,
        "format_version": VERSION,
        "processes": world.size,
        "schedule": list(schedule),
        "model": {} if sharded else model.state_dict(),
        "tasks": [
            {
                "name": task.name,
                "compression": repr(task.compression),
                "learned": task.compression.state_dict(),
                "multipliers": task.multipliers,
                "delta": task.delta,
                "noted": task.noted,
            }
            for task in tasks
        ],
        "history": [asdict(s) for s in history.steps],
        "best": dict(best),
        "random": own["random"],
        "state": {**own["state"], **{name: _state_of(name, item) for name, item in replicas.items()}},
        "others": everyone[1:],
    }

    def write(file: Path) -> None:
        with replacing(file) as scratch:
            torch.save(content, scratch)

    if sharded:
        save_folder(Path(path), history.steps[-1].step, model, write, world)
    else:
        world.together(lambda: write(Path(path)) if world.first else None)


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    tasks: Sequence[BoundTask],
    schedule: Sequence[float],
    state: Mapping[str, Any],
    world: World,
) -> tuple[History, dict[str, Any]]:
    """Put everything back in place; returns the history and the best iterate.

    Raises
    ------
    ValueError : if the file is no checkpoint, is damaged, or is one of another run: other tasks, compressions, schedule
        or state, or another number of processes. Nothing has been changed then.
    """
    sharded = _sharded(tasks)
    folder = latest(Path(path)) if sharded else None
    file = Path(path) if folder is None else folder / f"rank_{world.rank}.ckpt"
    content = world.together(lambda: _read(file, tasks, schedule, state, world))
    if folder is not None:
        load_weights(folder, model, world)
    else:
        model.load_state_dict(content["model"])
    for task, saved in zip(tasks, content["tasks"], strict=True):
        task.compression.load_state_dict(saved["learned"])
        task.multipliers = [m.to(p.device) for m, p in zip(saved["multipliers"], task.parameters, strict=True)]
        task.delta = [d.to(p.device) for d, p in zip(saved["delta"], task.parameters, strict=True)]
        task.noted = saved.get("noted")
    others = content.get("others") or []
    own = others[world.rank - 1] if others and not world.first else content
    for name, item in state.items():
        _restore(item, sharded_state(own["state"].get(name, content["state"][name]), model))
    _set_random_state(own["random"])
    return History([StepRecord(**s) for s in content["history"]]), content["best"]


def _read(
    path: Path, tasks: Sequence[BoundTask], schedule: Sequence[float], state: Mapping[str, Any], world: World
) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        UnpicklingError,
    ) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("format_version") != VERSION:
        raise ValueError(f"{path} is no {FORMAT} of format_version {VERSION}")
    _check_same("processes", world.size, content.get("processes", 1), path)
    _check_same("schedule", list(schedule), content["schedule"], path)
    _check_same("tasks", [t.name for t in tasks], [t["name"] for t in content["tasks"]], path)
    mine, theirs = [repr(t.compression) for t in tasks], [t["compression"] for t in content["tasks"]]
    _check_same("compressions", mine, theirs, path)
    _check_same("state", sorted(state), sorted(content["state"]), path)
    return content


def _sharded(tasks: Sequence[BoundTask]) -> bool:
    return any(task.sharded for task in tasks)


def _check_same(what: str, mine: object, theirs: object, path: Path) -> None:
    if mine != theirs:
        raise ValueError(f"{path} is of another run: its {what} are {theirs}, those of this run {mine}")


def _state_of(name: str, item: Any) -> Any:
    if isinstance(item, torch.Generator):
        return item.get_state()
    if hasattr(item, "state_dict") and hasattr(item, "load_state_dict"):
        return plain_state(item.state_dict())
    raise TypeError(f"state[{name!r}] must be a generator or have state_dict(), got {type(item).__name__}")


def _restore(item: Any, saved: Any) -> None:
    if isinstance(item, torch.Generator):
        item.set_state(saved)
    else:
        item.load_state_dict(saved)


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def _set_random_state(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
