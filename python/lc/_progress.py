"""Progress bars: on a terminal and on rank 0 only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import torch.distributed as dist

__all__ = ["progress"]


@contextlib.contextmanager
def progress(total: int, description: str = "LC steps") -> Iterator[Callable[[int], None]]:
    """A bar for the time of the block; the function that it yields takes the number of steps that are done."""
    if not sys.stderr.isatty() or _rank() != 0:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


def _rank() -> int:
    started = dist.is_available() and dist.is_initialized()
    return dist.get_rank() if started else int(os.environ.get("RANK", "0"))
