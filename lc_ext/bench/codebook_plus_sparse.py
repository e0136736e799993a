"""codebook_plus_sparse and binary_plus_sparse: a codebook and corrections, jointly optimal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values, 1 % corrections."""
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        x = torch.randn(n, generator=rng).to(options.dtype)
        for k in options.k or [2, 16, 256]:
            yield _fixed(x, torch.randn(k, generator=rng).sort().values)
        yield _binary(x)


def _case(x: Tensor, label: dict[str, object], call: Any, verify: Any, composed: Any) -> Case:
    kappa = x.numel() // 100
    moved = x.numel() * (x.element_size() + 1) + 12 * kappa
    return Case({"n": x.numel()} | label, call, verify, {"composed": composed}, source=[x], moved=moved)


def _fixed(x: Tensor, codebook: Tensor) -> Case:
    kappa = x.numel() // 100
    out = ops.codebook_plus_sparse(x, codebook, kappa)

    def verify(result: ops.CodebookPlusSparseResult) -> dict[str, float]:
        want = ops.codebook_plus_sparse_reference([x.float()], codebook, kappa)
        assert torch.equal(result.indices, want.indices), "corrections differ from the reference"
        return {}

    def composed() -> tuple[Tensor, Tensor]:
        """The parts that were there before: codes, residual, its largest entries."""
        codes = ops.assign(x, codebook)
        return codes, ops.topk_prune(x - ops.decode(codes, codebook), kappa).values

    label: dict[str, object] = {"codebook": "fixed", "k": codebook.numel()}
    return _case(x, label, lambda: ops.codebook_plus_sparse(x, codebook, kappa, out=out), verify, composed)


def _binary(x: Tensor) -> Case:
    kappa = x.numel() // 100
    out = ops.binary_plus_sparse(x, kappa)

    def verify(result: ops.CodebookPlusSparseResult) -> dict[str, float]:
        want = ops.binary_plus_sparse_reference([x.float()], kappa).distortion
        assert abs(result.distortion - want) <= 1e-9 * want, "not the best window"
        return {"excess": result.distortion / want - 1}

    def composed() -> float:
        """Every window of the sorted magnitudes, in torch."""
        return ops.binary_plus_sparse_reference([x.float()], kappa).distortion

    label: dict[str, object] = {"codebook": "-c, c", "k": 2}
    return _case(x, label, lambda: ops.binary_plus_sparse(x, kappa, out=out), verify, composed)
