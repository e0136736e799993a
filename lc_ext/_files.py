"""Files that a crash leaves either old or new, never in between."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch file to write in place of ``path``.

    When the block ends it is flushed to disk and takes the name; if the block raises it is removed, and what was at
    ``path`` stays.
    """
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(scratch, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777  # the user's, by the umask
        yield scratch
        with open(scratch, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(scratch, mode)  # a writer may have put a private file in its place
        os.replace(scratch, target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the new name last too
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
