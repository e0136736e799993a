"""The best compressed iterate of a run, by one of the user's metrics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from .history import StepRecord
from .tasks import BoundTask

__all__ = ["Best", "BestIterate"]

Best = tuple[str, Literal["min", "max"]]


class BestIterate:
    """``saved``: the step and value of the best iterate so far, with what was learned there; empty without one."""

    def __init__(self, best: Best | None, has_metrics: bool) -> None:
        if best is not None:
            if not (isinstance(best, tuple) and len(best) == 2 and best[1] in ("min", "max")):
                raise ValueError(f'best must be a pair such as ("accuracy", "max"), got {best!r}')
            if not has_metrics:
                raise ValueError(f"best={best!r} needs evaluate, which returns that metric")
        self.best = best
        self.saved: dict[str, Any] = {}

    def look(self, tasks: Sequence[BoundTask], record: StepRecord) -> None:
        """Keep this step if it is the best, or as good as that."""
        if self.best is None:
            return
        name, mode = self.best
        if name not in record.metrics:
            raise ValueError(f"best names {name!r}, but evaluate returned {sorted(record.metrics)}")
        value = record.metrics[name]
        if self.saved and (value > self.saved["value"] if mode == "min" else value < self.saved["value"]):
            return
        learned = [copy.deepcopy(task.compression.state_dict()) for task in tasks]
        delta = [[d.clone() for d in task.delta] for task in tasks]
        noted = [task.noted for task in tasks]
        self.saved = {"step": record.step, "value": value, "learned": learned, "delta": delta, "noted": noted}

    def restore(self, tasks: Sequence[BoundTask], last: int) -> bool:
        """Give the tasks the best iterate, unless that is the ``last`` step, and say whether it was another."""
        if not self.saved or self.saved["step"] == last:
            return False
        for i, task in enumerate(tasks):
            task.compression.load_state_dict(self.saved["learned"][i])
            task.noted = self.saved["noted"][i]
            task.set_delta([d.to(p.device) for d, p in zip(self.saved["delta"][i], task.parameters, strict=True)])
        return True
