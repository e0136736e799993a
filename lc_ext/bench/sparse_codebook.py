"""sparse_codebook: support and codebook of the nonzeros chosen together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values, 10 % nonzeros."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        x = torch.randn(n, generator=rng)
        moved = x + 0.02 * torch.randn(n, generator=rng)
        for k in options.k or [2, 16, 255]:
            yield _case(x, k, None)
            yield _case(x, k, ops.sparse_codebook(moved, k, n // 10).codebook)


def _case(x: Tensor, k: int, init: Tensor | None) -> Case:
    kappa = x.numel() // 10
    out = ops.sparse_codebook(x, k, kappa)
    sequential = _prune_then_cluster(x, k, kappa)

    def verify(result: ops.SparseCodebookResult) -> dict[str, float]:
        assert isinstance(result.codes, Tensor)
        values = torch.cat([result.codebook.new_zeros(1), result.codebook])[result.codes.long()]
        left = float((x.double() - values).square().sum())
        assert abs(left - result.distortion) <= 1e-6 * left and result.nonzeros <= kappa
        return {"over prune, then cluster": result.distortion / sequential}

    return Case(
        {"n": x.numel(), "k": k, "start": "cold" if init is None else "warm"},
        lambda: ops.sparse_codebook(x, k, kappa, init=init, out=out),
        verify,
        {
            "turns": lambda: ops.sparse_codebook(x, k, kappa, weights=torch.ones_like(x), init=init),
            "prune, then cluster": lambda: _prune_then_cluster(x, k, kappa),
        },
        source=[x],
        moved=x.numel() * 5,
    )


def _prune_then_cluster(x: Tensor, k: int, kappa: int) -> float:
    pruned = ops.topk_prune(x, kappa)
    return ops.kmeans1d(x[pruned.mask], k).distortion + float(x[~pruned.mask].square().sum())
