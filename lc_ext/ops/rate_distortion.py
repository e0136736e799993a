"""The distortion of a tensor at each pair of (bits, nonzeros): what a budget over many tensors is spent by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from . import _check, _sums
from .sparse_codebook import sparse_codebook, sparse_codebook_reference

__all__ = ["RateDistortion", "rate_distortion", "rate_distortion_reference"]


_SIXTEENTHS = tuple(part / 16 for part in range(1, 17))


class RateDistortion(NamedTuple):
    """Result of :func:`rate_distortion`."""

    bits: tuple[int, ...]
    nonzeros: tuple[int, ...]
    distortion: Tensor


def rate_distortion(
    x: Tensor | Sequence[Tensor],
    bits: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
    nonzeros: Sequence[int | float] = _SIXTEENTHS,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> RateDistortion:
    """Least sum_i h_i (x_i - theta_i)^2 with ``nonzeros`` values that share 2^``bits`` codewords, for all pairs.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite; or a list of them on one device, taken as one.
    bits : of a nonzero, ascending, each from 1 to 8. b bits are 2^b codewords besides zero, 255 for b = 8.
    nonzeros : ascending; each an int, a count, or a float in [0, 1], a fraction of the number of elements, rounded.
    weights : the h_i, like ``x``: finite, not negative. Default: all one.

    Returns
    -------
    bits, nonzeros : as counts.
    distortion : float64 tensor of shape (len(bits), len(nonzeros)) on the CPU, falling in both directions.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Without weights: one pass over the data makes a histogram, and one dynamic program from either end of it (1024
    atoms on either side of zero) holds the optima of all pairs. Each entry is the exact distortion of a solution whose
    cells end at atoms (up to 1e-7 of the sum of squares, since sums are of rounded values), so an upper bound of the
    optimum, and :func:`sparse_codebook` ends at or below it. With weights
    each pair is a call of :func:`sparse_codebook`, from a cold start.

    Examples
    --------
    >>> curve = ops.rate_distortion(torch.randn(1000), bits=(1, 2), nonzeros=(0.25, 0.5))
    >>> curve.distortion.shape, bool((curve.distortion[0] >= curve.distortion[1]).all())
    (torch.Size([2, 2]), True)
    """
    xs, hs = _sums.inputs(x, weights)
    total = sum(t.numel() for t in xs)
    levels = [_check.integer(b, "bits", 1, 8) for b in bits]
    counts = [_count(v, total) for v in nonzeros]
    for name, given in (("bits", levels), ("nonzeros", counts)):
        if not given or any(b < a for a, b in itertools.pairwise(given)):
            raise ValueError(f"{name} must be ascending and not empty, got {given}")
    codewords = [min(2**b, 255) for b in levels]
    if hs is None and _native.has_kernel("rate_distortion", xs[0]):
        distortion = torch.empty(len(levels), len(counts), dtype=torch.float64, device="cpu")
        if not _native.call("rate_distortion", xs, [t.numel() for t in xs], codewords, counts, distortion):
            raise ValueError("x contains NaN or Inf")
    else:
        _sums.refuse_bad(xs, hs)
        distortion = _pair_by_pair(xs, codewords, counts, hs, native=_native.has_kernel("sparse_codebook", xs[0]))
    return RateDistortion(tuple(levels), tuple(counts), distortion)


def rate_distortion_reference(
    x: Sequence[Tensor], codewords: Sequence[int], nonzeros: Sequence[int], *, weights: Sequence[Tensor] | None = None
) -> Tensor:
    """A joint solution for each pair, in plain torch."""
    return _pair_by_pair(x, codewords, nonzeros, weights, native=False)


def _pair_by_pair(
    xs: Sequence[Tensor],
    codewords: Sequence[int],
    nonzeros: Sequence[int],
    hs: Sequence[Tensor] | None,
    *,
    native: bool,
) -> Tensor:
    solve = sparse_codebook if native else sparse_codebook_reference
    rows = [[solve(list(xs), k, kappa, weights=hs).distortion for kappa in nonzeros] for k in codewords]
    return torch.tensor(rows, dtype=torch.float64, device="cpu").cummin(0).values.cummin(1).values


def _count(value: int | float, total: int) -> int:
    if isinstance(value, float):
        if not 0 <= value <= 1:
            raise ValueError(f"nonzeros must be counts, or fractions between 0.0 and 1.0, got {value}")
        return round(value * total)
    return _check.integer(value, "nonzeros", 0, total)
