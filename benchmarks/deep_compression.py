"""Deep Compression of LeNet300 and LeNet5 on 5,000 MNIST digits, beside the LC algorithm: error, and bytes of the file.

    python benchmarks/deep_compression.py run [--validate]   # goes on where it was stopped: a line of JSON for each run
    python benchmarks/deep_compression.py table              # Markdown from those lines

Each run starts from a reference net, ends in an ``.lcz`` file, and is judged by that file: its bytes, and the error of
the net that is loaded from it. ``--validate`` looks at 800 training digits instead of the test set, with reference nets
of their own: the settings were chosen there. One thread; the time of a run is that of the CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from lc_experiment import Data, error, load, reference
from torch import Tensor, nn

import lc

RESULTS = Path(__file__).parent / "results" / "deep_compression.jsonl"
CODEWORDS = 31


@dataclass
class Net:
    """A net, how its reference is trained, and how long and by what rates it is compressed."""

    make: Callable[[], nn.Module]
    reference_epochs: int
    batch: int
    epochs: int  # of each of the ROUNDS of pruning and of the shared values; and in all as many of LC
    lr: tuple[float, float]
    lc_lr: tuple[float, float]
    decay: float  # weight decay, where no teacher is
    mu: tuple[float, float] = (2e-3, 0.6)  # of LC, first and last


ROUNDS = 4
NETS = {
    "lenet300": Net(lc.models.lenet300, 200, 128, 12, (0.2, 0.01), (0.2, 0.02), 5e-3),
    "lenet5": Net(
        lambda: lc.models.lenet5().to(memory_format=torch.channels_last), 60, 64, 8, (0.05, 0.005), (0.05, 0.01), 0.0
    ),
}
CONTROL = "dense, taught"  # the same epochs with the teacher, and no compression
METHODS = ("deep", "deep, taught", "lc", "lc, taught", CONTROL)


def data_of(net: str, seed: int, validate: bool) -> Data:
    data = load(seed, validate)
    if net == "lenet300":
        return data
    return data._replace(x=data.x.view(-1, 1, 28, 28), x_held=data.x_held.view(-1, 1, 28, 28))


def batches(data: Data, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(data.x), generator=generator).split(size):
        yield data.x[rows], data.y[rows]


def reference_of(net: str, data: Data, seed: int, validate: bool, folder: Path) -> nn.Module:
    """The trained net, from ``folder`` if it is there; LeNet300 is that of ``lc_bench.py``."""
    if net == "lenet300":
        return reference(data, seed, "validation" if validate else "ref_mnist5k", folder)
    own = NETS[net]
    path = folder / f"{net}_{'validation' if validate else 'mnist5k'}_s{seed}_e{own.reference_epochs}.pt"
    torch.manual_seed(seed)
    model = own.make()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True)[0])
        return model
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    start = time.process_time()
    for epoch in range(own.reference_epochs):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.96**epoch
        train_epoch(model, optimizer, data, own.batch, generator)
    folder.mkdir(parents=True, exist_ok=True)
    result = (model.state_dict(), time.process_time() - start, {"test_err": error(model, data)})
    torch.save(result, path)
    return model


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, size: int, generator: torch.Generator
) -> None:
    for x, y in batches(data, size, generator):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def compress(net: str, method: str, keep: float, model: nn.Module, data: Data, seed: int) -> lc.LCAlgorithm:
    """One run: ``model`` is compressed in place."""
    own, taught = NETS[net], method.endswith("taught")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)

    def epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train_epoch(model, optimizer, data, own.batch, generator)

    def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0 if taught else own.decay
        )

    if method.startswith("deep"):
        return lc.recipes.deep_compression(
            model,
            epoch,
            keep=keep,
            codewords=CODEWORDS,
            rounds=ROUNDS,
            epochs_per_round=own.epochs,
            sharing_epochs=own.epochs,
            lr=own.lr[0],
            lr_end=own.lr[1],
            optimizer=sgd,
            distill=taught,
        )
    epochs = own.epochs * (ROUNDS + 1)
    steps = epochs // 2
    return lc.compress(
        model,
        lc.Task("re:.*weight", lc.SparseCodebook(CODEWORDS, keep, per="tensor"), joint=True),
        epoch,
        budget_epochs=epochs,
        epochs_per_step=2,
        lr=own.lc_lr[0],
        lr_end=own.lc_lr[1],
        mu=lc.exponential(own.mu[0], (own.mu[1] / own.mu[0]) ** (1 / (steps - 1)), steps),
        optimizer=sgd,
        distill=taught,
    )


def train_on(net: str, model: nn.Module, data: Data, seed: int) -> None:
    """The control."""
    own = NETS[net]
    generator = torch.Generator().manual_seed(1000 + seed)
    teaching = lc.Distillation()
    teaching.bind(model)
    teaching.active = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    epochs = own.epochs * (ROUNDS + 1)
    model.train()
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = own.lr[0] * (own.lr[1] / own.lr[0]) ** (epoch / (epochs - 1))
        train_epoch(model, optimizer, data, own.batch, generator)
    model.eval()


def sizes(path: Path) -> dict[str, int]:
    """Bytes of the parts of an archive of sparse layers."""
    kinds = {"values": "codes", "columns": "gaps", "codebook": "codebooks", "bias": "biases", "header": "header"}
    found = dict.fromkeys(kinds.values(), 0)
    for name, length in lc.archive_parts(path).items():
        found[kinds[name.rpartition(".")[2]]] += length
    return found


def run(net: str, method: str, keep: float, seed: int, validate: bool, folder: Path) -> dict[str, Any]:
    data = data_of(net, seed, validate)
    model = reference_of(net, data, seed, validate, folder)
    before = error(model, data)
    if method == CONTROL:
        train_on(net, model, data, seed)
        return {"reference": round(before, 3), "error": round(error(model, data), 3)}
    start = time.process_time()
    algorithm = compress(net, method, keep, model, data, seed)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "net.lcz"
        lc.save(lc.pack(model), path)
        loaded = lc.load(path, NETS[net].make())
        parts, size = sizes(path), path.stat().st_size
    counted = algorithm.size()
    return {
        "reference": round(before, 3),
        "error": round(error(loaded, data), 3),
        "dense_bytes": counted.dense_bits // 8,
        "file_bytes": size,
        "ratio": round(counted.dense_bits / 8 / size, 2),
        "fixed_length_bytes": counted.bits // 8,
        "weights_only_ratio": round(counted.weights_only_ratio, 1),
        "parts": parts,
        "kept": {
            name: [int(delta.count_nonzero()), delta.numel()]
            for task in algorithm.tasks
            for name, delta in zip(task.names, task.delta, strict=True)
        },
        "seconds": round(seconds, 1),
    }


def table(records: list[dict[str, Any]], split: str) -> str:
    """The mean over the seeds of each net, method and part kept."""
    parts = ["codes", "gaps", "codebooks", "biases", "header"]
    heads = ["net", "method", "kept", "reference", "error, by seed", "mean", "file, bytes", "ratio"]
    heads += ["weights alone, paper's count", "fixed length, bytes", *parts]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for r in sorted((r for r in records if r["split"] == split), key=lambda r: r["seed"]):
        groups.setdefault((r["net"], r["method"], r["keep"]), []).append(r)
    for (net, method, keep), own in sorted(groups.items(), key=lambda g: (g[0][0], -g[0][2], METHODS.index(g[0][1]))):
        cells = [net, method, f"{100 * keep:g} %", f"{mean(r['reference'] for r in own):.2f}"]
        cells += [", ".join(f"{r['error']:.1f}" for r in own), f"{mean(r['error'] for r in own):.2f}"]
        if method != CONTROL:
            size = mean(r["file_bytes"] for r in own)
            cells += [f"{size:.0f}", f"{own[0]['dense_bytes'] / size:.1f}"]
            cells += [f"{mean(r['weights_only_ratio'] for r in own):.0f}"]
            cells += [f"{mean(r['fixed_length_bytes'] for r in own):.0f}"]
            cells += [f"{mean(r['parts'][part] for r in own):.0f}" for part in parts]
        lines.append("| " + " | ".join(cells) + " |" * (1 + len(heads) - len(cells)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--methods", default=";".join(METHODS))
    parser.add_argument("--keep", default="0.08,0.02,0.01")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--references", type=Path, default=Path("results"), help="the folder that caches the nets")
    given = parser.parse_args()
    split = "validation" if given.validate else "test"
    records = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.command == "table":
        print(table(records, split))
        return
    torch.set_num_threads(1)
    for net in given.nets.split(","):
        for keep in map(float, given.keep.split(",")):
            for method in given.methods.split(";"):
                keep = 1.0 if method == CONTROL else keep
                for seed in map(int, given.seeds.split(",")):
                    key = {"net": net, "method": method, "keep": keep, "seed": seed, "split": split}
                    if any(key.items() <= r.items() for r in records):
                        continue
                    record = key | run(net, method, keep, seed, given.validate, given.references)
                    records.append(record)
                    with given.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
