"""`lc.compress` with its defaults on the test set, for a number of epochs other than that of `lc_bench.py`.

    python benchmarks/lc_budget.py half --references results --out benchmarks/results/lc_half.json
    python benchmarks/lc_budget.py one_budget --references results --out benchmarks/results/lc_one_budget.json

`half`: 30 epochs. `one_budget`: as many as take no longer than the training of the reference net, which is timed beside
each run: the CPU time of 20 of its 200 epochs, times ten. A run that is in the file already is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lc_experiment import TEST_SEEDS, Protocol, compress, load, reference, train_reference

PROTOCOLS = {
    "half": Protocol(epochs=30, per_step=1, batch=128, mu=(2e-3, 1.22), lr=0.2),
    "one_budget": Protocol(epochs=90, per_step=3, batch=128, mu=(2e-3, 1.217)),
}


def run(protocol: Protocol, scheme: str, seed: int, folder: Path, alone: bool) -> dict[str, Any]:
    data = load(seed, validate=False)
    _, seconds = train_reference(data, seed, 20)
    net = reference(data, seed, "ref_mnist5k", folder)
    options: dict[str, Any] = {"distill": False} if alone else {}
    result = compress(scheme, data, net, seed, protocol, **options)
    return {"scheme": scheme, "seed": seed, **result, "seconds_reference": round(10 * seconds, 3)}


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| scheme | seeds 0, 1, 2 | mean | standard error | part of the reference's time | C steps, part of it all |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for scheme in dict.fromkeys(r["scheme"] for r in runs):
        own = sorted((r for r in runs if r["scheme"] == scheme), key=lambda r: r["seed"])
        errors = [r["error"] for r in own]
        error = f"{stdev(errors) / len(errors) ** 0.5:.2f}" if len(errors) > 1 else ""
        time = mean(r["seconds"] / r["seconds_reference"] for r in own)
        c = sum(r["seconds_c"] for r in own) / sum(r.get("seconds_wall", r["seconds"]) for r in own)
        each = ", ".join(f"{e:.1f}" for e in errors)
        lines.append(f"| {scheme} | {each} | {mean(errors):.2f} | {error} | {time:.2f} | {100 * c:.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--schemes", default="quant_k2,prune2,mixed,add_q2_p1")
    parser.add_argument("--seeds", default=",".join(map(str, TEST_SEEDS)))
    parser.add_argument("--alone", action="store_true", help="without self-distillation")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--references", type=Path, default=Path("results"), help="the folder that caches the nets")
    given = parser.parse_args()
    torch.set_num_threads(1)
    protocol = PROTOCOLS[given.protocol]
    runs: list[dict[str, Any]] = json.loads(given.out.read_text())["runs"] if given.out.exists() else []
    for seed in map(int, given.seeds.split(",")):
        for scheme in given.schemes.split(","):
            if any(r["scheme"] == scheme and r["seed"] == seed for r in runs):
                continue
            runs.append(run(protocol, scheme, seed, given.references, given.alone))
            content = {"protocol": vars(protocol), "alone": given.alone, "runs": runs}
            given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
