"""pack_codes and unpack_codes: rows of a bit stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from .harness import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Packing and unpacking of random codes; ``k`` is taken as 2**bits."""
    rng = torch.Generator().manual_seed(0)
    widths = [(k - 1).bit_length() for k in options.k] if options.k else [4] if options.quick else [1, 2, 3, 4, 5, 8]
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        cols = min(n, 1000)
        for bits in widths:
            codes = torch.randint(0, 2**bits, (n // cols, cols), generator=rng, dtype=torch.uint8)
            yield from _cases(codes, bits)


def _cases(codes: Tensor, bits: int) -> Iterator[Case]:
    words = ops.pack_codes(codes, bits)
    packed, unpacked, cols = torch.empty_like(words), torch.empty_like(codes), codes.shape[1]

    def verify_packed(result: Tensor) -> dict[str, float]:
        assert torch.equal(result, ops.pack_codes_reference(codes, bits)), "words differ from the reference"
        return {}

    def verify_unpacked(result: Tensor) -> dict[str, float]:
        assert torch.equal(result, codes), "codes differ"
        return {}

    yield Case(
        {"n": codes.numel(), "bits": bits, "what": "pack"},
        lambda: ops.pack_codes(codes, bits, out=packed),
        verify_packed,
        {"torch": lambda: ops.pack_codes_reference(codes, bits)},
        source=[codes],
        moved=codes.nbytes + words.nbytes,
    )
    yield Case(
        {"n": codes.numel(), "bits": bits, "what": "unpack"},
        lambda: ops.unpack_codes(words, bits, cols, out=unpacked),
        verify_unpacked,
        {"torch": lambda: ops.unpack_codes_reference(words, bits, cols)},
        source=[codes],
        moved=codes.nbytes + words.nbytes,
    )
