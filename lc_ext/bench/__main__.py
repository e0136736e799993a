"""Microbenchmarks for kernel engineers: each result is verified, then timed beside the peers and the machine's limits.

    python -m lc_ext.bench                          every suite
    python -m lc_ext.bench 'kmeans*' --sizes 1e6 --k 2,16 --threads 1,2
    python -m lc_ext.bench topk_prune --json new.json --compare old.json

docs/benchmarking.md says how to read the table.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import _native
from . import harness, machine, report

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WIDTH = 240  # a narrow terminal that breaks whole lines is easier to read than broken numbers


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status: 1 for a failed case or a regression."""
    args = _parser().parse_args(argv)
    console = Console(width=_WIDTH, highlight=False)
    suites = harness.suites()
    if args.list:
        width = max(map(len, suites)) + 2
        for name, cases in suites.items():
            console.print(f"{name:{width}}{(sys.modules[cases.__module__].__doc__ or '').strip().splitlines()[0]}")
        return 0
    chosen = {op: [op] if op in suites else fnmatch.filter(suites, op) or _ending(suites, op) for op in args.ops}
    names = [name for name in suites if not chosen or any(name in found for found in chosen.values())]
    unknown = [op for op, found in chosen.items() if not found]
    if unknown:
        raise SystemExit(f"no suite named {', '.join(unknown)}; there are {', '.join(suites)}")
    old = report.read(args.compare) if args.compare else None
    if old and old["header"].get("clock") != args.clock:
        raise SystemExit(f"{args.compare} was measured by {old['header'].get('clock')} time: add --clock")
    before = torch.get_num_threads(), _native.active_isa()
    gc.freeze()  # what is imported stays out of the collections before each case, which then take no time
    try:
        if args.isa:
            _native.set_isa(args.isa)
        header = machine.header(args.threads) | {"clock": args.clock}
        console.print(", ".join(f"{key} {value}" for key, value in header.items()), soft_wrap=True, markup=False)
        if max(args.threads) > 1:
            console.print("copies: ours over memcpy of the inputs on one thread, whatever the threads of ours")
        rows = [row for name in names for row in _suite(name, suites[name], args, console)]
    finally:
        torch.set_num_threads(before[0])
        _native.set_isa(before[1])
        gc.unfreeze()
    if args.json:
        report.write(args.json, header, rows)
    slower = 0
    if old:
        for key in ("cpu", "isa"):
            if old["header"].get(key) != header[key]:
                console.print(f"{key} was {old['header'].get(key)}, is {header[key]}: the ratios may differ for that")
        changes, slower = report.compare(old["rows"], rows, args.tolerance)
        console.print(changes if changes.row_count else f"no change beyond {args.tolerance:g}x")
    return int(slower > 0 or any("failed" in row for row in rows))


def _suite(
    name: str, cases: Callable[[harness.Options], Iterator[harness.Case]], args: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Run a suite for every number of threads and print its table and its failures."""
    clock = harness.Clock(0.02 if args.quick else args.seconds, args.clock == "cpu")
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        options = harness.Options(
            args.sizes,
            args.k,
            DTYPES[args.dtype],
            threads,
            peers=not args.no_peers,
            quick=args.quick,
            mode=args.mode,
        )
        try:
            for case in cases(options):
                if console.is_terminal:
                    now = f"{name} {case.label}, {threads} threads ..."
                    room = shutil.get_terminal_size().columns - 1
                    console.print(now.ljust(room)[:room], end="\r", markup=False)
                rows.append(harness.run(name, case, options, clock))
        except Exception as error:  # of the suite itself, between cases
            label: dict[str, object] = {}
            rows.append({"op": name, "label": label, "threads": threads, "dtype": args.dtype, "failed": repr(error)})
    timed = [row for row in rows if "failed" not in row]
    if timed:
        title = f"{name}, {args.dtype}, by {args.clock} time"
        if args.markdown:
            console.print(title)
        console.print(report.table(title, timed, args.markdown))
    for row in rows:
        if "failed" in row:
            console.print(f"FAILED {name} {row['label']}, {row['threads']} threads: {row['failed']}", markup=False)
        for peer, message in row.get("dropped", {}).items():
            console.print(f"dropped {peer} of {row['label']}: {message}", markup=False)
    return rows


def _ending(suites: Iterable[str], op: str) -> list[str]:
    """The suites whose name ends in the word ``op``: ``linear`` is all packed linear layers."""
    return [name for name in suites if name.endswith(f"_{op}")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lc_ext.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="suites, by name, last word or pattern (default: all)")
    parser.add_argument("--list", action="store_true", help="name the suites")
    parser.add_argument("--sizes", type=_integers, help="numbers of elements (or sides of matrices): 1e6,1e7")
    parser.add_argument("--k", type=_integers, help="codebook sizes: 2,16")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the inputs")
    parser.add_argument("--mode", choices=("exact", "fast", "int8"), help="arithmetic of packed layers")
    parser.add_argument("--isa", choices=_native.supported_isas(), help="instruction set (default: the best)")
    parser.add_argument("--threads", type=_integers, default=[1], help="numbers of threads: 1,2 (default 1)")
    parser.add_argument("--no-peers", action="store_true", help="ours only")
    parser.add_argument("--quick", action="store_true", help="small sizes, few turns: does it run?")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each function of a case (default 0.5)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write header and rows to this file")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="a file of --json: flag regressions by ratio")
    parser.add_argument("--tolerance", type=float, default=1.15, help="of --compare (default 1.15)")
    return parser


def _integers(text: str) -> list[int]:
    numbers = [float(part) for part in text.split(",")]
    if any(n < 1 or n != int(n) for n in numbers):
        raise argparse.ArgumentTypeError(f"must be positive whole numbers such as 1e6,2e6, got {text!r}")
    return [int(n) for n in numbers]


if __name__ == "__main__":
    sys.exit(main())
