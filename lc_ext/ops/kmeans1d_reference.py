"""Scalar k-means in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._kmeans1d import KMeansListResult, KMeansRaggedResult, KMeansResult, name_of, refuse
from .assign import assign_reference
from .pack_codes import pack_codes

__all__ = ["kmeans1d_reference"]


def without_kernel(
    xs: list[Tensor],
    hs: list[Tensor] | None,
    offsets: Tensor | None,
    joint: bool,
    start: Tensor | None,
    k: int,
    options: tuple[int, int, float, list[float], int],
    codebook: Tensor,
    codes: list[Tensor],
    single: bool,
) -> KMeansResult | KMeansListResult | KMeansRaggedResult:
    """:func:`kmeans1d` on a device without a kernel: one :func:`kmeans1d_reference` after another."""
    _, max_iter, _, pins, bits = options
    flats, weights = [t.reshape(-1) for t in xs], None if hs is None else [h.reshape(-1) for h in hs]
    if joint:
        flats, weights = [torch.cat(flats)], None if weights is None else [torch.cat(weights)]
    if offsets is not None:
        sizes = offsets.diff().tolist()
        flats, weights = list(flats[0].split(sizes)), None if weights is None else list(weights[0].split(sizes))
    starts = None if start is None else start.reshape(-1, k)
    found = []
    for i, t in enumerate(flats):
        name = "x" if joint or offsets is not None else name_of(i, single)
        h = None if weights is None else weights[i]
        if not bool(t.isfinite().all()):
            refuse(1, name)
        if h is not None and not bool((h.isfinite() & (h >= 0)).all() and (h > 0).any()):
            refuse(2, name)
        init = None if starts is None else starts[i]
        found.append(kmeans1d_reference(t, k, weights=h, init=init, pinned=pins, max_iter=max_iter))
    codebook.copy_(torch.stack([r.codebook for r in found]).reshape(codebook.shape))
    everything = torch.cat([r.codes for r in found]).split([t.numel() for t in xs])
    for c, t, mine in zip(codes, xs, everything, strict=True):
        rows = t.shape[0] if t.dim() > 1 else 1
        c.copy_(pack_codes(mine.reshape(rows, -1), bits) if bits else mine.reshape(t.shape))
    if single and offsets is None:
        return KMeansResult(codebook, codes[0], found[0].distortion, found[0].iterations)
    distortions, iterations = [r.distortion for r in found], [r.iterations for r in found]
    if offsets is None:
        return KMeansListResult(codebook, codes, distortions, iterations)
    device = codebook.device
    return KMeansRaggedResult(
        codebook,
        codes[0],
        torch.tensor(distortions, dtype=torch.float64, device=device),
        torch.tensor(iterations, dtype=torch.int64, device=device),
    )


def kmeans1d_reference(
    x: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    init: Tensor | None = None,
    pinned: Sequence[float] = (),
    max_iter: int = 300,
) -> KMeansResult:
    """One problem in plain torch: sort, prefix sums, an optimal partition of at most 512 atoms, Lloyd by binary search.

    Pinned codewords take the places of the nearest that the partition finds.

    The meaning the kernels are tested against: its result is a fixed point of exact Lloyd, and globally optimal where
    there are at most 512 distinct values. O(n log n + k 512^2). The implementation on devices that have no kernel.
    """
    flat, order = x.float().reshape(-1).sort()
    value = flat.double()
    h = torch.ones_like(value) if weights is None else weights.reshape(-1)[order].double()
    center = value[value.numel() // 2]
    t = value - center
    w = torch.cat([t.new_zeros(1), h.cumsum(0)])
    s = torch.cat([t.new_zeros(1), (h * t).cumsum(0)])
    codebook = _partition_reference(flat, w, s, k) if init is None else init.double() - center
    fixed = torch.zeros_like(codebook, dtype=torch.bool)
    if pinned:
        pins = torch.tensor(sorted(pinned), dtype=torch.float64, device=x.device) - center
        if init is None:
            codebook = torch.cat([codebook, codebook[-1:].expand(k - codebook.numel())])
            for pin in pins:
                at = (codebook - pin).abs().masked_fill(torch.isin(codebook, pins), torch.inf).argmin()
                codebook[at] = pin
            codebook = codebook.sort().values
        fixed = torch.isin(codebook, pins)
    iterations = 0
    for iterations in range(1, max_iter + 1):  # noqa: B007 (the count is a result)
        ends = torch.searchsorted(t, (codebook[1:] + codebook[:-1]) / 2, right=True)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([t.numel()])])
        mass, total = w[edges].diff(), s[edges].diff()
        moved = torch.where((mass > 0) & ~fixed, total / mass.clamp_min(1e-300), codebook)
        if torch.equal(moved, codebook):
            break
        codebook = moved
    codebook = torch.cat([codebook, codebook[-1:].expand(k - codebook.numel())]) + center
    codebook = codebook.float().sort().values
    codes = assign_reference(x, codebook)
    error = (x.double() - codebook.double()[codes.long()]).square()
    distortion = error.sum() if weights is None else (weights.double() * error).sum()
    return KMeansResult(codebook, codes, distortion.item(), iterations)


def _partition_reference(flat: Tensor, w: Tensor, s: Tensor, k: int, atoms: int = 512) -> Tensor:
    """Means of the optimal partition of the sorted values, cut only between distinct ones."""
    cuts = torch.cat([flat.new_zeros(1).long(), (flat.diff() != 0).nonzero().flatten() + 1])
    cuts = torch.cat([cuts, cuts.new_tensor([flat.numel()])])
    cuts = cuts[torch.cat([cuts.new_ones(1).bool(), w[cuts].diff() > 0])]  # an atom has weight
    if cuts.numel() > atoms + 1:
        at = torch.linspace(0, cuts.numel() - 1, atoms + 1, device=cuts.device).round().long()
        cuts = cuts[at]
    w, s = w[cuts], s[cuts]
    m = w.numel() - 1
    gain = (s[None] - s[:, None]).square() / (w[None] - w[:, None]).clamp_min(1e-300)  # of the cell of atoms i..j-1
    gain = gain.masked_fill(torch.ones_like(gain, dtype=torch.bool).tril(), -torch.inf)
    best, splits = gain[0], []
    for _ in range(min(k, m) - 1):
        best, split = (best[:, None] + gain).max(0)
        splits.append(split)
    ends = [m]
    for split in reversed(splits):
        ends.append(int(split[ends[-1]]))
    edges = torch.tensor([0, *reversed(ends)], device=w.device)
    return s[edges].diff() / w[edges].diff()
