"""scaling: cost per element from 1e4 to 1e8 elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import ops
from .harness import Case, Options
from .overhead import assign, decode, kmeans1d, of_values, pack_codes


def cases(options: Options) -> Iterator[Case]:
    """The ops that pass over values, on Gaussian ones, into memory that is there."""
    rng = torch.Generator().manual_seed(0)
    usual = [10_000, 100_000] if options.quick else [10**4, 10**5, 10**6, 10**7, 10**8]
    for n in options.sizes or usual:
        x = torch.randn(n, generator=rng).to(options.dtype)
        for k in options.k or [16]:
            codebook = torch.randn(k, generator=rng).sort().values
            codes = ops.assign(x, codebook)
            yield kmeans1d(x, k)
            yield assign(x, codebook)
            yield decode(codes, codebook)
            yield pack_codes(codes, k)
        yield from of_values(x)
