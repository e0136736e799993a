"""Whole nets, packed, against dense ones: bytes on disk, memory, and the latency of a call.

    python benchmarks/end_to_end.py [--threads 1] [--json benchmarks/results/end_to_end.json]

LeNet300, LeNet5 and ResNet20, each layer at 16 codewords and 1 % corrections by direct compression: speed and size do
not depend on the values. Outputs are verified first; then ours, torch's dense float32 and its dynamic int8 (which has
linear layers only) take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import lc

NETS = {
    "LeNet300": (lc.models.lenet300, (784,)),
    "LeNet5": (lc.models.lenet5, (1, 28, 28)),
    "ResNet20": (lc.models.resnet20, (3, 32, 32)),
}


def pack(model):
    """The model at 4 bits and 1 % corrections, compressed in place, and packed."""
    algorithm = lc.LCAlgorithm(model, lc.Task("re:.*", lc.Quantize(16) + lc.Prune(0.01)), mu=[1.0], multipliers=False)
    algorithm.run(lambda model, step: algorithm.penalty().item())
    return lc.pack(model)


def medians(calls, seconds):
    """Median milliseconds of each call, in turn."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[next(iter(times))]) < 20:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(t) for name, t in times.items()}


def buffers(model):
    """Bytes of the tensors that a model holds."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def measure(name, seconds):
    make, shape = NETS[name]
    torch.manual_seed(0)
    dense = make().eval()
    packed = pack(dense).eval()
    int8 = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear})
    row = {"net": name, "dense_bytes": buffers(dense), "packed_bytes": buffers(packed)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("safetensors", "lcz"):
            lc.save(packed, Path(folder, f"net.{kind}"))
            row[f"{kind}_bytes"] = Path(folder, f"net.{kind}").stat().st_size
        torch.save(int8.state_dict(), Path(folder, "int8"))
        row["int8_bytes"] = Path(folder, "int8").stat().st_size
    for batch in (1, 32):
        x = torch.randn(batch, *shape)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), dense(x), rtol=1e-3, atol=1e-3)
            models = {"packed": packed, "dense": dense, "int8": int8}
            row[f"batch_{batch}_ms"] = medians({n: lambda m=m, x=x: m(x) for n, m in models.items()}, seconds)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each net and batch size")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(name, options.seconds) for name in options.nets.split(",")]
    for row in rows:
        kinds = ("dense", "packed", "safetensors", "lcz", "int8")
        print(f"{row['net']:9s} KB: " + ", ".join(f"{kind} {row[f'{kind}_bytes'] / 1e3:.1f}" for kind in kinds))
        for batch in (1, 32):
            ms = row[f"batch_{batch}_ms"]
            times = ", ".join(f"{kind} {t:.3f}" for kind, t in ms.items())
            ratios = f"packed / dense {ms['packed'] / ms['dense']:.2f}, / int8 {ms['packed'] / ms['int8']:.2f}"
            print(f"          batch {batch:2d}, ms: {times}; {ratios}")
    if options.json:
        options.json.write_text(
            json.dumps({"threads": options.threads, "torch": torch.__version__, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
