"""The whole job in one call, for those who do not want to write the loop of L steps themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from .algorithm import Evaluate, LCAlgorithm
from .distillation import Distillation
from .penalty import Form
from .schedules import auto_mu
from .tasks import Task

__all__ = ["compress"]

TrainEpoch = Callable[[nn.Module, Optimizer], float | None]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def compress(
    model: nn.Module,
    tasks: Task | Sequence[Task],
    train_epoch: TrainEpoch,
    evaluate: Evaluate | None = None,
    *,
    budget_epochs: int = 60,
    epochs_per_step: int = 3,
    lr: float = 0.05,
    lr_end: float = 0.02,
    optimizer: MakeOptimizer | None = None,
    mu: Iterable[float] | None = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
    penalty: Form = "prox",
    multipliers: bool = True,
    distill: bool | Distillation = True,
    bn_batches: Iterable[Any] | None = None,
    metric: Mapping[str, Tensor] | None = None,
    best: tuple[str, Literal["min", "max"]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: Mapping[str, Any] | None = None,
    group: dist.ProcessGroup | None = None,
) -> LCAlgorithm:
    """Compress ``model`` in place within ``budget_epochs`` epochs of training.

    Parameters
    ----------
    model, tasks, evaluate, penalty, multipliers, distill, bn_batches, metric, best, group : as for
        :class:`lc.LCAlgorithm`.
    train_epoch : ``train_epoch(model, optimizer)`` trains one epoch, as for any model, and may return its loss.
    budget_epochs : epochs in all.
    epochs_per_step : of each L step; the budget gives the number of steps.
    lr, lr_end : learning rate of the first and of the last step, exponential in between. It goes into every group of
        the optimizer.
    optimizer : ``optimizer(parameters)`` makes one; it is kept, with its momentum, over all L steps. Default: SGD with
        Nesterov momentum 0.9.
    mu : the schedule; its length overrides the number of steps. Default: :func:`lc.auto_mu`, which needs ``loss``.
    loss : ``loss(model)``, the training loss on a few batches as a tensor, for :func:`lc.auto_mu`.
    checkpoint, state : as for :meth:`lc.LCAlgorithm.run`; the optimizer is saved too.

    Returns
    -------
    algorithm : with ``history`` and ``size()``; the model holds its compressed weights, ready for :func:`lc.pack`.

    Raises
    ------
    ValueError : if the budget allows no step, or there is neither ``mu`` nor ``loss``.

    Examples
    --------
    >>> task = lc.Task(nn.Linear, lc.Quantize(2))
    >>> algorithm = lc.compress(model, task, train_epoch, mu=[1e-2, 1e-1], epochs_per_step=1)
    >>> packed = lc.pack(model)
    """
    if budget_epochs < 1 or epochs_per_step < 1:
        raise ValueError(
            f"budget_epochs and epochs_per_step must be at least 1, got {budget_epochs}, {epochs_per_step}"
        )
    steps = max(1, budget_epochs // epochs_per_step)
    if mu is None:
        if loss is None:
            raise ValueError("compress needs mu, or loss(model) to find a schedule by")
        mu = auto_mu(model, tasks, loss, steps=steps)
    algorithm = LCAlgorithm(
        model,
        tasks,
        mu=mu,
        evaluate=evaluate,
        penalty=penalty,
        multipliers=multipliers,
        distill=distill,
        bn_batches=bn_batches,
        metric=metric,
        best=best,
        group=group,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = optimizer(parameters) if optimizer else torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)
    algorithm.attach(made)
    count = len(algorithm.mu)
    shares = [budget_epochs * (n + 1) // count - budget_epochs * n // count for n in range(count)]

    def l_step(model: nn.Module, n: int) -> float | None:
        for group in made.param_groups:
            group["lr"] = lr * (lr_end / lr) ** (n / max(count - 1, 1))
        model.train()
        value = None
        for _ in range(shares[n]):
            value = train_epoch(model, made)
        return value

    algorithm.run(l_step, checkpoint=checkpoint, state={"optimizer": made, **(state or {})})
    model.eval()
    return algorithm
