"""assign against torch.bucketize: python benchmarks/bench_assign.py [--json FILE]"""

from __future__ import annotations

import torch
from harness import arguments, interleaved_medians, report, start

from lc_ext import ops
from lc_ext.ops.assign import midpoints


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 16, 256])
    options = parser.parse_args()
    header, table = start(options), []
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes:
        x = torch.randn(n, generator=rng)
        buffer = torch.empty_like(x)
        for k in options.k:
            codebook = torch.randn(k, generator=rng).sort().values
            mids = midpoints(codebook)
            assert torch.equal(ops.assign(x, codebook), ops.assign_reference(x, codebook))
            times = interleaved_medians(
                {
                    "ours": lambda x=x, c=codebook: ops.assign(x, c),
                    "bucketize": lambda x=x, m=mids: torch.bucketize(x, m, out_int32=True),
                    "copy": lambda x=x, b=buffer: b.copy_(x),
                },
                options.seconds,
            )
            median = {name: t["median"] for name, t in times.items()}
            table.append(
                {
                    "n": n,
                    "k": k,
                    "ours ms": median["ours"],
                    "bucketize ms": median["bucketize"],
                    "bucketize / ours": median["bucketize"] / median["ours"],
                    "copies": median["ours"] / median["copy"],
                }
            )
    report("assign, medians", header, table, options.json)


if __name__ == "__main__":
    main()
