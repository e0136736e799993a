"""topk_prune: keep 5 % of the entries, values and mask."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..ops._prune import MaskKind
from .harness import Case, Options

KEEP = 0.05


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values, values of which many are equal, weights, and a list of the sizes of ResNet-50."""
    rng = torch.Generator().manual_seed(0)
    dtype = options.dtype
    for n in options.sizes or (
        [10_000] if options.quick else [1000, 10_000, 100_000, 1_000_000, 10_000_000, 25_000_000]
    ):
        x = torch.randn(n, generator=rng)
        yield _case("Gaussian", [x.to(dtype)], "bits")
        yield _case("Gaussian", [x.to(dtype)], "bool")
        if n >= 1_000_000 or options.sizes or options.quick:
            yield _case("Gaussian, indices", [x.to(dtype)], "bits", indices=True)
            yield _case("200 values", [((x * 25).round() / 25).to(dtype)], "bits")
            yield _case("7 values", [x.round().to(dtype)], "bits")
            yield _case("weighted", [x.to(dtype)], "bits", [torch.rand(n, generator=rng)])
    if not options.sizes and not options.quick:
        yield _case("list of 50", [torch.randn(n, generator=rng).to(dtype) for n in _resnet50()], "bits")


def _case(
    kind: str, xs: list[Tensor], mask: MaskKind, weights: list[Tensor] | None = None, indices: bool = False
) -> Case:
    n = sum(x.numel() for x in xs)
    kappa = round(KEEP * n)
    prune: Callable[..., Any] = functools.partial(
        ops.topk_prune, xs, kappa, weights=weights, mask=mask, indices=indices
    )
    out = prune()
    peers = {} if weights else _peers(xs, kappa)
    moved = sum(2 * x.nbytes + x.numel() // (8 if mask == "bits" else 1) for x in xs)
    return Case(
        {"n": n, "values": kind, "mask": mask},
        lambda: prune(out=out),
        lambda got: _verify(got, xs, kappa, weights),
        peers,
        source=[*xs, *(weights or [])],
        moved=moved + sum(h.nbytes for h in weights or []),
    )


def _verify(
    got: ops.ListPruneResult | ops.IndexedListPruneResult, xs: list[Tensor], kappa: int, weights: list[Tensor] | None
) -> dict[str, float]:
    """The stable definition, without a sort: all entries over the threshold, and the first ones at it."""
    score = torch.cat([x.float().abs().reshape(-1) for x in xs])
    if weights:
        score = torch.cat([h.reshape(-1) for h in weights]) * score * score
    threshold = score.kthvalue(score.numel() - kappa + 1).values if kappa else score.new_tensor(torch.inf)
    keep = score > threshold
    ties = (score == threshold).nonzero().reshape(-1)
    keep[ties[: kappa - int(keep.sum())]] = True
    assert got.threshold == threshold, "threshold differs"
    for x, value, mask, want in zip(xs, got.values, got.mask, keep.split([x.numel() for x in xs]), strict=True):
        flat = mask.reshape(-1) if mask.dtype == torch.bool else ops.unpack_codes(mask[None], 1, x.numel())[0].bool()
        assert torch.equal(flat, want), "mask differs"
        assert torch.equal(value.reshape(-1), torch.where(want, x.reshape(-1), 0)), "values differ"
    if isinstance(got, ops.IndexedListPruneResult):
        assert torch.equal(torch.cat(got.indices), keep.nonzero().reshape(-1)) or len(xs) > 1, "indices differ"
    return {}


def _peers(xs: Sequence[Tensor], kappa: int) -> dict[str, Callable[[], object]]:
    """Peers take one float32 array: a list is put together first."""
    scratch, partitioned, out = np.empty((3, sum(x.numel() for x in xs)), np.float32)
    mask, low_mask = np.empty((2, len(out)), bool)

    def joined() -> Tensor:
        return xs[0].float() if len(xs) == 1 else torch.cat([x.float().reshape(-1) for x in xs])

    def kthvalue() -> Tensor:
        x = joined()
        size = x.abs()
        return torch.where(size >= size.kthvalue(len(x) - kappa + 1).values, x, 0)

    def topk() -> Tensor:
        x = joined()
        at = x.abs().topk(kappa, sorted=False).indices
        return torch.zeros_like(x).scatter_(0, at, x[at])

    def write(x: np.ndarray, threshold: np.float32) -> np.ndarray:
        np.greater_equal(scratch, threshold, out=mask)
        np.multiply(x, mask, out=out)
        return out

    def partition() -> np.ndarray:
        x = joined().numpy()
        np.abs(x, out=scratch)
        partitioned[:] = scratch
        partitioned.partition(len(x) - kappa)
        return write(x, partitioned[len(x) - kappa])

    def bracket() -> np.ndarray:
        """The bracket of a 1 % sample, then an exact partition of what is in it."""
        x = joined().numpy()
        np.abs(x, out=scratch)
        sample = np.sort(scratch[::101])
        rank, spread = len(sample) * (1 - KEEP), 4 * (len(sample) * KEEP) ** 0.5
        low, high = sample[max(0, int(rank - spread))], sample[min(len(sample) - 1, int(rank + spread))]
        above = int(np.count_nonzero(np.greater(scratch, high, out=mask)))
        np.greater_equal(scratch, low, out=low_mask)
        np.logical_xor(mask, low_mask, out=mask)
        inside = scratch[mask]
        wanted = kappa - above
        if not 0 < wanted <= len(inside):
            return partition()
        return write(x, np.partition(inside, len(inside) - wanted)[len(inside) - wanted])

    return {
        "sampled bracket, numpy": bracket,
        "np.partition, reused buffers": partition,
        "torch.kthvalue": kthvalue,
        "torch.topk": topk,
    }


def _resnet50() -> list[int]:
    """Fifty sizes: the convolutions, and the last matrix."""
    sizes, inputs = [9408], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            sizes += [inputs * width, width * width * 9, width * width * 4]
            inputs = 4 * width
    return [*sizes[:49], 2048 * 1000]
