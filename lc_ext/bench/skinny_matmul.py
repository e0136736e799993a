"""skinny_matmul: a large matrix times a few columns, both ways round."""

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
        for b in options.k or [16, 32, 64]:
            for transpose in (False, True):
                yield _case(a, torch.randn(side, b, generator=rng), transpose)


def _case(a: Tensor, x: Tensor, transpose: bool) -> Case:
    left = a.t() if transpose else a

    def verify(y: Tensor) -> dict[str, float]:
        exact = left.double() @ x.double()
        error = float((y.double() - exact).abs().max() / exact.abs().max())
        assert error <= 1e-5, error
        return {"error": error}

    return Case(
        {"side": len(a), "b": x.shape[1], "transpose": transpose},
        lambda: ops.skinny_matmul(a, x, transpose=transpose),
        verify,
        {"torch.matmul": lambda: left @ x},
        verify,
        source=[a],
        moved=4 * (a.numel() + 2 * x.numel()),
        flops=2.0 * a.numel() * x.shape[1],
    )
