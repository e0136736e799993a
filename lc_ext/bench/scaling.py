"""scaling: cost per element from 1e4 to 1e8 elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .harness import Case, Options
from .overhead import kmeans1d, topk_prune


def cases(options: Options) -> Iterator[Case]:
    """Cold k-means and pruning to 5 per cent of Gaussian values, into memory that is there."""
    rng = torch.Generator().manual_seed(0)
    usual = [10_000, 100_000] if options.quick else [10**4, 10**5, 10**6, 10**7, 10**8]
    for n in options.sizes or usual:
        x = torch.randn(n, generator=rng).to(options.dtype)
        for k in options.k or [16]:
            yield kmeans1d(x, k)
        yield topk_prune(x, round(0.05 * n))
