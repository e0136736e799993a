"""l1_ball: the projection that leaves 30 % of the l1 norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values, plain and weighted."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [1000, 100_000, 1_000_000, 10_000_000]):
        x = torch.randn(n, generator=rng).to(options.dtype)
        yield _case(x, None)
        yield _case(x, torch.rand(n, generator=rng) + 0.1)


def _case(x: Tensor, weights: Tensor | None) -> Case:
    radius = 0.3 * float(x.double().abs().sum())
    out = ops.l1_ball(x, radius, weights=weights)

    def verify(got: ops.BallResult) -> dict[str, float]:
        want, tau = ops.l1_ball_reference([x], radius, None if weights is None else [weights])
        torch.testing.assert_close(got.values, want[0], rtol=2.0**-23, atol=1e-9)
        return {"threshold's error": abs(got.threshold.item() / tau - 1)}

    def by_sort() -> Tensor:
        size = x.float().abs()
        descending = size.sort(descending=True).values
        taus = (descending.cumsum(0, dtype=torch.float64) - radius) / torch.arange(1, len(x) + 1)
        return x.sign() * (size - taus[descending > taus][-1].float()).clamp(min=0)

    return Case(
        {"n": x.numel(), "weighted": weights is not None},
        lambda: ops.l1_ball(x, radius, weights=weights, out=out),
        verify,
        {"sort, torch": by_sort} if weights is None else {},
        source=[x],
        moved=2 * x.nbytes + (0 if weights is None else weights.nbytes),
    )
