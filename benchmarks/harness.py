"""What the benchmarks share: interleaved timing, a header that says what was measured on, tables, JSON.

A benchmark verifies its results first, then times the competitors in turns, so that a change of clock or a noisy
neighbour hits all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lc_ext import _native

CONSOLE = Console()


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], seconds: float = 1.0, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Time functions in turns.

    Parameters
    ----------
    functions : what to time, by name.
    seconds : time to spend, over all of them.
    rounds : turns that each takes at least, whatever the time.

    Returns
    -------
    by name: ``median``, ``min`` and ``max`` in milliseconds, and ``rounds``. The order within a turn rotates. Quick
    functions are repeated within a turn until it takes a millisecond, so the clock's own cost is no part of it.
    """
    names = list(functions)
    repeats: dict[str, int] = {}
    for name in names:
        functions[name]()  # warm
        start = time.perf_counter()
        functions[name]()
        repeats[name] = max(1, min(1000, int(1e-3 / (time.perf_counter() - start + 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in names}
    stop, turn = time.perf_counter() + seconds, 0
    while turn < rounds or time.perf_counter() < stop:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            function, many = functions[name], repeats[name]
            start = time.perf_counter()
            for _ in range(many):
                function()
            times[name].append((time.perf_counter() - start) / many * 1e3)
        turn += 1
    return {
        name: {"median": statistics.median(t), "min": min(t), "max": max(t), "rounds": float(len(t))}
        for name, t in times.items()
    }


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--threads", type=int, default=1, help="torch.set_num_threads (default 1)")
    parser.add_argument("--isa", choices=_native.supported_isas(), help="instruction set (default: the best)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each line of the table")
    return parser


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Apply the common options, print and return the header: CPU, instruction set, threads, versions."""
    torch.set_num_threads(options.threads)
    if options.isa:
        _native.set_isa(options.isa)
    header = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "isa": _native.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    CONSOLE.print(", ".join(f"{key} {value}" for key, value in header.items()), highlight=False)
    return header


def report(title: str, header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print rows, dictionaries of the same keys, as a table; with a path, write them and the header as JSON."""
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    CONSOLE.print(table)
    if path:
        path.write_text(json.dumps({"title": title, "header": dict(header), "rows": list(rows)}, indent=1))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
