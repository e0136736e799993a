"""lut_linear against the dense layer: python benchmarks/bench_lut_linear.py [--rows N --cols N] [--json FILE]"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import arguments, interleaved_medians, report, start

from lc_ext import ops


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8, 64])
    options = parser.parse_args()
    header = start(options)
    rng = torch.Generator().manual_seed(0)
    rows, cols, table = options.rows, options.cols, []
    for bits in options.bits:
        codes = torch.randint(0, 2**bits, (rows, cols), generator=rng, dtype=torch.uint8)
        codebook = torch.randn(2**bits, generator=rng)
        words, weight = ops.pack_codes(codes, bits), codebook[codes.long()]
        assert torch.equal(ops.lut_decode(words, codebook, bits, cols), weight)
        for batch in options.batch:
            x = torch.randn(batch, cols, generator=rng)
            exact = x.double() @ weight.double().T
            bound = (cols + 2) * 2**-24 * 1.01 * (x.abs().double() @ weight.abs().double().T)
            ours = ops.lut_linear(x, words, codebook, bits, cols)
            assert bool(((ours - exact).abs() <= bound).all())
            times = interleaved_medians(
                {
                    "ours": lambda x=x, w=words, c=codebook, b=bits: ops.lut_linear(x, w, c, b, cols),
                    "dense": lambda x=x, w=weight: F.linear(x, w),
                },
                options.seconds,
            )
            table.append(
                {
                    "bits": bits,
                    "batch": batch,
                    "ours ms": times["ours"]["median"],
                    "min ms": times["ours"]["min"],
                    "dense ms": times["dense"]["median"],
                    "dense / ours": times["dense"]["median"] / times["ours"]["median"],
                    "MB": words.numel() * 4 / 1e6,
                    "relative error": f"{float((ours - exact).norm() / exact.norm()):.1e}",
                }
            )
    report(f"lut_linear, {rows} x {cols}, medians", header, table, options.json)


if __name__ == "__main__":
    main()
