"""overhead: the fixed cost of a call, at 1000 elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from ..ops import codebooks
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
            yield pack_codes(ops.assign(x, codebook), k)
        yield from of_values(x)


def of_values(x: Tensor) -> Iterator[Case]:
    """The ops that need nothing but values."""
    yield topk_prune(x, round(0.05 * x.numel()))
    yield nm_prune(x)
    yield l1_ball(x)
    yield quantize_fixed(x)
    yield quantize_scaled(x)


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


def nm_prune(x: Tensor) -> Case:
    """2:4, values and mask."""

    def verify(result: ops.NMPruneResult) -> dict[str, float]:
        groups, mask = x.abs().view(-1, 4), result.mask.view(-1, 4)
        assert bool((mask.sum(1) == 2).all()), "kept another number in a group"
        least = groups.masked_fill(~mask, torch.inf).amin(1)
        assert bool((groups.masked_fill(mask, 0).amax(1) <= least).all()), "kept one that is not among the largest"
        assert torch.equal(result.values, x.where(result.mask, x.new_zeros(()))), "values are not those of the mask"
        return {}

    label: dict[str, object] = {"op": "nm_prune", "n": x.numel()}
    moved = x.numel() * (2 * x.element_size() + 1)
    return Case(label, reusing(ops.nm_prune, x, 2, 4), verify, source=[x], moved=moved)


def l1_ball(x: Tensor) -> Case:
    """Project on the ball of 30 per cent of the l1 norm."""
    radius = 0.3 * float(x.abs().sum(dtype=torch.float64))

    def verify(result: ops.BallResult) -> dict[str, float]:
        error = abs(float(result.values.abs().sum(dtype=torch.float64)) / radius - 1)
        assert error < (1e-2 if x.dtype != torch.float32 else 1e-5), "not on the sphere"
        return {"excess": error}

    label: dict[str, object] = {"op": "l1_ball", "n": x.numel()}
    return Case(label, reusing(ops.l1_ball, x, radius), verify, source=[x], moved=2 * x.nbytes)


def quantize_fixed(x: Tensor) -> Case:
    """To -1, 0 and 1."""
    levels = codebooks.ternary()

    def verify(result: ops.ScaledResult) -> dict[str, float]:
        assert torch.equal(result.codes, ops.assign_reference(x, levels)), "codes are not the nearest"
        return {}

    label: dict[str, object] = {"op": "quantize_fixed", "n": x.numel()}
    return Case(label, reusing(ops.quantize_fixed, x, levels), verify, source=[x], moved=x.nbytes + x.numel())


def quantize_scaled(x: Tensor) -> Case:
    """To -c, 0 and c with the best c."""
    levels = codebooks.ternary()

    def verify(result: ops.ScaledResult) -> dict[str, float]:
        codebook = result.scale * levels
        assert torch.equal(result.codes, ops.assign_reference(x, codebook)), "codes are not the nearest"
        magnitude = x.float().abs()
        mean = float(magnitude[magnitude > result.scale / 2].mean(dtype=torch.float64))
        assert abs(float(result.scale) / mean - 1) < 1e-5, "the scale is not the mean of what it stands for"
        return {}

    label: dict[str, object] = {"op": "quantize_scaled, ternary", "n": x.numel()}
    return Case(label, reusing(ops.quantize_scaled, x, levels), verify, source=[x], moved=x.nbytes + x.numel())


def pack_codes(codes: Tensor, k: int) -> Case:
    """Codes to words."""
    bits, rows = max(1, (k - 1).bit_length()), codes.view(1, -1)

    def verify(words: Tensor) -> dict[str, float]:
        assert torch.equal(ops.unpack_codes(words, bits, codes.numel()), rows), "codes do not come back"
        return {}

    label: dict[str, object] = {"op": "pack_codes", "n": codes.numel(), "k": k}
    moved = codes.numel() + codes.numel() * bits // 8
    return Case(label, reusing(ops.pack_codes, rows, bits), verify, source=[codes], moved=moved)
