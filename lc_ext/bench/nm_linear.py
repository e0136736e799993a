"""nm_linear: linear layer with an N:M sparse weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..nn import NMLinear
from .harness import Case, Options
from .sparse_linear import torch_csr


def cases(options: Options) -> Iterator[Case]:
    """Square weights of ``sizes`` rows pruned 2:4 (also in bfloat16), 1:4 and 4:8, beside CSR (MKL) and
    the dense layer."""
    rng = torch.Generator().manual_seed(0)
    patterns = [(2, 4, torch.float32), (2, 4, torch.bfloat16), (1, 4, torch.float32), (4, 8, torch.float32)]
    for side in options.sizes or ([256] if options.quick else [4096, 1024]):
        for n, m, dtype in patterns:
            weight = ops.nm_prune(torch.randn(side, side // m * m, generator=rng), n, m).values.to(dtype)
            for batch in [1, 8, 20] if options.quick else [1, 8, 64]:
                yield _case(torch.randn(batch, weight.shape[1], generator=rng).to(options.dtype), weight, n, m)


def _case(x: Tensor, weight: Tensor, n: int, m: int) -> Case:
    rows, cols, batch = *weight.shape, x.shape[0]
    packed, dense = ops.nm_pack(weight, n, m), weight.to(x.dtype)
    layer = NMLinear.from_packed(*packed, n, m, cols)

    def verify(y: Tensor) -> dict[str, float]:
        exact = x.double() @ weight.double().T
        bound = (cols // m * n + 2) * 2**-24 * 1.01 * (x.double().abs() @ weight.double().abs().T)
        bound += exact.abs() * torch.finfo(x.dtype).eps  # of casting the result back
        assert bool(((y - exact).abs() <= bound).all()), "error beyond (slots + 2) eps |x| |W|"
        return {"error": float((y - exact).norm() / exact.norm())}

    return Case(
        {"side": rows, "pattern": f"{n}:{m}", "values": str(weight.dtype).removeprefix("torch."), "batch": batch},
        lambda: layer(x),
        verify,
        {**torch_csr(x, dense), "dense": lambda: F.linear(x, dense)},
        source=[x, *packed],
        moved=sum(t.nbytes for t in packed) + batch * (rows + cols) * x.element_size(),
        flops=2.0 * batch * packed.values.numel(),
    )
