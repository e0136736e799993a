"""lut_linear: linear layer with packed codes and a codebook."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Square weights of ``sizes`` rows, ``k`` codewords, batches of 1 to 64, beside the dense layer."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([256] if options.quick else [4096]):
        for k in options.k or ([16] if options.quick else [2, 4, 8, 16, 256]):
            codes = torch.randint(0, k, (side, side), generator=rng, dtype=torch.uint8)
            codebook = torch.randn(k, generator=rng)
            for batch in [1, 8] if options.quick else [1, 4, 8, 64]:
                x = torch.randn(batch, side, generator=rng).to(options.dtype)
                yield _case(x, codes, codebook)


def _case(x: Tensor, codes: Tensor, codebook: Tensor) -> Case:
    side, batch = codes.shape[0], x.shape[0]
    bits = max(1, (codebook.numel() - 1).bit_length())
    words, weight = ops.pack_codes(codes, bits), codebook[codes.long()].to(x.dtype)

    def verify(y: Tensor) -> dict[str, float]:
        wide = codebook[codes.long()].double()
        exact = x.double() @ wide.T
        bound = (side + 2) * 2**-24 * 1.01 * (x.double().abs() @ wide.abs().T)
        bound += exact.abs() * torch.finfo(x.dtype).eps  # of casting the result back
        assert bool(((y - exact).abs() <= bound).all()), "error beyond (cols + 2) eps |x| |W|"
        return {"error": float((y - exact).norm() / exact.norm())}

    return Case(
        {"side": side, "bits": bits, "batch": batch},
        lambda: ops.lut_linear(x, words, codebook, bits, side),
        verify,
        {"dense": lambda: F.linear(x, weight)},
        source=[x, words],
        moved=4 * words.numel() + 2 * batch * side * x.element_size(),
    )
