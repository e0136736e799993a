"""topk_prune against the ways that torch and numpy offer: python benchmarks/bench_topk_prune.py [--json FILE]

"copies" is our time over that of copying the input into a buffer that is there.
"""

from __future__ import annotations

import numpy as np
import torch
from harness import arguments, interleaved_medians, report, start

from lc_ext import ops


def by_kthvalue(x: torch.Tensor, kappa: int) -> torch.Tensor:
    """torch, with ties left as they fall."""
    threshold = x.abs().kthvalue(x.numel() - kappa + 1).values
    return torch.where(x.abs() >= threshold, x, 0)


def by_partition(x: np.ndarray, kappa: int, scratch: np.ndarray) -> np.ndarray:
    """numpy, in buffers that are used again."""
    np.abs(x, out=scratch)
    threshold = np.partition(scratch, x.size - kappa)[x.size - kappa]
    return np.where(scratch >= threshold, x, 0)


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--keep", type=float, default=0.05)
    options = parser.parse_args()
    header, table = start(options), []
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes:
        for kind in ("Gaussian", "200 levels"):
            x = torch.randn(n, generator=rng)
            x = x if kind == "Gaussian" else (x * 25).round() / 25
            kappa = round(options.keep * n)
            out, buffer, scratch = ops.topk_prune(x, kappa), torch.empty_like(x), np.empty(n, np.float32)
            assert torch.equal(out.mask, ops.topk_prune_reference([x], kappa).mask[0])
            times = interleaved_medians(
                {
                    "ours": lambda x=x, k=kappa, out=out: ops.topk_prune(x, k, out=out),
                    "kthvalue": lambda x=x, k=kappa: by_kthvalue(x, k),
                    "partition": lambda x=x, k=kappa, s=scratch: by_partition(x.numpy(), k, s),
                    "copy": lambda x=x, b=buffer: b.copy_(x),
                },
                options.seconds,
            )
            median = {name: t["median"] for name, t in times.items()}
            best = min(median["kthvalue"], median["partition"])
            table.append(
                {
                    "n": n,
                    "values": kind,
                    "ours ms": median["ours"],
                    "kthvalue ms": median["kthvalue"],
                    "np.partition ms": median["partition"],
                    "best peer / ours": best / median["ours"],
                    "copies": median["ours"] / median["copy"],
                }
            )
    report(f"topk_prune, keep {options.keep:g}, values and mask, medians", header, table, options.json)


if __name__ == "__main__":
    main()
