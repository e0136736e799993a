"""One-shot pruning of LeNet300 on 5,000 MNIST digits by each criterion of `lc.criteria`: test error, no training after.

    python benchmarks/criteria.py --out benchmarks/results/criteria.jsonl   # goes on where it was stopped
    python benchmarks/criteria.py --out benchmarks/results/criteria.jsonl --table

Every layer keeps the same part of its weights. "as they are": survivors keep their values; "fitted": the values are
those that fit the layer's outputs, `SecondOrder(update="values")`. The last rows prune whole units of the two hidden
layers. The calibration data are all 4,000 training digits, in batches of 50.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from lc_experiment import Data, error, load, reference
from torch import Tensor, nn

import lc
from lc import criteria

Metric = dict[str, Tensor]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


Batches = list[tuple[Tensor, Tensor]]
WEIGHTS: dict[str, Callable[[nn.Module, Batches], Metric]] = {
    "magnitude": lambda net, batches: criteria.magnitude(net),
    "wanda": criteria.wanda,
    "obs": criteria.obs,
    "taylor": lambda net, batches: criteria.taylor(net, batches, loss),
    "fisher": lambda net, batches: criteria.fisher(net, batches, loss),
    "obd": lambda net, batches: criteria.obd(net, batches, loss),
    "woodfisher": lambda net, batches: criteria.woodfisher(net, batches, loss),
}
UNITS: dict[str, Callable[[nn.Module, Batches], Metric]] = {
    "norm": lambda net, batches: criteria.magnitude(net),
    "taylor": lambda net, batches: criteria.taylor(net, batches, loss, groups="row"),
}
UNITS_KEPT = (0.5, 0.25)


def one_shot(net: nn.Module, tasks: list[lc.Task], metric: Metric) -> None:
    algorithm = lc.LCAlgorithm(net, tasks, mu=[1.0], metric=metric)
    algorithm.start()
    algorithm.c_step(0.0)
    algorithm.install()


def run(criterion: str, how: str, keep: float, data: Data, net: nn.Module) -> float:
    batches = list(zip(data.x.split(50), data.y.split(50), strict=True))
    names = ["0.weight", "2.weight", "4.weight"]
    if how == "units":
        h = UNITS[criterion](net, batches)
        one_shot(net, [lc.Task(name, lc.GroupPrune(keep)) for name in names[:2]], h)
        return error(net, data)
    h = WEIGHTS["wanda" if criterion == "SparseGPT" else criterion](net, batches)
    compressions: list[lc.Compression] = [lc.Prune(keep, per="row" if criterion == "wanda" else None) for _ in names]
    if how == "fitted":
        moments = criteria.input_moments(net, batches)
        update: Any = "sweep" if criterion == "SparseGPT" else "values"
        compressions = [
            criteria.SecondOrder(c, moments[name], update=update) for c, name in zip(compressions, names, strict=True)
        ]
    one_shot(net, [lc.Task(name, c) for name, c in zip(names, compressions, strict=True)], h)
    return error(net, data)


def table(records: list[dict[str, Any]]) -> str:
    keeps = sorted({r["keep"] for r in records}, reverse=True)
    lines = ["| criterion | values | " + " | ".join(f"keep {100 * keep:g} %" for keep in keeps) + " |"]
    lines.append("| --- " * (2 + len(keeps)) + "|")
    for criterion, how in dict.fromkeys((r["criterion"], r["how"]) for r in records):
        cells = []
        for keep in keeps:
            key = {"criterion": criterion, "how": how, "keep": keep}
            errors = [r["error"] for r in records if key.items() <= r.items()]
            cells.append(f"{mean(errors):.1f}" if errors else "")
        lines.append(f"| {criterion} | {how} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", default="0.2,0.1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--references", type=Path, default=Path("results"), help="the folder that caches the nets")
    given = parser.parse_args()
    records = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.table:
        print(table(records))
        return
    torch.set_num_threads(1)
    rows = [(criterion, how) for how in ("as they are", "fitted") for criterion in WEIGHTS]
    for criterion, how in [*rows, ("SparseGPT", "fitted"), *((unit, "units") for unit in UNITS)]:
        for keep in UNITS_KEPT if how == "units" else map(float, given.keep.split(",")):
            for seed in map(int, given.seeds.split(",")):
                key = {"criterion": criterion, "how": how, "keep": keep, "seed": seed}
                if any(key.items() <= r.items() for r in records):
                    continue
                data = load(seed, validate=False)
                net = reference(data, seed, "ref_mnist5k", given.references)
                record = {**key, "error": round(run(criterion, how, keep, data, net), 3)}
                records.append(record)
                with given.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
