"""From the lines that `lc_bench.py` wrote, one file for each method, to a results file and a table.

    python benchmarks/lc_bench_results.py alone.jsonl distill.jsonl > benchmarks/results/lc_short.json

The table goes to the error stream. The toolkit's figures are those of the harness's README, from seeds 0 to 2 or, with
an asterisk, 0 and 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

TOOLKIT = {
    "quant_k2": "8.60",
    "quant_k4": "8.10*",
    "prune2": "8.37",
    "prune5": "7.40*",
    "mixed": "8.83",
    "add_q2_p1": "8.13",
    "lowrank10": "9.70*",
    "ranksel1e-5": "9.40*",
}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The lists of each scheme over its seeds, in their order; of several runs of a seed the last."""
    last = {(r["exp"], r["seed"]): r for r in map(json.loads, path.read_text().splitlines())}
    rows: dict[str, dict[str, Any]] = {}
    for (scheme, _), r in sorted(last.items(), key=lambda item: item[0][1]):
        row = rows.setdefault(scheme, {"ratio": [], "direct": [], "lc": [], "seconds_l": [], "seconds_c": []})
        row["ratio"].append(round(r["ratio"], 1))
        row["direct"].append(round(r["dc"]["test_err"], 1))
        row["lc"].append(round(r["final"]["test_err"], 1))
        row["seconds_l"].append(round(r["t_L"], 2))
        row["seconds_c"].append(round(r["t_C"], 3))
    return rows


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | "
    c = sum(row["seconds_c"]) / (sum(row["seconds_l"]) + sum(row["seconds_c"]))
    spread = stdev(row["lc"]) / len(row["lc"]) ** 0.5 if len(row["lc"]) > 1 else float("nan")
    asterisk = f"; {mean(row['lc'][:2]):.2f}*" if len(row["lc"]) > 2 else ""
    return f"{mean(row['lc']):.2f} +- {spread:.2f}{asterisk} | {100 * c:.1f} %"


def main() -> None:
    alone, distilled = (read(Path(name)) for name in sys.argv[1:3])
    print("| scheme | ratio | direct | toolkit | penalty alone | C steps | distilled | C steps |", file=sys.stderr)
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", file=sys.stderr)
    for scheme in TOOLKIT:
        any_ = distilled.get(scheme) or alone.get(scheme)
        if any_ is None:
            continue
        head = f"| {scheme} | {mean(any_['ratio']):.1f} | {mean(any_['direct']):.1f} | {TOOLKIT[scheme]} "
        print(f"{head}| {cell(alone.get(scheme))} | {cell(distilled.get(scheme))} |", file=sys.stderr)
    protocol = "lc_bench.py, short: 20 mu steps 2e-3*1.35^n of 3 epochs, MNIST-5k, tanh LeNet300, 1 thread"
    print(json.dumps({"protocol": protocol, "penalty_alone": alone, "self_distillation": distilled}, indent=1))


if __name__ == "__main__":
    main()
