"""Whole published methods, step by step, from the parts of lc: what to compare the LC algorithm with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .algorithm import Evaluate, LCAlgorithm
from .calibration import weight_layers
from .compressed_model import unwrapped
from .compressing import MakeOptimizer, TrainEpoch
from .compressions import Prune, SparseCodebook
from .distillation import Distillation
from .finetuning import Finetuning
from .history import StepRecord
from .tasks import Task, bind, first_match

__all__ = ["deep_compression"]

log = logging.getLogger(__name__)


def deep_compression(
    model: nn.Module,
    train_epoch: TrainEpoch,
    evaluate: Evaluate | None = None,
    *,
    keep: float | Mapping[str, float] = 0.08,
    codewords: int | Mapping[str, int] = 31,
    rounds: int = 4,
    epochs_per_round: int = 5,
    sharing_epochs: int = 5,
    lr: float = 0.05,
    lr_end: float = 0.005,
    sharing_lr: float = 1e-3,
    init: Literal["linear", "kmeans"] = "linear",
    criterion: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
    optimizer: MakeOptimizer | None = None,
    distill: bool | Distillation = False,
    bn_batches: Iterable[Any] | None = None,
) -> LCAlgorithm:
    """Deep Compression of ``model`` in place: prune and retrain, again and again; share the survivors' values.

    The last of its three parts, the entropy coding of codes and gaps, is ``lc.save(lc.pack(model), "model.lcz")``.

    Parameters
    ----------
    model : trained.
    train_epoch : ``train_epoch(model, optimizer)`` trains one epoch, as for :func:`lc.compress`, and may return its
        loss. It is handed an :class:`lc.Finetuning`, which is called as ``model`` is.
    evaluate : as for :class:`lc.LCAlgorithm`; called after the retraining of each round and of the shared values.
    keep : float, the part of the weights that survives in all Linear and convolution layers together; or rules by name
        or pattern, each layer taking the part of the first that it matches: ``{"0": 0.66, "re:.*": 0.08}``. Layers that
        no rule matches stay as they are.
    codewords : of each layer, 1 to 255; or rules for the layers that are pruned.
    rounds : of pruning, each to ``keep ** (round / rounds)``.
    epochs_per_round, sharing_epochs : of retraining after each round, and of the shared values.
    lr, lr_end : learning rate of the first and of the last epoch of each round, exponential in between.
    sharing_lr : the same for the shared values, down to a tenth; of Adam, for the gradient of a codeword is the sum of
        those of its weights, and grows with their number.
    init : the codebook's, before k-means; see :class:`lc.SparseCodebook`.
    criterion : ``criterion(model)`` gives weights h by parameter name, one of :mod:`lc.criteria`, anew in each round:
        the largest h w^2 survive. Default: the largest magnitudes.
    optimizer : ``optimizer(parameters)`` for the rounds. Default: SGD with Nesterov momentum 0.9.
    distill : True, or a :class:`lc.Distillation`: the net as it was given teaches all retraining. Not in the paper.
    bn_batches : as for :class:`lc.LCAlgorithm`.

    Returns
    -------
    algorithm : with ``size()`` and a ``history`` of one step a round, and one for the shared values; the model holds
        its compressed weights, ready for :func:`lc.pack`.

    Raises
    ------
    TypeError, ValueError : for an argument out of range, rules that match nothing, pruned layers without a rule for
        their codewords.

    Notes
    -----
    Han, Mao, Dally, "Deep Compression" (2016): linear initialisation of the codebook, frozen codes, centroids moved by
    the sum of their weights' gradients. Different here: a survivor may go to zero when values are shared, if zero is
    the nearest value; arithmetic instead of Huffman codes; and a long gap is an escape symbol, with no filler zero to
    store. The same by the LC algorithm: ``docs/deep_compression.md``.

    Examples
    --------
    >>> algorithm = lc.recipes.deep_compression(model, train_epoch, keep=0.3, codewords=7, epochs_per_round=1)
    >>> lc.save(lc.pack(model), "model.lcz")
    >>> [round(record.ratio, 1) for record in algorithm.history.steps]
    [...]
    """
    _check_counts(rounds, epochs_per_round, sharing_epochs)
    _check_rates(lr, lr_end, sharing_lr)
    parts = list(keep.values()) if isinstance(keep, Mapping) else [keep]
    if not parts or not all(isinstance(part, float) and 0 < part <= 1 for part in parts):
        raise ValueError(f"keep must be above 0.0 and at most 1.0, or rules for such parts, got {keep!r}")
    bound = bind(model, _pruning(model, keep, 1.0))
    names = {p: name for task in bound for p, name in zip(task.parameters, task.names, strict=True)}
    _sharing(model, names, codewords, init)  # so that an error comes before any training
    run = _Run(model, train_epoch, evaluate, distill, bn_batches)
    try:
        for n in range(1, rounds + 1):
            metric = None if criterion is None else criterion(model)
            rates = _rates(lr, lr_end, epochs_per_round)
            run.stage(_pruning(model, keep, n / rounds), metric, optimizer or _sgd, rates)
        rates = _rates(sharing_lr, sharing_lr / 10, sharing_epochs)
        return run.stage(_sharing(model, names, codewords, init), None, _adam, rates)
    finally:
        run.end()


def _pruning(model: nn.Module, keep: float | Mapping[str, float], power: float) -> list[Task]:
    """The tasks of a round: ``keep ** power`` survive."""
    if isinstance(keep, Mapping):
        return first_match(model, [(target, Prune(part**power)) for target, part in keep.items()])
    weights = dict.fromkeys(layer.weight for layer in weight_layers(unwrapped(model)).values())  # tied ones once
    if not weights:
        raise ValueError(f"{type(model).__name__} has no Linear or convolution layers to prune")
    return [Task(list(weights), Prune(keep**power), joint=True)]


def _sharing(
    model: nn.Module,
    names: Mapping[nn.Parameter, str],
    codewords: int | Mapping[str, int],
    init: Literal["linear", "kmeans"],
) -> list[Task]:
    """A codebook for each pruned layer, and as many nonzeros as it has now."""
    rules = codewords if isinstance(codewords, Mapping) else {"re:.*": codewords}
    found = first_match(model, [(target, SparseCodebook(k, 0, init=init)) for target, k in rules.items()])
    k_of = {p: cast("SparseCodebook", task.compression).k for task in found for p in _parameters(task)}
    if without := [name for p, name in names.items() if p not in k_of]:
        raise ValueError(f"codewords has no rule for {without}, which are pruned")
    return [Task(p, SparseCodebook(k_of[p], int(p.count_nonzero()), init=init)) for p in names]


class _Run:
    """Stages of compressing and retraining, with one history."""

    def __init__(
        self,
        model: nn.Module,
        train_epoch: TrainEpoch,
        evaluate: Evaluate | None,
        distill: bool | Distillation,
        bn_batches: Iterable[Any] | None,
    ) -> None:
        self.model, self.train_epoch, self.evaluate, self.bn_batches = model, train_epoch, evaluate, bn_batches
        self.steps: list[StepRecord] = []
        self.teaching = Distillation() if distill is True else distill or None
        self.handle = None if self.teaching is None else self.teaching.bind(model)

    def stage(
        self, tasks: list[Task], metric: Mapping[str, Tensor] | None, optimizer: MakeOptimizer, rates: Sequence[float]
    ) -> LCAlgorithm:
        """Compress, and train what was learned, an epoch at each learning rate."""
        algorithm = LCAlgorithm(
            self.model, tasks, mu=[1.0], multipliers=False, metric=metric, bn_batches=self.bn_batches
        )
        algorithm.start()
        start = time.perf_counter()
        distortion = algorithm.c_step(0.0)
        seconds_c, start = time.perf_counter() - start, time.perf_counter()
        loss = self._retrain(optimizer, rates)
        algorithm.install()
        seconds_l, start = time.perf_counter() - start, time.perf_counter()
        metrics = {}
        if self.evaluate is not None:
            metrics = {name: float(value) for name, value in self.evaluate(self.model).items()}
        size = algorithm.size()
        record = StepRecord(
            step=len(self.steps),
            mu=0.0,
            loss=loss,
            gap=0.0,
            distortion=distortion,
            penalty=0.0,
            learned={task.name: task.compression.summary() for task in algorithm.tasks},
            bits=size.bits,
            ratio=size.ratio,
            metrics=metrics,
            seconds_l=seconds_l,
            seconds_c=seconds_c,
            seconds_eval=time.perf_counter() - start,
        )
        log.info("stage %d: ratio %.1f, %s", record.step, record.ratio, record.metrics)
        self.steps.append(record)
        algorithm.history.steps = list(self.steps)
        return algorithm

    def _retrain(self, optimizer: MakeOptimizer, rates: Sequence[float]) -> float | None:
        tuned = Finetuning(self.model)
        made = optimizer(list(tuned.parameters()))
        tuned.train()
        loss = None
        for rate in rates:
            for group in made.param_groups:
                group["lr"] = rate
            self._teach(True)
            try:
                loss = self.train_epoch(tuned, made)
            finally:
                self._teach(False)
        tuned.finish().eval()
        return None if loss is None else float(loss)

    def _teach(self, active: bool) -> None:
        if self.teaching is not None:
            self.teaching.active = active

    def end(self) -> None:
        """The teacher goes."""
        if self.handle is not None:
            self.handle.remove()


def _parameters(task: Task) -> list[nn.Parameter]:
    return cast("list[nn.Parameter]", task.targets)  # of first_match


def _rates(first: float, last: float, epochs: int) -> list[float]:
    return [first * (last / first) ** (n / max(epochs - 1, 1)) for n in range(epochs)]


def _sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def _adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _check_counts(rounds: int, epochs_per_round: int, sharing_epochs: int) -> None:
    given = (("rounds", rounds, 1), ("epochs_per_round", epochs_per_round, 0), ("sharing_epochs", sharing_epochs, 0))
    for name, count, least in given:
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {count!r}")


def _check_rates(lr: float, lr_end: float, sharing_lr: float) -> None:
    for name, rate in (("lr", lr), ("lr_end", lr_end), ("sharing_lr", sharing_lr)):
        if not 0 < rate < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {rate!r}")
