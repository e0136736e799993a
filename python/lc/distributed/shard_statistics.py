"""C steps of sharded weights that exchange integers, not weights: the results do not depend on the number of shards.

Pruning is exact: the threshold is found by counting, as by ops.topk_prune. A codebook is exact too, as far as one can
speak of that: sums in fixed point, which depend neither on the shards nor on the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_ext import ops

from ..compressions import Prune, Quantize
from ..tasks import BoundTask
from .sharded import rows_of
from .world import World

__all__ = ["Shards", "Statistics", "statistics_of"]

QUANTIZE_ABOVE = 2**24  # weights of a task; with fewer the exact C step of one process costs less than the exchange
SAMPLE = 2**18  # weights that a codebook starts from
MAX_ITER = 50
CHUNK = 2**20


class Shards(NamedTuple):
    """The shards of this process of some tensors, and the shapes of the whole ones."""

    local: list[Tensor]
    shapes: list[tuple[int, ...]]
    world: World

    @property
    def total(self) -> int:
        """Elements of the whole tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    def offsets(self) -> list[int]:
        """Where each shard starts in its flat tensor."""
        w = self.world
        return [rows_of(shape, w.rank, w.size)[0] * math.prod(shape[1:]) for shape in self.shapes]


class Statistics(NamedTuple):
    """How a compression is fitted to shards, and what it has to report over all of them."""

    fit: Callable[[Any, Shards, Sequence[Tensor] | None], list[Tensor]]
    report: Callable[[Any, Shards], dict[str, Any]]


def statistics_of(task: BoundTask) -> Statistics | None:
    """What is known for the compression of ``task``; None if an owner has to solve it."""
    if type(task.compression) is Prune and task.metric is None:
        return Statistics(_fit_prune, _report_prune)
    large = sum(p.numel() for p in task.parameters) > QUANTIZE_ABOVE
    if type(task.compression) is Quantize and task.compression.plain and large:
        return Statistics(_fit_quantize, _report_quantize)
    return None


# ---- pruning ---------------------------------------------------------------------------------------------------------


def _fit_prune(compression: Prune, v: Shards, metric: Sequence[Tensor] | None) -> list[Tensor]:
    kappa = _kappa(compression.keep, v.total)  # an error is the same in all processes
    keys = [t.contiguous().view(torch.int32) & 0x7FFFFFFF for t in v.local]  # ordered as the magnitudes are
    threshold, spare, ties = _threshold(keys, kappa, v.world)
    before, total = _before(ties, v.world)
    values = []
    for t, key, start in zip(v.local, keys, before, strict=True):
        kept = key >= threshold if spare == total else key > threshold
        if start < spare < total:
            tied = (key == threshold).flatten().nonzero().flatten()
            kept.view(-1)[tied[: spare - start]] = True
        values.append(torch.where(kept, t, t.new_zeros(())))
    compression.values_ = values
    return compression.decompress()


def _kappa(keep: int | float, n: int) -> int:
    if not isinstance(keep, float) and keep > n:
        raise ValueError(f"keep must be an int from 0 to {n}, got {keep}")
    return round(keep * n) if isinstance(keep, float) else keep


def _threshold(keys: Sequence[Tensor], kappa: int, world: World) -> tuple[int, int, list[int]]:
    """The key of rank ``kappa`` from the top, how many of those equal to it survive, and how many each shard has.

    Three digits of 11, 10 and 10 bits, the highest first: a count of each digit over all shards, and the digit at which
    the count from the top reaches kappa. Only keys with that digit take part in the next count.
    """
    if kappa == 0:
        return 2**31 - 1, 0, [0] * len(keys)
    threshold, left = 0, kappa
    among = [key.flatten() for key in keys]
    for shift, bits in ((20, 11), (10, 10), (0, 10)):
        digits = [(key >> shift) & (2**bits - 1) for key in among]
        counts = sum(
            (torch.bincount(d, minlength=2**bits).cpu() for d in digits), torch.zeros(2**bits, dtype=torch.int64)
        )
        from_top = world.sum(counts).flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, left))
        left -= int(from_top[place - 1]) if place else 0
        digit = 2**bits - 1 - place
        threshold += digit << shift
        among = [key[d == digit] for key, d in zip(among, digits, strict=True)]
    return threshold, left, [key.numel() for key in among]


def _before(counts: Sequence[int], world: World) -> tuple[list[int], int]:
    """How many come before each shard of this process in the order of the whole tensors, and how many there are."""
    everyone = torch.tensor(world.gather(list(counts))).view(world.size, -1).T
    ends = everyone.flatten().cumsum(0)
    starts = ends.view(-1, world.size) - everyone
    return [int(start) for start in starts[:, world.rank]], int(ends[-1])


def _report_prune(compression: Prune, delta: Shards) -> dict[str, Any]:
    """32 bits a survivor, and the positions as gaps: those within a shard are counted where they are."""
    widths = 2 ** torch.arange(2, 33) - 1  # the largest symbol of each width is the escape
    rows = []
    for t in compression.values_:
        at = t.flatten().nonzero().flatten().cpu()
        inside = [(at.diff().sub(1) // width + 1).sum() for width in widths]
        ends = [int(at[0]), t.numel() - 1 - int(at[-1])] if at.numel() else [t.numel(), -1]
        rows.append([*ends, at.numel(), *map(int, inside)])
    everyone = delta.world.gather(rows)
    symbols, gap, survivors = torch.zeros_like(widths), 0, 0
    for i in range(len(rows)):
        for theirs in everyone:
            first, last, count, *inside = theirs[i]
            gap += first
            if count:
                symbols += gap // widths + 1 + torch.tensor(inside)
                gap = last
                survivors += count
    bits = 32 * survivors
    positions = int((symbols * torch.arange(2, 33)).min())
    summary = {"sparsity": 1 - survivors / max(delta.total, 1)}
    return {"bits": bits + positions, "weight_bits": bits, "summary": summary}


# ---- codebooks -------------------------------------------------------------------------------------------------------


def _fit_quantize(compression: Quantize, v: Shards, metric: Sequence[Tensor] | None) -> list[Tensor]:
    """Lloyd's iterations from the previous codebook, or from that of a sample taken at equal distances."""
    world, k = v.world, compression.k
    flat = [t.flatten() for t in v.local]
    h = [t.flatten() for t in metric] if metric is not None else None
    codebook = getattr(compression, "codebook_", None)
    if codebook is None:
        codebook = _start(v, h, k)
    codebook = codebook.to(v.local[0].device)
    largest = max(world.gather(max((float(t.abs().max()) for t in flat if t.numel()), default=0.0)))
    heaviest = 1.0 if h is None else max(world.gather(max((float(t.max()) for t in h if t.numel()), default=0.0)))
    for _ in range(MAX_ITER):
        sums, masses = _sums(flat, h, codebook, (largest, heaviest, v.total), world)
        means = torch.where(masses > 0, sums / masses.clamp(min=1e-300), codebook.double().cpu())
        moved = means.float().to(codebook.device)
        settled = bool((moved - codebook).abs().max() <= 1e-6 * largest)
        codebook = moved
        if settled:
            break
    compression.codebook_ = codebook
    compression.codes_ = [ops.assign(t, codebook) if t.numel() else t.to(torch.uint8) for t in v.local]
    return compression.decompress()


def _start(v: Shards, h: Sequence[Tensor] | None, k: int) -> Tensor:
    stride = math.ceil(v.total / SAMPLE)
    picks = [slice(-offset % stride, None, stride) for offset in v.offsets()]
    pieces = [t.flatten()[pick].cpu() for t, pick in zip(v.local, picks, strict=True)]
    weights = None if h is None else [t[pick].cpu() for t, pick in zip(h, picks, strict=True)]
    everyone = v.world.gather((pieces, weights))
    order = range(len(pieces))
    sample = torch.cat([theirs[i] for i in order for theirs, _ in everyone])
    masses = None if h is None else torch.cat([theirs[i] for i in order for _, theirs in everyone if theirs])
    return v.world.same(ops.kmeans1d(sample, k, weights=masses).codebook)


def _sums(
    flat: Sequence[Tensor], h: Sequence[Tensor] | None, codebook: Tensor, bounds: tuple[float, float, int], world: World
) -> tuple[Tensor, Tensor]:
    """The sums of h x and of h over each cell, over all shards, in fixed point: exact whatever their order."""
    largest, heaviest, total = bounds
    room = 61 - math.ceil(math.log2(total + 1))
    scale_x = 2.0 ** min(room - math.frexp(largest * heaviest)[1], 1000)
    scale_h = 2.0 ** min(room - math.frexp(heaviest)[1], 1000)
    sums = torch.zeros(2, codebook.numel(), dtype=torch.int64, device=codebook.device)
    for i, t in enumerate(flat):
        for at in range(0, t.numel(), CHUNK):
            x = t[at : at + CHUNK]
            weight = torch.ones_like(x, dtype=torch.float64) if h is None else h[i][at : at + CHUNK].double()
            codes = ops.assign(x, codebook).long()
            sums[0].index_add_(0, codes, (x.double() * weight * scale_x).round().long())
            sums[1].index_add_(0, codes, (weight * scale_h).round().long())
    both = world.sum(sums).cpu().double()
    return both[0] / scale_x, both[1] / scale_h


def _report_quantize(compression: Quantize, delta: Shards) -> dict[str, Any]:
    codes = sum(delta.world.gather(compression.weight_bits()))
    bits = codes + compression.bits() - compression.weight_bits()
    return {"bits": bits, "weight_bits": codes, "summary": compression.summary()}
