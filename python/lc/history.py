"""What happened in a run of the LC algorithm, step by step."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from lc_ext._files import replacing

__all__ = ["History", "StepRecord"]


@dataclass
class StepRecord:
    """One step: step 0 is direct compression; step n > 0 is an L step and a C step at the n-th mu.

    Attributes
    ----------
    mu : the penalty parameter, 0 for direct compression.
    loss : what the L step returned, if it returned a number.
    gap : ||w - Delta(Theta)|| / ||w|| over all compressed weights, after the C step.
    distortion : ||w - Delta(Theta)||^2 of each task, by its name; with a metric, weighted by it.
    penalty : mu/2 times the sum of the distortions.
    learned : of each task, by its name, what its compression says of itself: sparsity, rank, codewords.
    bits, ratio : of the whole compressed model, as in :class:`lc.Size`.
    metrics : what ``evaluate`` returned for the compressed model.
    seconds_l, seconds_c, seconds_eval : wall-clock time of the parts.
    """

    step: int
    mu: float
    loss: float | None
    gap: float
    distortion: dict[str, float]
    penalty: float
    learned: dict[str, dict[str, float]]
    bits: int
    ratio: float
    metrics: dict[str, float]
    seconds_l: float
    seconds_c: float
    seconds_eval: float


@dataclass
class History:
    """All steps of a run, in order.

    Examples
    --------
    >>> task = lc.Task(nn.Linear, lc.Quantize(2))
    >>> algorithm = lc.compress(model, task, train_epoch, mu=[1e-2, 1e-1], epochs_per_step=1)
    >>> [record.mu for record in algorithm.history.steps]
    [0.0, 0.01, 0.1]
    """

    steps: list[StepRecord] = field(default_factory=list)

    @property
    def seconds_l(self) -> float:
        """Time of all L steps."""
        return sum(s.seconds_l for s in self.steps)

    @property
    def seconds_c(self) -> float:
        """Time of all C steps."""
        return sum(s.seconds_c for s in self.steps)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The history as JSON text, also written to ``path`` if given."""
        text = json.dumps({"format": "lc.history", "format_version": 1, **asdict(self)}, indent=1)
        if path is not None:
            with replacing(path) as scratch:
                scratch.write_text(text, encoding="utf-8")
        return text

    def rows(self) -> list[dict[str, float | int | None]]:
        """A flat dictionary for each step: metrics as ``metrics/name``, distortions as ``distortion/task``."""
        flat = []
        for step in self.steps:
            row: dict[str, float | int | None] = {}
            for name, value in asdict(step).items():
                if name == "learned":
                    row |= {f"learned/{task}/{key}": item for task, d in value.items() for key, item in d.items()}
                elif isinstance(value, dict):
                    row |= {f"{name}/{key}": item for key, item in value.items()}
                else:
                    row[name] = value
            flat.append(row)
        return flat

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """One line for each step, with the columns of :meth:`rows`."""
        rows = self.rows()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with replacing(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def to_tensorboard(self, writer: Any, prefix: str = "lc/") -> None:
        """Everything in :meth:`rows` as scalars of a ``SummaryWriter``, or anything else with ``add_scalar``."""
        for row in self.rows():
            for name, value in row.items():
                if name != "step" and value is not None:
                    writer.add_scalar(prefix + name, value, row["step"])

    @classmethod
    def from_json(cls, text: str) -> History:
        """The inverse of :meth:`to_json`."""
        data: dict[str, Any] = json.loads(text)
        if data.get("format") != "lc.history" or data.get("format_version") != 1:
            found = (data.get("format"), data.get("format_version"))
            raise ValueError(f"text must be an lc.history of format_version 1, got {found}")
        return cls([StepRecord(**step) for step in data["steps"]])
