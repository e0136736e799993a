"""overhead: the fixed cost of a call, at 1000 elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options, reusing


def cases(options: Options) -> Iterator[Case]:
    """Each op on Gaussian values, into memory that is there."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or [1000]:
        x = torch.randn(n, generator=rng).to(options.dtype)
        for k in options.k or [16]:
            codebook = torch.randn(k, generator=rng).sort().values
            yield kmeans1d(x, k)
            yield assign(x, codebook)
            yield decode(ops.assign(x, codebook), codebook)
        yield topk_prune(x, round(0.05 * n))


def kmeans1d(x: Tensor, k: int) -> Case:
    """Cold k-means; the codes are verified, and that they explain most of the variance."""

    def verify(result: ops.KMeansResult) -> dict[str, float]:
        nearest = ops.assign_reference
        for part, codes in zip(x.split(1 << 22), result.codes.split(1 << 22), strict=True):
            assert torch.equal(codes, nearest(part, result.codebook)), "codes are not the nearest"
        variance = float(x.double().var(correction=0))
        unexplained = result.distortion / (x.numel() * variance)
        assert unexplained < 2.8 / k**2, "distortion above that of an optimal quantizer of Gaussian values"
        return {"distortion / variance": unexplained}

    label: dict[str, object] = {"op": "kmeans1d", "n": x.numel(), "k": k}
    moved = x.numel() * (x.element_size() + 1)
    return Case(label, reusing(ops.kmeans1d, x, k), verify, source=[x], moved=moved)


def assign(x: Tensor, codebook: Tensor) -> Case:
    """Nearest codewords."""

    def verify(codes: Tensor) -> dict[str, float]:
        assert torch.equal(codes, ops.assign_reference(x, codebook)), "codes are not the nearest"
        return {}

    label: dict[str, object] = {"op": "assign", "n": x.numel(), "k": codebook.numel()}
    moved = x.numel() * (x.element_size() + 1)
    return Case(label, reusing(ops.assign, x, codebook), verify, source=[x], moved=moved)


def decode(codes: Tensor, codebook: Tensor) -> Case:
    """Codes to codewords."""

    def verify(x: Tensor) -> dict[str, float]:
        assert torch.equal(x, codebook[codes.long()]), "values differ from codebook[codes]"
        return {}

    label: dict[str, object] = {"op": "decode", "n": codes.numel(), "k": codebook.numel()}
    return Case(label, reusing(ops.decode, codes, codebook), verify, source=[codes], moved=5 * codes.numel())


def topk_prune(x: Tensor, keep: int) -> Case:
    """Values and mask of the largest magnitudes, verified from the definition without a sort."""

    def verify(result: ops.PruneResult) -> dict[str, float]:
        magnitude, mask = x.abs().float(), result.mask
        assert int(mask.sum()) == keep, "kept another number"
        assert bool((magnitude >= result.threshold)[mask].all()), "kept one below the threshold"
        assert not bool((magnitude > result.threshold)[~mask].any()), "dropped one above the threshold"
        assert torch.equal(result.values, x.where(mask, x.new_zeros(()))), "values are not those of the mask"
        return {}

    label: dict[str, object] = {"op": "topk_prune", "n": x.numel()}
    moved = x.numel() * (2 * x.element_size() + 1)
    return Case(label, reusing(ops.topk_prune, x, keep), verify, source=[x], moved=moved)
