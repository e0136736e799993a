"""lut_decode: packed codes to the dense weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Square weights of ``sizes`` rows."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([256] if options.quick else [1024, 4096]):
        for k in options.k or [2, 4, 8, 16, 256]:
            codes = torch.randint(0, k, (side, side), generator=rng, dtype=torch.uint8)
            yield _case(codes, torch.randn(k, generator=rng))


def _case(codes: Tensor, codebook: Tensor) -> Case:
    side = codes.shape[0]
    bits = max(1, (codebook.numel() - 1).bit_length())
    words = ops.pack_codes(codes, bits)

    def verify(weight: Tensor) -> dict[str, float]:
        assert torch.equal(weight, codebook[codes.long()]), "values differ from codebook[codes]"
        return {}

    return Case(
        {"side": side, "bits": bits},
        lambda: ops.lut_decode(words, codebook, bits, side),
        verify,
        {
            "unpack, index": lambda: codebook[ops.unpack_codes(words, bits, side).int()],
            "index, not packed": lambda: codebook[codes.int()],
        },
        source=[words],
        moved=4 * words.numel() + 4 * codes.numel(),
    )
