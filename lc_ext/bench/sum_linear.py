"""sum_linear: 4-bit codes with sparse corrections, and with a low-rank term too, beside the codes alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import ops
from ..nn import LowRankLinear, LUTLinear, PackedLinear, SparseLinear, SumLinear
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Square weights of ``sizes`` rows: 1 per cent of corrections, with and without rank 16."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([256] if options.quick else [4096, 1024]):
        codes = torch.randint(0, 16, (side, side), generator=rng, dtype=torch.uint8)
        lut = LUTLinear.from_codes(codes, torch.randn(16, generator=rng) / side**0.5)
        corrections = torch.randn(side, side, generator=rng) * (torch.rand(side, side, generator=rng) < 0.01)
        sparse = SparseLinear.from_csr(*ops.dense_to_csr(corrections), side)
        low_rank = LowRankLinear.from_factors(
            torch.randn(side, 16, generator=rng) / side**0.5, torch.randn(16, side, generator=rng) / side**0.5
        )
        terms: dict[str, list[PackedLinear]] = {"1 %": [lut, sparse], "1 % + rank 16": [lut, sparse, low_rank]}
        for name, parts in terms.items():
            for batch in [1, 8] if options.quick else [1, 8, 64]:
                yield _case(torch.randn(batch, side, generator=rng), lut, SumLinear(parts), name)


def _case(x: Tensor, lut: LUTLinear, layer: SumLinear, name: str) -> Case:
    dense: nn.Linear = layer.dense_linear()

    def verify(y: Tensor) -> dict[str, float]:
        exact = x.double() @ dense.weight.detach().double().T
        error = float((y - exact).norm() / exact.norm())
        assert error < 2e-3, "error beyond what 16-bit codewords may make"
        return {"error": error}

    def without_gradient(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    return Case(
        {"side": x.shape[1], "terms": name, "batch": x.shape[0]},
        lambda: without_gradient(layer),
        verify,
        {"codes alone": lambda: without_gradient(lut), "dense": lambda: without_gradient(dense)},
        source=[x],
        moved=layer.nbytes + 2 * x.nbytes,
    )
