"""decode: codes to codewords."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Uniform codes."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        for k in options.k or [2, 16, 256]:
            codes = torch.randint(0, k, (n,), generator=rng, dtype=torch.uint8)
            yield _case(codes, torch.randn(k, generator=rng))


def _case(codes: Tensor, codebook: Tensor) -> Case:
    out = torch.empty(codes.shape)

    def verify(x: Tensor) -> dict[str, float]:
        assert torch.equal(x, codebook[codes.long()]), "values differ from codebook[codes]"
        return {}

    return Case(
        {"n": codes.numel(), "k": codebook.numel()},
        lambda: ops.decode(codes, codebook, out=out),
        verify,
        {
            "torch codebook[codes.int()]": lambda: codebook[codes.int()],
            "np.take": lambda: np.take(codebook.numpy(), codes.numpy(), out=out.numpy(), mode="clip"),
        },
        source=[codes],
        moved=5 * codes.numel(),
    )
