"""sparse_linear against the dense layer and torch's CSR: python benchmarks/bench_sparse_linear.py [--json FILE]"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from harness import arguments, interleaved_medians, report, start

from lc_ext import ops


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8, 64])
    options = parser.parse_args()
    header = start(options)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    rng = torch.Generator().manual_seed(0)
    rows, cols, table = options.rows, options.cols, []
    for density in options.density:
        weight = torch.randn(rows, cols, generator=rng) * (torch.rand(rows, cols, generator=rng) < density)
        csr, theirs = ops.dense_to_csr(weight), weight.to_sparse_csr()
        longest = int((weight != 0).sum(1).max())
        for batch in options.batch:
            x = torch.randn(batch, cols, generator=rng)
            exact = x.double() @ weight.double().T
            bound = (longest + 2) * 2**-24 * 1.01 * (x.abs().double() @ weight.abs().double().T)
            ours = ops.sparse_linear(x, *csr, cols)
            assert bool(((ours - exact).abs() <= bound).all())
            times = interleaved_medians(
                {
                    "ours": lambda x=x, csr=csr: ops.sparse_linear(x, *csr, cols),
                    "torch CSR": lambda x=x, w=theirs: (w @ x.T).T,
                    "dense": lambda x=x, w=weight: F.linear(x, w),
                },
                options.seconds,
            )
            median = {name: t["median"] for name, t in times.items()}
            table.append(
                {
                    "density": f"{density:g}",
                    "batch": batch,
                    "ours ms": median["ours"],
                    "min ms": times["ours"]["min"],
                    "CSR ms": median["torch CSR"],
                    "dense ms": median["dense"],
                    "CSR / ours": median["torch CSR"] / median["ours"],
                    "dense / ours": median["dense"] / median["ours"],
                }
            )
    report(f"sparse_linear, {rows} x {cols}, medians", header, table, options.json)


if __name__ == "__main__":
    main()
