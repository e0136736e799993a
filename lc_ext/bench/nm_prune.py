"""nm_prune: keep n of m consecutive entries of a square matrix, values and mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import ops
from ..ops._prune import MaskKind
from .harness import Case, Options

PATTERNS = [(2, 4, -1), (1, 4, -1), (4, 8, -1), (1, 2, -1), (8, 16, -1), (3, 5, -1), (2, 4, 0), (4, 8, 0)]


def cases(options: Options) -> Iterator[Case]:
    """Gaussian matrices; sizes are sides."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([64] if options.quick else [1024, 4096]):
        x = torch.randn(side, side, generator=rng).to(options.dtype)
        for n, m, dim in PATTERNS:
            part = x.narrow(dim, 0, side // m * m).contiguous()
            yield _case(part, n, m, dim, "bits")
            if (n, m, dim) == (2, 4, -1):
                yield _case(part, n, m, dim, "bool")


def _case(x: Tensor, n: int, m: int, dim: int, mask: MaskKind) -> Case:
    out = ops.nm_prune(x, n, m, dim=dim, mask=mask)

    def verify(got: ops.NMPruneResult) -> dict[str, float]:
        want = ops.nm_prune_reference(x, n, m, dim=dim)
        flat = got.mask if mask == "bool" else ops.unpack_codes(got.mask[None], 1, x.numel()).bool().view(x.shape)
        assert torch.equal(flat, want.mask), "mask differs"
        assert torch.equal(got.values, want.values), "values differ"
        return {}

    return Case(
        {"side": x.shape[0], "pattern": f"{n}:{m}", "dim": dim, "mask": mask},
        lambda: ops.nm_prune(x, n, m, dim=dim, mask=mask, out=out),
        verify,
        _peers(x, n, m) if dim == -1 else {},
        source=[x],
        moved=2 * x.nbytes + x.numel() // (8 if mask == "bits" else 1),
    )


def _peers(x: Tensor, n: int, m: int) -> dict[str, Callable[[], object]]:
    groups = x.view(-1, m)

    def topk() -> Tensor:
        at = groups.abs().topk(n, dim=1, sorted=False).indices
        return torch.zeros_like(groups).scatter_(1, at, groups.gather(1, at))

    def network() -> Tensor:
        """Keep what beats two of the other three, in torch operations without a branch."""
        a, b, c, d = groups.abs().unbind(1)
        ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
        won = [ab.byte() + ac + ad, (~ab).byte() + bc + bd, (~ac).byte() + ~bc + cd, (~ad).byte() + ~bd + ~cd]
        return torch.where(torch.stack(won, 1) >= 2, groups, 0)

    peers: dict[str, Callable[[], object]] = {"torch.topk": topk}
    if (n, m) == (2, 4):
        peers["comparisons, torch"] = network
    return peers
