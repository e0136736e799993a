"""gram_product: a few rows times a^T, and those times a."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Square Gaussian matrices."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([512] if options.quick else [512, 1024, 4096]):
        a = torch.randn(side, side, generator=rng)
        for b in options.k or [1, 4, 64]:
            yield _case(a, torch.randn(b, side, generator=rng))


def _case(a: Tensor, v: Tensor) -> Case:
    exact = v.double() @ a.double().t() @ a.double()

    def verify(result: tuple[Tensor, Tensor]) -> dict[str, float]:
        error = float((result[1].double() - exact).abs().max() / exact.abs().max())
        assert error <= 1e-5, error
        return {"error": error}

    return Case(
        {"side": len(a), "b": len(v)},
        lambda: ops.gram_product(a, v),
        verify,
        {"torch.matmul": lambda: ops.gram_product_reference(a, v)},
        verify,
        source=[a],
        moved=4 * (a.numel() + 3 * v.numel()),
        flops=4.0 * a.numel() * len(v),
    )
