"""jacobi_svd: many small Gaussian matrices."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import ops
from .harness import Case, Options

_SHAPES = [(512, 3, 3), (512, 9, 64), (4096, 9, 16), (64, 20, 300), (200, 32, 48), (64, 64, 64)]


def cases(options: Options) -> Iterator[Case]:
    """Half of the triplets, and 8 at most."""
    rng = torch.Generator().manual_seed(0)
    for count, m, n in _SHAPES[:2] if options.quick else _SHAPES:
        yield _case(torch.randn(count, m, n, generator=rng), min(8, (min(m, n) + 1) // 2))


def _case(a: torch.Tensor, rank: int) -> Case:
    best = torch.linalg.svdvals(a.double())[:, rank:].square().sum(1).sqrt()

    def verify(result: tuple[torch.Tensor, ...]) -> dict[str, float]:
        u, s, vh = (part.double() for part in result)
        error = torch.linalg.vector_norm(a.double() - u[:, :, :rank] * s[:, None, :rank] @ vh[:, :rank], dim=(1, 2))
        excess = float((error / best).max()) - 1
        assert excess <= 1e-6, excess
        return {"excess": excess}

    count, m, n = a.shape
    return Case(
        {"count": count, "m": m, "n": n, "rank": rank},
        lambda: ops.jacobi_svd(a, rank),
        verify,
        {"torch.linalg.svd": lambda: torch.linalg.svd(a, full_matrices=False)},
        verify,
        source=[a],
        moved=4 * (a.numel() + count * rank * (m + n + 1)),
        flops=6.0 * count * m * n * min(m, n),
    )
