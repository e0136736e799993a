"""Choose the defaults of `lc.compress` on a validation set: candidates, each one change of the defaults, in a table.

    python benchmarks/tune_lc.py --candidates 'T=4;T=2, smoothing .3' --seeds 0,1,2,3 --out /tmp/tune.jsonl

Every run is a line of the file, and a run that is there already is not made again. The test set is never looked at:
see `lc_experiment.py`. The scheme "dense" is the control: the same L steps with no compression. The table has the mean
validation error of each scheme, and over all of them the difference to the first candidate, run by run, with its
standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lc_experiment import SHORT, Data, Protocol, batches, compress, error, load, load_fashion, reference, train_on
from torch import Tensor, nn

import lc

Change = tuple[Protocol, dict[str, Any]]
HALF = replace(SHORT, epochs=30, per_step=2, mu=(2e-3, 1.5))


def options(**changes: Any) -> Callable[[nn.Module, Data], Change]:
    """A candidate that changes options of `lc.compress`, against self-distillation as it was first measured."""
    return lambda net, data: (SHORT, {"distill": lc.Distillation(0.9, 4, smoothing=0), **changes})


def distilled(weight: float, temperature: float, smoothing: float = 0.0) -> Callable[[nn.Module, Data], Change]:
    return lambda net, data: (SHORT, {"distill": lc.Distillation(weight, temperature, smoothing=smoothing)})


def protocol(base: Protocol, **changes: Any) -> Callable[[nn.Module, Data], Change]:
    """A candidate that changes the schedules, with the defaults that were chosen."""
    return lambda net, data: (replace(base, **changes), {})


def metric(kind: Any) -> Callable[[nn.Module, Data], Change]:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def change(net: nn.Module, data: Data) -> Change:
        some = list(batches(data, 256, torch.Generator().manual_seed(0)))
        return options(metric=lc.calibrate(net, some, kind=kind, loss=loss))(net, data)

    return change


CANDIDATES: dict[str, Callable[[nn.Module, Data], Change]] = {
    "T=4": options(),
    "penalty alone": options(distill=False),
    "T=2": distilled(0.9, 2),
    "T=8": distilled(0.9, 8),
    "weight .7, T=4": distilled(0.7, 4),
    "weight 1, T=4": distilled(1.0, 4),
    "T=1, smoothing .1": distilled(0.9, 1, 0.1),
    "T=2, smoothing .3": distilled(0.9, 2, 0.3),
    "T=2, smoothing .5": distilled(0.9, 2, 0.5),
    "T=4, smoothing .4": distilled(0.9, 4, 0.4),
    "gradient form": options(penalty="gradient"),
    "quadratic penalty": options(multipliers=False),
    "activation metric": metric("activation"),
    "fisher metric": metric("fisher"),
    "half: 10 steps of 3 epochs": protocol(HALF, per_step=3, mu=(2e-3, 1.82)),
    "half: 15 steps of 2": protocol(HALF),
    "half: 15 steps of 2, lr .1 to .02": protocol(HALF, lr=0.1),
    "half: 15 steps of 2, lr .2 to .02": protocol(HALF, lr=0.2),
    "half: 15 steps of 2, lr .1 to .02, growth 1.35": protocol(HALF, lr=0.1, mu=(2e-3, 1.35)),
    "half: 15 steps of 2, lr .2 to .02, growth 1.35": protocol(HALF, lr=0.2, mu=(2e-3, 1.35)),
    "half: 30 steps of 1, lr .1 to .02": protocol(HALF, per_step=1, lr=0.1, mu=(2e-3, 1.22)),
    "half: 30 steps of 1, lr .2 to .02": protocol(HALF, per_step=1, lr=0.2, mu=(2e-3, 1.22)),
    "half: 30 steps of 1, lr .1 to .02, growth 1.16": protocol(HALF, per_step=1, lr=0.1, mu=(2e-3, 1.16)),
    "half: 30 steps of 1, lr .2 to .02, growth 1.16": protocol(HALF, per_step=1, lr=0.2, mu=(2e-3, 1.16)),
    "half: T=4": lambda net, data: (HALF, {"distill": lc.Distillation(0.9, 4, smoothing=0)}),
    "half: penalty alone": lambda net, data: (HALF, {"distill": False}),
    "half: auto_mu": protocol(HALF, mu=None),
    "auto_mu": protocol(SHORT, mu=None),
    "mu / 3": protocol(SHORT, mu=(2e-3 / 3, 1.35)),
    "mu * 3": protocol(SHORT, mu=(6e-3, 1.35)),
    "lr .1 to .02": protocol(SHORT, lr=0.1),
}


def run(name: str, scheme: str, seed: int, folder: Path, fashion: bool) -> dict[str, Any]:
    if fashion:
        data = load_fashion(seed)
        net = reference(data, seed, "fashion10k", folder, epochs=80)
    else:
        data = load(seed, validate=True)
        net = reference(data, seed, "validation", folder)
    how, changes = CANDIDATES[name](net, data)
    if scheme == "dense":
        return {"reference": error(net, data), "error": train_on(data, net, seed, how, changes["distill"])}
    return compress(scheme, data, net, seed, how, **changes)


def table(errors: dict[tuple[str, str, int], float], names: list[str], schemes: list[str], seeds: list[int]) -> str:
    """Markdown: a row for each candidate, of the runs that there are."""
    first = names[0]
    lines = [f"| candidate | {' | '.join(schemes)} | less {first} | runs |", "| --- " * (len(schemes) + 3) + "|"]
    for name in names:
        cells, less = [], []
        for scheme in schemes:
            there = [s for s in seeds if (name, scheme, s) in errors]
            cells.append(f"{statistics.mean(errors[name, scheme, s] for s in there):.2f}" if there else "")
            less += [errors[name, scheme, s] - errors[first, scheme, s] for s in there if (first, scheme, s) in errors]
        spread = statistics.stdev(less) / math.sqrt(len(less)) if len(less) > 1 else math.nan
        difference = f"{statistics.mean(less):+.2f} +- {spread:.2f}" if less and name != first else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {difference} | {len(less)} |")
    return "\n".join(lines)


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(";" if ";" in text else ",")]


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", default=";".join(CANDIDATES), help="separated by ; or, without any, by commas")
    parser.add_argument("--schemes", default="quant_k2,prune2,mixed,add_q2_p1")
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--out", type=Path, default=Path("tune_lc.jsonl"))
    parser.add_argument("--references", type=Path, default=Path("results"), help="the folder that caches the nets")
    parser.add_argument("--fashion", action="store_true", help="10,000 images of Fashion-MNIST instead of the digits")
    given = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    names, schemes, seeds = split(given.candidates), split(given.schemes), [int(s) for s in split(given.seeds)]
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    records = [json.loads(line) for line in lines]
    errors = {(r["candidate"], r["scheme"], r["seed"]): r["error"] for r in records}
    for name in names:
        for seed in seeds:
            for scheme in schemes:
                if (name, scheme, seed) in errors:
                    continue
                record = {
                    "candidate": name,
                    "scheme": scheme,
                    "seed": seed,
                    **run(name, scheme, seed, given.references, given.fashion),
                }
                errors[name, scheme, seed] = record["error"]
                with given.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        print(table(errors, names[: names.index(name) + 1], schemes, seeds).splitlines()[-1], flush=True)
    print(table(errors, names, schemes, seeds))


if __name__ == "__main__":
    main()
