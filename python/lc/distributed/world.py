"""The processes that compress one model together, and what they say to each other.

Everything here is collective: each process calls it, in the same order. Between processes on one group travel only
bytes, integers and small objects, so nothing depends on the backend or on the order in which it adds numbers up.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["World"]

T = TypeVar("T")


class World:
    """The processes of ``group``, or this process alone if there is none: then nothing is exchanged."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in the group")
        nccl = group is not None and "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @property
    def alone(self) -> bool:
        """Whether there is no group."""
        return self.group is None

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs and writes files."""
        return self.rank == 0

    # ---- small objects -----------------------------------------------------------------------------------------------

    def gather(self, item: T) -> list[T]:
        """What each process gave, in the order of their ranks."""
        if self.group is None:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.group)
        return items

    def same(self, item: T) -> T:
        """What the first process gave."""
        if self.group is None:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=self._global(0), group=self.group)
        return items[0]

    def together(self, work: Callable[[], T]) -> T:
        """``work()``; if it fails in one process, its error is raised in all. It exchanges nothing unless all do."""
        if self.group is None:
            return work()
        result: Any = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        self.raise_first(failure)
        return result  # type: ignore[no-any-return]

    def raise_first(self, failure: Exception | None, order: float = 0) -> None:
        """Raise, in every process, the failure of the lowest ``order`` and then rank, if there is any."""
        found = self.gather(None if failure is None else (order, self.rank, sendable(failure)))
        failures = [f for f in found if f is not None]
        if failures:
            _, rank, message = min(failures, key=lambda f: f[:2])
            if rank == self.rank and failure is not None:
                raise failure
            raise pickle.loads(message)

    # ---- tensors -----------------------------------------------------------------------------------------------------

    def broadcast(self, tensor: Tensor, owner: int = 0) -> Tensor:
        """The owner's ``tensor``, whose shape and dtype all know, on the device of this process's own."""
        if self.group is None:
            return tensor
        there = tensor.to(self.device).contiguous()
        dist.broadcast(there, src=self._global(owner), group=self.group)
        return there.to(tensor.device)

    def sum(self, integers: Tensor) -> Tensor:
        """The sum over the processes of an int64 tensor: exact, in whatever order it is made."""
        if self.group is None:
            return integers
        there = integers.to(self.device, copy=True)
        dist.all_reduce(there, group=self.group)
        return there.to(integers.device)

    def collect(self, piece: Tensor, owner: int) -> Tensor | None:
        """For the owner, the pieces of all processes one after the other, all of one size; None for the others."""
        if self.group is None:
            return piece
        there = piece.to(self.device).contiguous()
        whole = torch.empty(self.size * there.numel(), dtype=there.dtype, device=self.device)
        mine = self.rank == owner
        dist.gather(there, list(whole.chunk(self.size)) if mine else None, dst=self._global(owner), group=self.group)
        return whole.to(piece.device) if mine else None

    def deal(self, whole: Tensor | None, piece: Tensor, owner: int) -> Tensor:
        """The inverse: the owner's ``whole`` in pieces of the size, dtype and device of ``piece``, one for each."""
        if self.group is None:
            return piece if whole is None else whole
        there = torch.empty_like(piece, device=self.device)
        pieces = None if whole is None else list(whole.to(self.device).chunk(self.size))
        dist.scatter(there, pieces, src=self._global(owner), group=self.group)
        return there.to(piece.device)

    def _global(self, rank: int) -> int:
        assert self.group is not None
        return dist.get_global_rank(self.group, rank)


def sendable(error: Exception) -> bytes:
    """The error for another process; one that cannot travel becomes a RuntimeError of the same text."""
    try:
        message = pickle.dumps(error)
        pickle.loads(message)
    except Exception:  # anything: an error's own __reduce__ and __init__ run here
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return message
