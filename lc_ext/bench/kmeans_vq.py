"""kmeans_vq: vector k-means of a million values, ten iterations from the same start, and cold."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.kmeans_vq import VQResult
from .harness import Case, Options

_ITERATIONS = 10


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values as vectors of 2, 4 and 8; ``sizes`` count values."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or [10_000 if options.quick else 1_000_000]:
        for d in (8,) if options.quick else (2, 4, 8):
            x = torch.randn(n // d, d, generator=rng).to(options.dtype)
            for k in options.k or [16, 256]:
                yield _warm(x, x[:k].clone(), k)
        yield _cold(torch.randn(n // 8, 8, generator=rng).to(options.dtype), max(options.k or [256]))


def _warm(x: Tensor, init: Tensor, k: int) -> Case:
    def ours() -> VQResult:
        return ops.kmeans_vq(x, k, init=init, max_iter=_ITERATIONS, tol=0, out=out)

    out = ops.kmeans_vq(x, k, init=init, max_iter=_ITERATIONS, tol=0)

    def verify(result: VQResult) -> dict[str, float]:
        before = float(ops.kmeans_vq(x, k, init=init, max_iter=0).distortion)
        assert float(result.distortion) <= before, "the distortion rose"
        return _quality(x, result.codebook)

    peers: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("sklearn"):
        peers["sklearn Lloyd"] = lambda: _sklearn(x, init, k)
    if importlib.util.find_spec("faiss"):
        peers["faiss"] = lambda: _faiss(x, init, k)
    return Case(
        {"n": x.numel(), "d": x.shape[1], "k": k, "what": f"{_ITERATIONS} iterations"},
        ours,
        verify,
        peers,
        quality=lambda codebook: _quality(x, codebook),
        source=[x],
        moved=x.nbytes + x.shape[0],
        flops=2.0 * x.numel() * k * (_ITERATIONS + 1),
    )


def _cold(x: Tensor, k: int) -> Case:
    out = ops.kmeans_vq(x, k)

    def verify(result: VQResult) -> dict[str, float]:
        return _quality(x, result.codebook) | {"iterations": float(result.iterations)}

    return Case(
        {"n": x.numel(), "d": x.shape[1], "k": k, "what": "cold"},
        lambda: ops.kmeans_vq(x, k, out=out),
        verify,
        source=[x],
        moved=x.nbytes + x.shape[0],
        flops=2.0 * x.numel() * k * (int(out.iterations) + 1),
    )


def _quality(x: Tensor, codebook: Tensor) -> dict[str, float]:
    """Distortion of a value."""
    nearest = [
        torch.cdist(part.float(), codebook).min(1).values.square().sum(dtype=torch.float64) for part in x.split(8192)
    ]
    return {"distortion": float(sum(nearest)) / x.numel()}


def _sklearn(x: Tensor, init: Tensor, k: int) -> Tensor:
    kmeans = importlib.import_module("sklearn.cluster").KMeans
    model = kmeans(k, init=init.numpy(), n_init=1, max_iter=_ITERATIONS, tol=0, algorithm="lloyd").fit(
        x.float().numpy()
    )
    return torch.from_numpy(model.cluster_centers_).float()


def _faiss(x: Tensor, init: Tensor, k: int) -> Tensor:
    faiss = importlib.import_module("faiss")
    model = faiss.Kmeans(x.shape[1], k, niter=_ITERATIONS, max_points_per_centroid=1 << 30, seed=0)
    model.train(x.float().numpy(), init_centroids=init.float().numpy())
    return torch.from_numpy(model.centroids)
