"""quantize_scaled: a fixed codebook times the best scale, for a tensor and for groups of 64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from ..ops import codebooks
from ..ops.quantize_scaled import ScaledResult
from .harness import Case, Options

_BOOKS = {
    "ternary": codebooks.ternary(),
    "powers of two": codebooks.powers_of_two(6),
    "int4": codebooks.int_symmetric(4),
    "nf4": codebooks.nf4(),
    "int8": codebooks.int_symmetric(8),
}


def cases(options: Options) -> Iterator[Case]:
    """Gaussian values, plain and weighted; ``k`` picks the codebooks of so many levels."""
    rng = torch.Generator().manual_seed(0)
    books = {name: book for name, book in _BOOKS.items() if options.k is None or book.numel() in options.k}
    for n in options.sizes or ([10_000] if options.quick else [10_000, 1_000_000, 10_000_000]):
        x = torch.randn(n, generator=rng).to(options.dtype)
        h = torch.rand(n, generator=rng)
        for name, book in books.items():
            yield _case(name, "", x, book, None, None)
            yield _case(name, "weighted", x, book, h, None)
            if n <= 1_000_000 and book.numel() <= 16:
                offsets = torch.cat([torch.arange(0, n, 64), torch.tensor([n])])
                yield _case(name, "groups of 64", x, book, None, offsets)


def _case(name: str, what: str, x: Tensor, book: Tensor, h: Tensor | None, offsets: Tensor | None) -> Case:
    out = ops.quantize_scaled(x, book, weights=h, offsets=offsets)
    weights = torch.ones_like(x) if h is None else h

    def excess(result: ScaledResult) -> dict[str, float]:
        """Over the best of the scales around the one that was found, on a grid, and over the float64 sweep."""
        best = float(result.distortion.sum())
        if offsets is None:
            scales = [float(result.scale) * (1 + 0.002 * i) for i in range(-5, 6)]
            best = min(best, *(_distortion(x, weights, book, s) for s in scales))
        if x.numel() * book.numel() <= 200_000:
            bounds = [0, x.numel()] if offsets is None else offsets.tolist()
            best = sum(
                float(ops.quantize_scaled_reference(x[a:b].float(), book, weights=weights[a:b]).distortion)
                for a, b in itertools.pairwise(bounds)
            )
        return {"excess": float(result.distortion.sum()) / best - 1}

    def verify(result: ScaledResult) -> dict[str, float]:
        quality = excess(result)
        assert quality["excess"] < 1e-7, quality
        return quality

    return Case(
        {"n": x.numel(), "levels": name, "what": what},
        lambda: ops.quantize_scaled(x, book, weights=h, offsets=offsets, out=out),
        verify,
        {} if offsets is not None else {"100 scales, torch": lambda: _grid_search(x, weights, book)},
        quality=excess,
        source=[x] if h is None else [x, h],
        moved=x.nbytes + x.numel() + (0 if h is None else h.nbytes),
    )


def _distortion(x: Tensor, weights: Tensor, book: Tensor, scale: float) -> float:
    codebook = scale * book
    error = x.double() - codebook.double()[ops.assign(x, codebook).long()]
    return float((weights.double() * error.square()).sum())


def _grid_search(x: Tensor, weights: Tensor, book: Tensor) -> ScaledResult:
    """What quantization toolkits do: try scales between 0.2 and 1.2 of the one that reaches the largest value."""
    full = float(x.abs().max()) / float(book.abs().max())
    tried = []
    for i in range(20, 120):
        codebook = full * i / 100 * book
        mids = (codebook[1:] + codebook[:-1]) / 2
        codes = torch.bucketize(x.float(), mids)
        tried.append((float((weights * (x - codebook[codes]).square()).sum()), full * i / 100))
    _, scale = min(tried)
    result = _distortion(x, weights, book, scale)
    return ScaledResult(torch.tensor(scale), ops.assign(x, scale * book), torch.tensor(result, dtype=torch.float64))
