"""assign: nearest codeword of a sorted codebook."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from ..ops.assign import midpoints
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Codes of Gaussian values."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        x = torch.randn(n, generator=rng).to(options.dtype)
        for k in options.k or [2, 4, 16, 256]:
            yield _case(x, torch.randn(k, generator=rng).sort().values)


def _case(x: Tensor, codebook: Tensor) -> Case:
    out = torch.empty(x.shape, dtype=torch.uint8)
    mids = midpoints(codebook).to(x.dtype)

    def verify(codes: Tensor) -> dict[str, float]:
        assert torch.equal(codes, ops.assign_reference(x, codebook)), "codes differ from the reference"
        return {}

    return Case(
        {"n": x.numel(), "k": codebook.numel()},
        lambda: ops.assign(x, codebook, out=out),
        verify,
        {"torch.bucketize": lambda: torch.bucketize(x, mids, out_int32=True)},
        source=[x],
        moved=x.numel() * (x.element_size() + 1),
    )
