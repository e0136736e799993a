"""What a C step has learned, as one buffer of bytes and a small description of it.

Tensors keep their bits. Those of float32 that are mostly zero, such as pruned weights, go as positions and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["decode", "encode", "fingerprint"]


class _Slot(NamedTuple):
    """A tensor in the buffer: ``survivors`` of its entries are stored, or all of them if that is None."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_cpu: bool
    survivors: int | None


def encode(tree: Any) -> tuple[Any, Tensor]:
    """The description of a tree of dictionaries, lists and tuples, and the bytes of its tensors."""
    pieces: list[Tensor] = []

    def put(t: Tensor) -> _Slot:
        flat = t.detach().contiguous().flatten()
        survivors = None
        if t.dtype == torch.float32 and t.numel() < 2**31:
            bits = flat.view(torch.int32)  # so that -0.0 survives too
            count = int(bits.count_nonzero())
            if 4 * count < t.numel():
                survivors = count
                where = bits.nonzero().flatten()
                pieces.extend([_bytes(where.int()), _bytes(flat[where])])
        if survivors is None:
            pieces.append(_bytes(flat))
        return _Slot(tuple(t.shape), t.dtype, t.device.type == "cpu", survivors)

    described = _map(tree, Tensor, put)
    cpu = [piece.cpu() for piece in pieces]
    return described, torch.cat(cpu) if cpu else torch.empty(0, dtype=torch.uint8)


def decode(described: Any, buffer: Tensor, device: torch.device) -> Any:
    """The tree again; tensors that were not on the CPU come to ``device``."""
    offset = 0

    def take(dtype: torch.dtype, count: int) -> Tensor:
        nonlocal offset
        size = count * torch.empty((), dtype=dtype).element_size()
        piece = buffer[offset : offset + size].clone()  # aligned, and no view of the whole
        offset += size
        return piece.view(dtype)

    def get(slot: _Slot) -> Tensor:
        count = 1
        for side in slot.shape:
            count *= side
        if slot.survivors is None:
            flat = take(slot.dtype, count)
        else:
            where = take(torch.int32, slot.survivors)
            flat = torch.zeros(count, dtype=slot.dtype)
            flat[where.long()] = take(slot.dtype, slot.survivors)
        return flat.view(slot.shape).to("cpu" if slot.on_cpu else device)

    return _map(described, _Slot, get)


def fingerprint(tensors: Sequence[Tensor]) -> int:
    """A number that two processes have in common only if their tensors are the same bit for bit, all but surely."""
    return sum(((i + 1) * 1000003 * part) for i, t in enumerate(tensors) for part in _sums(t)) % 2**61


def _sums(t: Tensor, columns: int = 1024) -> Iterator[int]:
    """Sums over the rows and the columns of the bits as integers, which wrap around: no two changes cancel in both."""
    data = _bytes(t.detach())
    if data.data_ptr() % 8:
        data = data.clone()
    size = 8 * columns
    rows = data.numel() // size
    body, tail = data[: rows * size].view(torch.int64).view(rows, columns), data[rows * size :]
    for sums in (body.sum(0), body.sum(1), tail.long()):
        yield int((sums * (2 * torch.arange(sums.numel(), device=sums.device) + 1)).sum())


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().flatten().view(torch.uint8)


def _map(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _map(value, kind, change) for key, value in tree.items()}
    if isinstance(tree, list) or type(tree) is tuple:
        return type(tree)(_map(value, kind, change) for value in tree)
    return tree
