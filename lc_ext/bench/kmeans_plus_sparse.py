"""kmeans_plus_sparse: an adaptive codebook and corrections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options

_METHODS: tuple[Literal["trimmed", "alternate"], ...] = ("trimmed", "alternate")


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values, 1 % corrections; cold, and warm from the codebook of values that were slightly different."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [10_000, 235_200, 1_000_000, 10_000_000]):
        x = torch.randn(n, generator=rng)
        moved = x + 0.02 * torch.randn(n, generator=rng)
        for k in options.k or [2, 16, 256]:
            for method in _METHODS:
                yield _case(x, k, method, None)
                yield _case(x, k, method, ops.kmeans_plus_sparse(moved, k, n // 100, method=method).codebook)


def _case(x: Tensor, k: int, method: Literal["trimmed", "alternate"], init: Tensor | None) -> Case:
    kappa = x.numel() // 100
    out = ops.kmeans_plus_sparse(x, k, kappa)
    composed = _composed(x, k, kappa, init)

    def verify(result: ops.CodebookPlusSparseResult) -> dict[str, float]:
        exact = ops.codebook_plus_sparse(x, result.codebook, kappa)
        assert torch.equal(result.indices, exact.indices) and result.distortion == exact.distortion
        if init is not None:
            assert result.distortion <= ops.codebook_plus_sparse(x, init, kappa).distortion, "above the warm start"
        return {"excess": result.distortion / composed - 1}

    return Case(
        {"n": x.numel(), "k": k, "method": method, "start": "cold" if init is None else "warm"},
        lambda: ops.kmeans_plus_sparse(x, k, kappa, init=init, method=method, out=out),
        verify,
        {"composed": lambda: _composed(x, k, kappa, init), "kmeans1d alone": lambda: ops.kmeans1d(x, k, init=init)},
        source=[x],
        moved=x.numel() * 5 + 12 * kappa,
    )


def _composed(x: Tensor, k: int, kappa: int, init: Tensor | None) -> float:
    """The alternation of topk_prune and kmeans1d on the data that ``lc.Sum`` made before this op: 30 turns at most."""
    quantized, before, error = torch.zeros_like(x), float("inf"), float("inf")
    if init is not None:
        quantized = ops.decode(ops.assign(x, init), init)
    for _ in range(30):
        sparse = ops.topk_prune(x - quantized, kappa).values
        clusters = ops.kmeans1d(x - sparse, k, init=init)
        init, quantized = clusters.codebook, ops.decode(clusters.codes, clusters.codebook)
        error = float((x - quantized - sparse).square().sum())
        if before - error <= 1e-3 * error:
            break
        before = error
    return error
