"""sparse_linear: linear layer with a sparse weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..nn import SparseLinear
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Square weights of ``sizes`` rows, at 10, 5 and 1 per cent, beside torch's CSR (MKL) and the dense layer."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([256] if options.quick else [4096, 1024]):
        for density in [0.05] if options.quick else [0.1, 0.05, 0.01]:
            kept = torch.rand(side, side, generator=rng) < density
            weight = torch.randn(side, side, generator=rng) * kept
            for batch in [1, 8] if options.quick else [1, 8, 64]:
                yield _case(torch.randn(batch, side, generator=rng).to(options.dtype), weight, density)


def _case(x: Tensor, weight: Tensor, density: float) -> Case:
    side, batch = weight.shape[0], x.shape[0]
    csr = ops.dense_to_csr(weight)
    layer = SparseLinear.from_csr(*csr, side)
    dense = weight.to(x.dtype)

    def verify(y: Tensor) -> dict[str, float]:
        exact = x.double() @ weight.double().T
        longest = int((weight != 0).sum(1).max())
        bound = (longest + 2) * 2**-24 * 1.01 * (x.double().abs() @ weight.double().abs().T)
        bound += exact.abs() * torch.finfo(x.dtype).eps  # of casting the result back
        assert bool(((y - exact).abs() <= bound).all()), "error beyond (longest row + 2) eps |x| |W|"
        return {"error": float((y - exact).norm() / exact.norm())}

    return Case(
        {"side": side, "density": density, "batch": batch},
        lambda: layer(x),
        verify,
        {**torch_csr(x, dense), "dense": lambda: F.linear(x, dense)},
        source=[x, *csr],
        moved=sum(t.numel() * t.element_size() for t in csr) + 2 * batch * side * x.element_size(),
        flops=2.0 * batch * csr[0].numel(),
    )


def torch_csr(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """torch's product with a CSR matrix, by MKL where the indices are int32: of one row, or of a matrix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wide = weight.to_sparse_csr()
        starts, columns = wide.crow_indices().int(), wide.col_indices().int()
        csr = torch.sparse_csr_tensor(starts, columns, wide.values(), wide.shape)
    if x.shape[0] == 1:
        return {"torch CSR": lambda: torch.mv(csr, x[0])[None], "torch CSR, matrix": lambda: (csr @ x.T).T}
    return {"torch CSR": lambda: (csr @ x.T.contiguous()).T}
