"""Checkpoints of models that are cut into shards: a folder that every process writes its part of.

``latest`` names the subfolder of the last whole checkpoint. It holds the files of torch.distributed.checkpoint with the
weights, which any number of processes can read, and a file for each process with the rest of its run.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lc_ext._files import replacing

from .sharded import is_dtensor, local
from .world import World

__all__ = ["latest", "load_weights", "plain_state", "save_folder", "sharded_state"]


def latest(path: Path) -> Path | None:
    """The last whole checkpoint in the folder."""
    try:
        name = (path / "latest").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return path / name


@contextlib.contextmanager
def _renamed(path: Path, step: int, world: World) -> Iterator[Path]:
    """A new subfolder for all to write in, which becomes the latest when the block ends; the older ones go then."""

    def prepare() -> None:
        if world.first:
            path.mkdir(parents=True, exist_ok=True)
            for left in path.glob("*.part"):
                shutil.rmtree(left)
            part.mkdir()

    def finish() -> None:
        if world.first:
            shutil.rmtree(whole, ignore_errors=True)  # of a run that got this far but not to the next line
            part.rename(whole)
            with replacing(path / "latest") as scratch:
                scratch.write_text(whole.name, encoding="utf-8")
            for old in path.glob("step_*"):
                if old != whole:
                    shutil.rmtree(old)

    whole, part = path / f"step_{step}", path / f"step_{step}.part"
    world.together(prepare)
    yield part
    world.together(finish)


def save_folder(path: Path, step: int, model: nn.Module, write: Callable[[Path], None], world: World) -> None:
    """Save the weights of all, and with ``write(file)`` what each process has of its own."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with _renamed(path, step, world) as folder:
        save({"model": model.state_dict()}, checkpoint_id=folder, process_group=world.group)
        world.together(lambda: write(folder / f"rank_{world.rank}.ckpt"))


def load_weights(folder: Path, model: nn.Module, world: World) -> None:
    """Load them into the shards of ``model``."""
    from torch.distributed.checkpoint.state_dict_loader import load

    weights = model.state_dict()
    load({"model": weights}, checkpoint_id=folder, process_group=world.group)
    model.load_state_dict(weights)


def plain_state(tree: Any) -> Any:
    """A state without DTensors, for a file of this process: a marked local shard for each."""
    if isinstance(tree, Tensor) and is_dtensor(tree):
        return {"lc.shard": local(tree.detach()), "shape": tuple(tree.shape)}
    if isinstance(tree, dict):
        return {key: plain_state(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(plain_state(value) for value in tree)
    return tree


def sharded_state(tree: Any, model: nn.Module) -> Any:
    """The inverse, on the devices of ``model``."""
    if isinstance(tree, dict) and "lc.shard" in tree:
        from torch.distributed.tensor import DTensor, Shard

        like = next(p for p in model.parameters() if is_dtensor(p))
        shape = torch.Size(tree["shape"])
        stride = torch.empty(shape, device="meta").stride()
        shard = tree["lc.shard"].to(like.device)
        return DTensor.from_local(shard, like.device_mesh, [Shard(0)], shape=shape, stride=stride)  # type: ignore
    if isinstance(tree, dict):
        return {key: sharded_state(value, model) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(sharded_state(value, model) for value in tree)
    return tree
