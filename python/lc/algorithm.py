"""The Learning-Compression algorithm: minimise L(w) subject to w = Delta(Theta).

The augmented Lagrangian L(w) - lambda^T (w - Delta(Theta)) + (mu/2) ||w - Delta(Theta)||^2 is minimised over w (L step)
and Theta (C step) in turn, for a rising mu, with the usual update of the multipliers lambda (Carreira-Perpinan 2017).
With a metric h the distance is sum_i h_i (w_i - Delta_i)^2, in both steps and the multipliers alike.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._progress import progress
from .best_iterate import Best, BestIterate
from .c_step import c_step
from .checkpoint import checkpoint_exists, load_checkpoint, save_checkpoint
from .compressed_model import unwrapped
from .distillation import Distillation
from .distributed.sharded import find_world, is_dtensor, reshard
from .history import History, StepRecord
from .penalty import Form, Penalty
from .schedules import check_schedule
from .splitting import Splitting
from .tasks import Task, bind, remember

__all__ = ["LCAlgorithm"]

log = logging.getLogger(__name__)

LStep = Callable[[nn.Module, int], float | None]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


class LCAlgorithm(Splitting):
    """Compress a trained model, keeping its training loop as it is.

    Parameters
    ----------
    model : trained; its weights are the starting point, and hold the compressed ones in the end. It may be on any
        device; everything stays there, in its dtype.
    tasks : which parameters get which compression.
    mu : the schedule of the penalty parameter: positive, never falling. See :func:`lc.exponential`, :func:`lc.auto_mu`.
    evaluate : called as ``evaluate(model)`` after every step, with the compressed weights in place and the model in
        evaluation mode; returns named numbers for the history.
    penalty : ``"prox"`` or ``"gradient"``, see :mod:`lc.penalty`.
    multipliers : False for the quadratic-penalty method, which leaves lambda at zero.
    metric : weights h of the distance, by parameter name, for some or all parameters: see :func:`lc.calibrate` and
        :mod:`lc.criteria`. They are scaled to mean one within each task, so that mu keeps its meaning. Those of
        parameters that no task compresses are not used.
    distill : True, or a :class:`lc.Distillation`: the starting net teaches the L steps.
    bn_batches : inputs on which the statistics of batch normalisations are set anew before each evaluation and in the
        end, since compressed weights change them; see :func:`lc.recalibrate_bn`. It is gone through many times.
    best : ``("accuracy", "max")``: end with the compressed weights of the step where this metric was best (the last of
        equals), not with the last ones. Step 0 counts.
    stop_gap : end the schedule early, once ||w - Delta(Theta)|| / ||w|| is at most this.
    group : the processes that train this model together and share its C steps. Default: those of its
        DistributedDataParallel or ``fully_shard``; see ``docs/distributed.md``.

    Examples
    --------
    >>> def l_step(model, step):
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * 0.95**step, momentum=0.9)
    ...     algorithm.attach(optimizer)
    ...     train(model, optimizer)  # your own loop, unchanged
    >>> algorithm = lc.LCAlgorithm(model, lc.Task("re:.*weight", lc.Quantize(2)), mu=lc.exponential(2e-3, 1.35, 20))
    >>> history = algorithm.run(l_step)
    >>> packed = lc.pack(model)
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Task | Sequence[Task],
        *,
        mu: Iterable[float],
        evaluate: Evaluate | None = None,
        penalty: Form = "prox",
        multipliers: bool = True,
        metric: Mapping[str, Tensor] | None = None,
        distill: bool | Distillation = False,
        bn_batches: Iterable[Any] | None = None,
        best: Best | None = None,
        stop_gap: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model = model
        self.world = find_world(model, group)
        if metric is not None:
            metric = {name: self.world.broadcast(h) for name, h in metric.items()}
        self.tasks = bind(model, tasks, metric)
        self.mu = self.world.same(check_schedule(mu))
        self.evaluate = evaluate
        self.multipliers = multipliers
        self.bn_batches = _many_times(bn_batches)
        self.best = BestIterate(best, evaluate is not None)
        self.stop_gap = stop_gap
        self.history = History()
        self._loss: float | None = None  # what the last L step returned
        metrics = {
            p: h for task in self.tasks if task.metric for p, h in zip(task.parameters, task.metric, strict=True)
        }
        self._penalty = Penalty([p for task in self.tasks for p in task.parameters], penalty, metrics)
        self.distillation = Distillation() if distill is True else distill or None
        if self.distillation and self.distillation.teacher is None and any(map(is_dtensor, model.parameters())):
            raise ValueError("a model that is cut into shards cannot be copied: give Distillation(teacher=...)")
        self._teaching = None if self.distillation is None else self.distillation.bind(model)
        self._log_memory()

    # ---- the L step's side -------------------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Let ``optimizer`` apply the penalty at each of its steps. Attaching it again changes nothing.

        Raises
        ------
        TypeError, ValueError : if it is no optimizer, or holds none of the parameters that are to be compressed.
        """
        return self._penalty.attach(optimizer)

    def penalty(self) -> Tensor:
        """The penalty as a tensor, to add to the loss in place of :meth:`attach`."""
        return self._penalty.loss()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def run(
        self,
        l_step: LStep,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> History:
        """Run the whole schedule: ``l_step(model, n)`` trains for n = 0, 1, ... and may return its loss.

        The model holds the compressed weights afterwards. A progress bar shows on a terminal, on rank 0. For
        ``checkpoint`` and ``state`` see :meth:`steps`.
        """
        with progress(len(self.mu)) as advance:
            for n in self.steps(checkpoint=checkpoint, state=state):
                loss = l_step(self.model, n)
                self._loss = None if loss is None else float(loss)
                advance(n + 1)
        return self.history

    def steps(
        self, *, checkpoint: str | os.PathLike[str] | None = None, state: Mapping[str, Any] | None = None
    ) -> Iterator[int]:
        """The same as a loop of the user's: ``for n in algorithm.steps(): train(...)``.

        Direct compression comes before the first turn, a C step after each; the model holds the compressed weights
        when the loop is done. (A loop that is left early keeps the trained, uncompressed weights.)

        Parameters
        ----------
        checkpoint : a file, written after every step. If it is there already, the run goes on from it, and ends bit
            for bit as it would have without the interruption; remove it to start again.
        state : what else the L steps depend on and must go into the checkpoint, by name: generators, and optimizers,
            schedulers and the like (with ``state_dict`` and ``load_state_dict``) that outlive one L step.

        Raises
        ------
        RuntimeError : if a turn ends and some compressed parameter was never pulled: no attached optimizer held it.
        ValueError : if the checkpoint is damaged or of another run.
        """
        self.start()
        saved = state or {}
        if checkpoint is not None and checkpoint_exists(checkpoint, self.tasks, self.world):
            inner = unwrapped(self.model)
            self.history, self.best.saved = load_checkpoint(checkpoint, inner, self.tasks, self.mu, saved, self.world)
            self._log("going on from %s after step %d", checkpoint, self.history.steps[-1].step)
        else:
            self._finish_step(0, 0.0, 0.0, checkpoint, saved)
        for n in range(self.history.steps[-1].step, len(self.mu)):
            if n > 0 and self.history.steps[-1].gap <= self.stop_gap:
                self._log("stopped before step %d: the gap is %.3g", n + 1, self.history.steps[-1].gap)
                break
            self._loss = None
            start = time.perf_counter()
            self._penalty.start(self.mu[n], self.targets(self.mu[n]))
            self._teach(True)
            try:
                yield n
            finally:
                self._penalty.stop()
                self._teach(False)
            seconds_l = time.perf_counter() - start
            self._check_reached()
            self._finish_step(n + 1, self.mu[n], seconds_l, checkpoint, saved)
        self._end()

    def _end(self) -> None:
        if self.best.restore(self.tasks, self.history.steps[-1].step):
            self._log("step %d was the best: %s", self.best.saved["step"], self.best.saved["value"])
        self.install()

    def _teach(self, active: bool) -> None:
        if self.distillation is not None:
            self.distillation.active = active

    def _check_reached(self) -> None:
        missed = [
            name
            for task in self.tasks
            for name, p in zip(task.names, task.parameters, strict=True)
            if p not in self._penalty.reached
        ]
        if missed:
            raise RuntimeError(
                f"the penalty was not applied to {missed} in this L step: call algorithm.attach(optimizer) for the "
                "optimizer that trains them, or add algorithm.penalty() to the loss"
            )

    def _finish_step(
        self,
        step: int,
        mu: float,
        seconds_l: float,
        checkpoint: str | os.PathLike[str] | None,
        state: Mapping[str, Any],
    ) -> None:
        start = time.perf_counter()
        reshard(self.model)
        distortions, square = c_step(self.tasks, mu, self.multipliers, self.world)
        seconds_c = time.perf_counter() - start
        remember(unwrapped(self.model), self.tasks)
        start = time.perf_counter()
        metrics = {}
        if self.evaluate is not None:
            evaluate = self.evaluate
            with self.compressed():
                metrics = self.world.together(lambda: {k: float(v) for k, v in evaluate(self.model).items()})
        size = self.size()
        reports = [task.report() for task in self.tasks]
        record = StepRecord(
            step=step,
            mu=mu,
            loss=self._loss if step else None,
            gap=math.sqrt(sum(distortions)) / max(math.sqrt(square), 1e-300),
            distortion={task.name: d for task, d in zip(self.tasks, distortions, strict=True)},
            penalty=mu / 2 * sum(distortions),
            learned={task.name: report["summary"] for task, report in zip(self.tasks, reports, strict=True)},
            bits=size.bits,
            ratio=size.ratio,
            metrics=metrics,
            seconds_l=seconds_l,
            seconds_c=seconds_c,
            seconds_eval=time.perf_counter() - start,
        )
        record = self.world.same(record)  # the loss, the metrics and the times are those of the first process
        self.history.steps.append(record)
        self._log("step %d: mu %.3g, gap %.3g, ratio %.1f, %s", step, mu, record.gap, record.ratio, record.metrics)
        self.best.look(self.tasks, record)
        if checkpoint is not None:
            model = unwrapped(self.model)
            save_checkpoint(checkpoint, model, self.tasks, self.mu, self.history, self.best.saved, state, self.world)

    def start(self) -> None:
        """Forget what was learned, and set the multipliers to zero. :meth:`steps` begins with it."""
        super().start()
        self.history, self.best.saved = History(), {}

    def memory(self) -> int:
        """Bytes that the algorithm itself needs, beside the model, its gradients and its optimizer: an estimate.

        Delta, the multipliers and the targets are a copy of the compressed weights each; a C step and an evaluation
        take about two more for a while; the metric and the best iterate a copy each; the teacher the whole model.
        """
        best = sum(w.numel() * w.element_size() for task in self.tasks for w in task.weights()) if self.best.best else 0
        teacher = sum(p.numel() * p.element_size() for p in self.model.parameters()) if self.distillation else 0
        return super().memory() + best + teacher

    def _log_memory(self) -> None:
        self._log("compressing %d tensors; about %.1f MB beside the model", len(self.tasks), self.memory() / 1e6)

    def _log(self, message: str, *values: object) -> None:
        if self.world.first:
            log.info(message, *values)


def _many_times(batches: Iterable[Any] | None) -> Iterable[Any] | None:
    if batches is not None and iter(batches) is batches:
        raise TypeError("bn_batches must be a list or a loader that can be gone through many times, got an iterator")
    return batches
