"""The results of fashion_mnist.py as Markdown and JSON: mean and standard error over the seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = {
    "direct": "direct",
    "finetune-compress": "finetune, direct",
    "iterated": "iterated direct",
    "compress-finetune": "direct, finetune",
    "lc": "LC",
}
CAPTION = """`python benchmarks/fashion_mnist.py run && python benchmarks/fashion_mnist.py table`

Test error in per cent on the 10,000 test images, mean ± standard error over the seeds; `n=` where runs are missing. The
best of a row is bold. Ratio: bits of the dense model over those of the compressed one in fixed-length code; biases,
codebooks, positions and batch normalisation are counted (of the LC runs).

All methods start from the same reference nets and train equally long, {epochs:g} epochs under bfloat16 autocast
("direct" not at all), on the same batches and with the same loss: .9 of it self-distillation at temperature 4 with the
reference as the teacher, for the baselines too. Statistics of batch normalisation are taken anew after each.

- direct: the C step alone, on the reference.
- finetune, direct: train on, then compress.
- iterated direct: train a part of an epoch, project, and so on, as often as LC does; no penalty.
- direct, finetune: compress, then train what was learned, with codes and masks frozen (`lc.Finetuning`). Where the
  scheme is pruning, this is magnitude pruning with finetuning.
- LC: `lc.compress`.

Optimizers, learning rates and the schedule of mu, one for each net and method and all its schemes, were chosen by the
error on 5,000 images of the training set (`fashion_mnist_tuning.jsonl`: two schemes of LeNet5, one of ResNet8); nothing
was chosen by the test set. LC had more candidates than the baselines: schedules of mu were tried beside those in that
file, also by the validation error; `lc.auto_mu` was among them, and was worse at so few epochs."""

Record = dict[str, Any]


def summaries(records: Sequence[Record]) -> list[Record]:
    """One for each net, scheme and method, over its seeds."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["net"], record["scheme"], record["method"]), []).append(record)
    rows = []
    for (net, scheme, method), found in groups.items():
        row: Record = {"net": net, "scheme": scheme, "method": method, "n": len(found), "epochs": found[0]["epochs"]}
        errors = [record["error"] for record in found]
        row |= {"error": statistics.mean(errors), "error_se": standard_error(errors)}
        for name in ("ratio", "weights_only_ratio", "seconds", "c_share"):
            if all(name in record for record in found):
                row[name] = statistics.mean(record[name] for record in found)
        row |= {name: found[0].get(name) for name in ("optimizer", "lr")}
        rows.append(row)
    return rows


def standard_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def markdown(records: Sequence[Record]) -> str:
    rows = summaries(records)
    trained = [row["epochs"] for row in rows if row["method"] == "lc"]
    parts = ["# Fashion-MNIST", CAPTION.format(epochs=max(trained, default=0))]
    for net in dict.fromkeys(row["net"] for row in rows):
        mine = {(row["scheme"], row["method"]): row for row in rows if row["net"] == net}
        parts += [f"## {net}", _starts(mine), _errors(mine), _costs(mine)]
    return "\n\n".join(parts) + "\n"


def _starts(rows: dict[tuple[str, str], Record]) -> str:
    most = max(row["n"] for row in rows.values())
    texts = []
    for method, label in (("reference", "Reference"), ("finetuned", "trained on, not compressed")):
        if row := rows.get(("none", method)):
            texts.append(f"{label}: {_error(row, most)} % ({row['epochs']:g} epochs, {row['seconds']:.0f} s)")
    return "; ".join(texts) + "."


def _errors(rows: dict[tuple[str, str], Record]) -> str:
    most = max(row["n"] for row in rows.values())
    lines = []
    for scheme in _schemes(rows):
        found = {method: rows[scheme, method] for method in METHODS if (scheme, method) in rows}
        best = min(row["error"] for row in found.values())
        cells = [f"{found['lc']['ratio']:.1f}" if "lc" in found else "-"]
        for method in METHODS:
            text = _error(found[method], most) if method in found else "-"
            cells.append(f"**{text}**" if method in found and found[method]["error"] == best else text)
        lines.append([scheme, *cells])
    return _table(["scheme", "ratio", *METHODS.values()], lines)


def _costs(rows: dict[tuple[str, str], Record]) -> str:
    trained = [method for method in METHODS if method != "direct"]
    lines = []
    for scheme in _schemes(rows):
        found = [rows.get((scheme, method), {}) for method in trained]
        seconds = [f"{row['seconds']:.0f}" if row else "-" for row in found]
        shares = [f"{100 * row['c_share']:.2f}" if row else "-" for row in (found[1], found[-1])]
        paper = f"{found[-1]['weights_only_ratio']:.1f}" if found[-1] else "-"
        lines.append([scheme, paper, *seconds, *shares])
    labels = [f"{METHODS[method]}, s" for method in trained]
    return (
        "CPU seconds of training and C steps, on one thread; the C steps' share of the time; the paper-style ratio, of "
        "the weights alone without codebooks and positions.\n\n"
        + _table(["scheme", "weights only", *labels, "C steps, iterated, %", "C steps, LC, %"], lines)
    )


def _schemes(rows: dict[tuple[str, str], Record]) -> list[str]:
    return [scheme for scheme in dict.fromkeys(scheme for scheme, _ in rows) if scheme != "none"]


def _error(row: Record, most: int) -> str:
    text = f"{row['error']:.2f}" + (f" ± {row['error_se']:.2f}" if row["error_se"] is not None else "")
    return text if row["n"] == most else f"{text} (n={row['n']})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rules = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rules, *lines))


def write_table(records: Sequence[Record], out: Path) -> None:
    """``out`` with the suffixes .md and .json."""
    if not records:
        raise SystemExit(f"{out} holds no results yet: fashion_mnist.py run")
    text = markdown(records)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps(summaries(records), indent=1) + "\n", encoding="utf-8")
    print(text, end="")
