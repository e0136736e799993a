"""activation: in place, against torch's functions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from ..ops.activation import ACTIVATIONS
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Gaussian matrices of 4096 columns; --sizes are numbers of rows."""
    rng = torch.Generator().manual_seed(0)
    for batch in options.sizes or ([8] if options.quick else [1, 8, 64, 1024]):
        x = torch.randn(batch, 4096, generator=rng)
        for kind in ACTIVATIONS:
            yield _case(x, kind)


def _case(x: Tensor, kind: str) -> Case:
    out, exact = torch.empty_like(x), ops.activation_reference(x, kind).double()

    def verify(y: Tensor) -> dict[str, float]:
        error = float((y.double() - exact).abs().max())
        assert error <= 1e-6, error
        return {"error": error}

    return Case(
        {"batch": len(x), "kind": kind},
        lambda: ops.activation(x, kind, out=out),
        verify,
        {"torch": lambda: ops.activation_reference(x, kind)},
        verify,
        source=[x],
        moved=8 * x.numel(),
    )
