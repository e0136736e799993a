"""truncated_svd: cold, and warm from the factors of a matrix that differs by 2 % of noise."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import SVDResult
from .harness import Case, Options

_SIZES = [(512, 512, 16), (1024, 1024, 64), (512, 4608, 32), (4096, 1024, 64), (4096, 4096, 128)]
_LARGE = 1 << 23  # entries from which a full decomposition takes seconds


def cases(options: Options) -> Iterator[Case]:
    """Singular values i^-0.6, and a little noise."""
    sizes = [(n, n, max(1, n // 32)) for n in options.sizes] if options.sizes else _SIZES
    for m, n, default in sizes[:2] if options.quick else sizes:
        w = _power_law(m, n)
        for rank in options.k or [default]:
            best = _optimum(w, rank)
            noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
            warm = ops.truncated_svd(w + 0.02 * w.norm() / (m * n) ** 0.5 * noise, rank)
            for start in (None, warm):
                yield _case(w.to(options.dtype), rank, start, best)


def _case(w: Tensor, rank: int, warm: SVDResult | None, best: float) -> Case:
    def quality(result: Any) -> dict[str, float]:
        u, s, vh = (torch.as_tensor(part).double() for part in result)
        return {"excess": float((w.double() - (u * s) @ vh).norm()) / best - 1}

    def verify(result: SVDResult) -> dict[str, float]:
        columns = quality(result)
        assert columns["excess"] <= 1e-6 + 1e-3 * (w.dtype is not torch.float32), columns
        return columns

    m, n = w.shape
    return Case(
        {"m": m, "n": n, "rank": rank, "start": "cold" if warm is None else "warm"},
        lambda: ops.truncated_svd(w, rank, warm=warm),
        verify,
        _peers(w.float(), rank) if warm is None else {},
        quality,
        source=[w],
        moved=w.numel() * w.element_size() + 4 * rank * (m + n + 1),
        flops=4.0 * m * n * (rank + 10),
    )


def _peers(w: Tensor, rank: int) -> dict[str, Callable[[], Any]]:
    """Those that are exact; randomized ones stop short by 1e-3 and more at such spectra."""
    found: dict[str, Callable[[], Any]] = {}
    if w.numel() < _LARGE // 4:
        found["torch.linalg.svd"] = lambda: _first(torch.linalg.svd(w, full_matrices=False), rank)
    if importlib.util.find_spec("scipy") is not None:
        linalg = importlib.import_module("scipy.linalg")
        sparse = importlib.import_module("scipy.sparse.linalg")
        x = w.numpy()

        def propack() -> Any:
            u, s, vh = sparse.svds(x, k=rank, solver="propack", random_state=0)
            return u[:, ::-1].copy(), s[::-1].copy(), vh[::-1].copy()

        def gram() -> Any:
            a = x if x.shape[0] >= x.shape[1] else x.T
            n = a.shape[1]
            values, v = linalg.eigh(
                a.T @ a, subset_by_index=[n - rank, n - 1], driver="evr", check_finite=False, overwrite_a=True
            )
            v, s = v[:, ::-1], values[::-1].clip(1e-30) ** 0.5
            u = a @ v / s
            return (u, s.copy(), v.T.copy()) if a is x else (v.copy(), s.copy(), u.T)

        found["scipy propack"] = propack
        if w.numel() < _LARGE:
            found["scipy Gram, eigh"] = gram
    return found


def _first(result: Any, rank: int) -> Any:
    u, s, vh = result
    return u[:, :rank], s[:rank], vh[:rank]


def _optimum(w: Tensor, rank: int) -> float:
    """The least error, in float64: by all singular values, or from triplets that are accurate far beyond the need."""
    wide = w.double()
    if min(w.shape) <= 1024:
        return float(torch.linalg.svdvals(wide)[rank:].square().sum().sqrt())
    vh = ops.truncated_svd(w, rank + 32, tol=1e-9).vh.double()
    captured = torch.linalg.svdvals(wide @ torch.linalg.qr(vh.t())[0])[:rank].square().sum()
    return float((wide.square().sum() - captured).sqrt())


def _power_law(m: int, n: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(m, n, generator=rng)
    k = min(m, n)
    u, v = (torch.linalg.qr(torch.randn(side, k, generator=rng))[0] for side in (m, n))
    w: Tensor = (u * torch.arange(1, k + 1).float().pow(-0.6)) @ v.t() + 0.002 * noise / n**0.5
    return w
