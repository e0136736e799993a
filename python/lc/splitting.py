"""The state of the LC algorithm, w, Delta(Theta) and lambda, with its steps one by one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .c_step import c_step, shifts
from .compressed_model import compressed, install, recalibrate_alike, unwrapped
from .distributed.sharded import reshard
from .distributed.sharded_model import collect
from .distributed.world import World
from .sizes import Size, bits_of
from .tasks import BoundTask, remember

__all__ = ["Splitting"]


class Splitting:
    """A model split into weights and compressed weights: for loops of another shape than ``LCAlgorithm.steps``."""

    model: nn.Module
    tasks: list[BoundTask]
    world: World
    multipliers: bool
    bn_batches: Iterable[Any] | None

    def start(self) -> None:
        """Forget what was learned, and set the multipliers to zero."""
        for task in self.tasks:
            task.compression = task.compression.fresh()
            task.noted = None
            task.multipliers = [torch.zeros_like(w) for w in task.weights()]

    def c_step(self, mu: float) -> dict[str, float]:
        """Theta <- Pi(w - lambda/(mu h)) for every task; direct compression for mu = 0. The multipliers stay.

        Returns sum h (w - Delta)^2 of each task, by its name.
        """
        reshard(self.model)
        distortions, _ = c_step(self.tasks, mu, self.multipliers, self.world, update=False)
        remember(unwrapped(self.model), self.tasks)
        return {task.name: d for task, d in zip(self.tasks, distortions, strict=True)}

    @torch.no_grad()
    def multipliers_step(self, mu: float) -> None:
        """lambda <- lambda - mu h (w - Delta) for every task, after its C step."""
        for task in self.tasks:
            for i, (m, w, d) in enumerate(zip(task.multipliers, task.weights(), task.delta, strict=True)):
                m.sub_((w - d) if task.metric is None else (w - d) * task.metric[i], alpha=mu)

    @torch.no_grad()
    def targets(self, mu: float) -> dict[nn.Parameter, Tensor]:
        """Where the L step at ``mu`` pulls each parameter: t = Delta(Theta) + lambda / (mu h)."""
        return {
            p: d.to(p.device) + s.to(p.device)
            for task in self.tasks
            for p, d, s in zip(task.parameters, task.delta, shifts(task, mu), strict=True)
        }

    def install(self) -> None:
        """Put the compressed weights into the model, as :meth:`LCAlgorithm.steps` does when it ends.

        Raises
        ------
        RuntimeError : before the first C step.

        Examples
        --------
        >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.5)), mu=[1.0])
        >>> algorithm.start()
        >>> _ = algorithm.c_step(0.0)  # one-shot pruning
        >>> algorithm.install()
        >>> packed = lc.pack(model)
        """
        self._check_started()
        reshard(self.model)
        install(self.tasks, [task.delta for task in self.tasks])
        if self.bn_batches is not None:
            recalibrate_alike(self.model, self.bn_batches, self.world)
        remember(unwrapped(self.model), self.tasks)

    # ---- the compressed model ----------------------------------------------------------------------------------------

    def compressed(self) -> AbstractContextManager[nn.Module]:
        """The model with the compressed weights in place and in evaluation mode; both are undone afterwards.

        Raises
        ------
        RuntimeError : before the first C step.
        """
        self._check_started()
        return compressed(self.model, self.tasks, self.bn_batches, self.world)

    def collect(self, plain: nn.Module | None) -> nn.Module | None:
        """Put a model that is cut into shards together in ``plain``, on the first process, for ``lc.pack(plain)``.

        Parameters
        ----------
        plain : a model of the same architecture, not sharded; looked at on the first process only.

        Returns
        -------
        plain on the first process, None on the others. All must call this.

        Raises
        ------
        RuntimeError : before the first C step.
        ValueError : if ``plain`` has other parameters or buffers.
        """
        self._check_started()
        return collect(self.model, self.tasks, plain, self.world)

    def _check_started(self) -> None:
        if not self.tasks[0].delta:
            raise RuntimeError("nothing has been compressed yet: call run(), or take the first turn of steps()")

    def size(self) -> Size:
        """Size of the compressed model as it now stands: everything counted.

        Raises
        ------
        RuntimeError : before the first C step.
        """
        self._check_started()
        reshard(self.model)
        mine = {p for task in self.tasks for p in task.parameters}
        rest = sum(bits_of(t) for t in [*self.model.parameters(), *self.model.buffers()] if t not in mine)
        weights = sum(bits_of(p) for p in mine)
        reports = [task.report() for task in self.tasks]
        bits = rest + sum(report["bits"] for report in reports)
        weight_bits = sum(report["weight_bits"] for report in reports)
        return Size(rest + weights, bits, (rest + weights) / bits, weights / max(weight_bits, 1))

    def memory(self) -> int:
        """Bytes that the algorithm itself needs, beside the model, its gradients and its optimizer: an estimate.

        Delta, the multipliers and the targets are a copy of the compressed weights each; a C step and an evaluation
        take about two more for a while; the metric takes a copy.
        """
        weights = sum(w.numel() * w.element_size() for task in self.tasks for w in task.weights())
        return weights * (5 + any(task.metric is not None for task in self.tasks))
