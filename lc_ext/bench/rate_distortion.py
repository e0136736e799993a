"""rate_distortion: the curve over 8 bits and 16 counts of nonzeros from one histogram."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        yield _case(torch.randn(n, generator=rng))


def _case(x: Tensor) -> Case:
    n = x.numel()

    def verify(curve: ops.RateDistortion) -> dict[str, float]:
        """The largest part by which four entries are above what sparse_codebook reaches."""
        excess = [
            float(curve.distortion[i, j]) / ops.sparse_codebook(x, 2 ** curve.bits[i], curve.nonzeros[j]).distortion - 1
            for i in (1, 5)
            for j in (1, 9)
        ]
        assert -1e-6 <= min(excess), "below what a solution reaches"
        return {"excess": max(excess)}

    def pair_by_pair() -> list[float]:
        """A joint solution for each of the 128 pairs."""
        return [
            ops.sparse_codebook(x, min(2**b, 255), n * part // 16).distortion
            for b in range(1, 9)
            for part in range(1, 17)
        ]

    return Case(
        {"n": n}, lambda: ops.rate_distortion(x), verify, {"sparse_codebook": pair_by_pair}, source=[x], moved=4 * n
    )
