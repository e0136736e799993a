"""The Learning-Compression algorithm: minimise L(w) subject to w = Delta(Theta).

The augmented Lagrangian L(w) - lambda^T (w - Delta(Theta)) + (mu/2) ||w - Delta(Theta)||^2 is minimised over w (L step)
and Theta (C step) in turn, for a rising mu, with the usual update of the multipliers lambda (Carreira-Perpinan 2017).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .history import History, StepRecord
from .penalty import Form, Penalty
from .schedules import check_schedule
from .sizes import Size, bits_of
from .tasks import BoundTask, Task, bind

__all__ = ["LCAlgorithm", "tasks_of", "unwrapped"]

log = logging.getLogger(__name__)

LStep = Callable[[nn.Module, int], float | None]
Evaluate = Callable[[nn.Module], Mapping[str, float]]

_compressed: weakref.WeakKeyDictionary[nn.Module, list[BoundTask]] = weakref.WeakKeyDictionary()


def tasks_of(model: nn.Module) -> list[BoundTask]:
    """The tasks that an :class:`LCAlgorithm` has run on ``model``; of several on one parameter, the latest."""
    if unwrapped(model) not in _compressed:
        raise ValueError("model has not been compressed by an LCAlgorithm")
    return _compressed[unwrapped(model)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and (Distributed)DataParallel."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        model = cast(nn.Module, inner)
    return model


def _remember(model: nn.Module, tasks: Sequence[BoundTask]) -> None:
    model = unwrapped(model)
    mine = {p for task in tasks for p in task.parameters}
    others = [task for task in _compressed.get(model, []) if not mine.intersection(task.parameters)]
    _compressed[model] = [*others, *tasks]


class LCAlgorithm:
    """Compress a trained model, keeping its training loop as it is.

    Parameters
    ----------
    model : trained; its weights are the starting point, and hold the compressed ones in the end. It may be on any
        device; everything stays there, in its dtype.
    tasks : which parameters get which compression.
    mu : the schedule of the penalty parameter: positive, never falling. See :func:`lc.exponential`.
    evaluate : called as ``evaluate(model)`` after every step, with the compressed weights in place and the model in
        evaluation mode; returns named numbers for the history.
    penalty : ``"prox"`` or ``"gradient"``, see :mod:`lc.penalty`.
    multipliers : False for the quadratic-penalty method, which leaves lambda at zero.

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
    ) -> None:
        self.model = model
        self.tasks = bind(model, tasks)
        self.mu = check_schedule(mu)
        self.evaluate = evaluate
        self.multipliers = multipliers
        self.history = History()
        self._loss: float | None = None  # what the last L step returned
        self._penalty = Penalty([p for task in self.tasks for p in task.parameters], penalty)

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

    def run(self, l_step: LStep) -> History:
        """Run the whole schedule: ``l_step(model, n)`` trains for n = 0, 1, ... and may return its loss.

        The model holds the compressed weights afterwards. A progress bar shows on a terminal, on rank 0.
        """
        with _progress(len(self.mu)) as advance:
            for n in self.steps():
                loss = l_step(self.model, n)
                self._loss = None if loss is None else float(loss)
                advance()
        return self.history

    def steps(self) -> Iterator[int]:
        """The same as a loop of the user's: ``for n in algorithm.steps(): train(...)``.

        Direct compression comes before the first turn, a C step after each; the model holds the compressed weights
        when the loop is done. (A loop that is left early keeps the trained, uncompressed weights.)

        Raises
        ------
        RuntimeError : if a turn ends and some compressed parameter was never pulled: no attached optimizer held it.
        """
        self.history = History()
        for task in self.tasks:
            task.compression = task.compression.fresh()
            task.multipliers = [torch.zeros_like(w) for w in task.weights()]
        self._finish_step(0, 0.0, 0.0)
        for n, mu in enumerate(self.mu):
            self._loss = None
            start = time.perf_counter()
            self._penalty.start(mu, self._targets(mu))
            try:
                yield n
            finally:
                self._penalty.stop()
            seconds_l = time.perf_counter() - start
            self._check_reached()
            self._finish_step(n + 1, mu, seconds_l)
        self._install([task.delta for task in self.tasks])

    @torch.no_grad()
    def _targets(self, mu: float) -> dict[nn.Parameter, Tensor]:
        """t = Delta(Theta) + lambda / mu."""
        return {
            p: torch.add(d.to(p.device), m.to(p.device), alpha=1 / mu)
            for task in self.tasks
            for p, d, m in zip(task.parameters, task.delta, task.multipliers, strict=True)
        }

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

    def _finish_step(self, step: int, mu: float, seconds_l: float) -> None:
        start = time.perf_counter()
        distortion = {task.name: self._c_step(task, mu) for task in self.tasks}
        norm = math.sqrt(sum(_squared_norm(w) for task in self.tasks for w in task.weights()))
        seconds_c = time.perf_counter() - start
        _remember(self.model, self.tasks)
        start = time.perf_counter()
        metrics = {}
        if self.evaluate is not None:
            with self.compressed():
                metrics = {name: float(value) for name, value in self.evaluate(self.model).items()}
        size = self.size()
        record = StepRecord(
            step=step,
            mu=mu,
            loss=self._loss if step else None,
            gap=math.sqrt(sum(distortion.values())) / max(norm, 1e-300),
            distortion=distortion,
            bits=size.bits,
            ratio=size.ratio,
            metrics=metrics,
            seconds_l=seconds_l,
            seconds_c=seconds_c,
            seconds_eval=time.perf_counter() - start,
        )
        self.history.steps.append(record)
        log.info("step %d: mu %.3g, gap %.3g, ratio %.1f, %s", step, mu, record.gap, record.ratio, metrics)

    @torch.no_grad()
    def _c_step(self, task: BoundTask, mu: float) -> float:
        """Theta <- Pi(w - lambda/mu), lambda <- lambda - mu (w - Delta). Returns ||w - Delta||^2."""
        weights = task.weights()
        if not all(math.isfinite(_squared_norm(w)) for w in weights):
            raise ValueError(f"the weights of {task.name} contain NaN or Inf: the L step has diverged")
        task.multipliers = [m.to(w.device) for m, w in zip(task.multipliers, weights, strict=True)]
        shifted = weights
        if mu and self.multipliers:
            shifted = [torch.sub(w, m, alpha=1 / mu) for w, m in zip(weights, task.multipliers, strict=True)]
        try:
            projected = task.compression.fit([v.float() for v in shifted])
        except (TypeError, ValueError) as error:
            raise type(error)(f"task {task.name}: {error}") from error
        task.delta = [d.to(w.dtype) for d, w in zip(projected, weights, strict=True)]
        residuals = [w - d for w, d in zip(weights, task.delta, strict=True)]
        if mu and self.multipliers:
            for m, r in zip(task.multipliers, residuals, strict=True):
                m.sub_(r, alpha=mu)
        return sum(_squared_norm(r) for r in residuals)

    # ---- the compressed model ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def compressed(self) -> Iterator[nn.Module]:
        """The model with the compressed weights in place and in evaluation mode; both are undone afterwards.

        Raises
        ------
        RuntimeError : before the first C step.
        """
        self._check_started()
        weights = [[p.detach().clone() for p in task.parameters] for task in self.tasks]
        modes = {module: module.training for module in self.model.modules()}
        self._install([task.delta for task in self.tasks])
        self.model.eval()
        try:
            yield self.model
        finally:
            self._install(weights)
            for module, mode in modes.items():
                module.training = mode

    def _check_started(self) -> None:
        if not self.tasks[0].delta:
            raise RuntimeError("nothing has been compressed yet: call run(), or take the first turn of steps()")

    @torch.no_grad()
    def _install(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        for task, values in zip(self.tasks, tensors, strict=True):
            for p, value in zip(task.parameters, values, strict=True):
                p.copy_(value)

    def size(self) -> Size:
        """Size of the compressed model as it now stands: everything counted.

        Raises
        ------
        RuntimeError : before the first C step.
        """
        self._check_started()
        mine = {p for task in self.tasks for p in task.parameters}
        rest = sum(bits_of(t) for t in [*self.model.parameters(), *self.model.buffers()] if t not in mine)
        weights = sum(bits_of(p) for p in mine)
        bits = rest + sum(task.compression.bits() for task in self.tasks)
        weight_bits = sum(task.compression.weight_bits() for task in self.tasks)
        return Size(rest + weights, bits, (rest + weights) / bits, weights / max(weight_bits, 1))


def _squared_norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar of L steps, on a terminal and on rank 0 only."""
    if not sys.stderr.isatty() or int(os.environ.get("RANK", "0")) != 0:
        yield lambda: None
        return
    from rich.console import Console

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("LC steps", total=total)
        yield lambda: bar.advance(task)
