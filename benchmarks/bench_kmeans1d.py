"""kmeans1d, cold and warm, against a sort with prefix-sum Lloyd, and scikit-learn.

    python benchmarks/bench_kmeans1d.py [--json FILE]

"excess" is the distortion over ours, less 1. "copies" is our time over that of copying the input into a buffer that is
there: a stand-in for the bandwidth of the machine.
"""

from __future__ import annotations

import numpy as np
import torch
from harness import arguments, interleaved_medians, report, start

from lc_ext import ops


def sort_lloyd(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best peer that a few lines of numpy make: sort once, then Lloyd on prefix sums from quantiles."""
    values = np.sort(x).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    codebook = np.quantile(values, (np.arange(k) + 0.5) / k)
    for _ in range(300):
        edges = np.concatenate([[0], np.searchsorted(values, (codebook[1:] + codebook[:-1]) / 2), [len(values)]])
        counts = np.diff(edges)
        moved = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), codebook)
        if np.allclose(moved, codebook, rtol=1e-6, atol=0):
            break
        codebook = moved
    return np.searchsorted((codebook[1:] + codebook[:-1]) / 2, x), codebook


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 235_200, 1_000_000, 10_000_000])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 16, 256])
    parser.add_argument("--sklearn", action="store_true", help="time scikit-learn too: seconds a call")
    options = parser.parse_args()
    header, table = start(options), []
    rng = torch.Generator().manual_seed(0)
    for n in options.sizes:
        x = torch.randn(n, generator=rng)
        buffer = torch.empty_like(x)
        for k in options.k:
            result = ops.kmeans1d(x, k)
            assert torch.equal(result.codes, ops.assign_reference(x, result.codebook))
            codes, codebook = sort_lloyd(x.numpy(), k)
            excess = float(((x.numpy() - codebook[codes]) ** 2).sum()) / result.distortion - 1
            assert excess > -1e-3
            functions = {
                "cold": lambda x=x, k=k: ops.kmeans1d(x, k),
                "warm": lambda x=x, k=k, c=result.codebook: ops.kmeans1d(x, k, init=c),
                "sort": lambda x=x, k=k: sort_lloyd(x.numpy(), k),
                "copy": lambda x=x, b=buffer: b.copy_(x),
            }
            if options.sklearn:
                from sklearn.cluster import KMeans

                functions["sklearn"] = lambda x=x, k=k: KMeans(k, n_init=1).fit(x.numpy().reshape(-1, 1))
            times = interleaved_medians(functions, options.seconds, rounds=3)
            median = {name: t["median"] for name, t in times.items()}
            row = {
                "n": n,
                "k": k,
                "cold ms": median["cold"],
                "warm ms": median["warm"],
                "sort+Lloyd ms": median["sort"],
            }
            row |= {"sklearn ms": median["sklearn"]} if options.sklearn else {}
            row |= {"sort / cold": median["sort"] / median["cold"], "its excess": f"{excess:.1e}"}
            table.append(row | {"copies": median["cold"] / median["copy"]})
    report("kmeans1d of Gaussian values, medians", header, table, options.json)


if __name__ == "__main__":
    main()
