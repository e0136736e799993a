"""The LC algorithm inside the training loops of Lightning and of transformers, which are imported only when used.

Both callbacks take the turns of :meth:`lc.LCAlgorithm.steps` at the ends of epochs: the training must last
``len(algorithm.mu) * epochs_per_step`` epochs. After the last the model holds its compressed weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from .algorithm import LCAlgorithm

__all__ = ["lightning_callback", "transformers_callback"]


class _Turns:
    """The turns of an algorithm, taken from a loop that is not ours."""

    def __init__(self, algorithm: LCAlgorithm, epochs_per_step: int, options: Mapping[str, Any]) -> None:
        if epochs_per_step < 1:
            raise ValueError(f"epochs_per_step must be at least 1, got {epochs_per_step}")
        self.algorithm = algorithm
        self.epochs_per_step = epochs_per_step
        self.options = options
        self.epochs = 0
        self.done = False
        self.turns: Iterator[int] = iter(())

    def begin(self, optimizers: list[Optimizer]) -> None:
        attached = 0
        for optimizer in optimizers:
            inner = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
            if any(p in self.algorithm._penalty.parameters for g in inner.param_groups for p in g["params"]):
                self.algorithm.attach(inner)
                attached += 1
        if not attached:
            raise ValueError("no optimizer of the trainer holds the parameters that are to be compressed")
        self.epochs, self.turns = 0, self.algorithm.steps(**self.options)
        self.done = next(self.turns, None) is None

    def epoch_ended(self) -> bool:
        """Count an epoch; True once the schedule is finished and the compressed weights are in place."""
        self.epochs += 1
        if not self.done and self.epochs % self.epochs_per_step == 0:
            self.done = next(self.turns, None) is None
        return self.done

    def check(self) -> None:
        if not self.done:
            needed = len(self.algorithm.mu) * self.epochs_per_step
            raise RuntimeError(
                f"the training ended after {self.epochs} epochs, but the schedule takes {needed}: the weights are not "
                "compressed yet"
            )


def lightning_callback(algorithm: LCAlgorithm, epochs_per_step: int = 1, **options: Any) -> Any:
    """A Lightning callback: ``Trainer(callbacks=[lc.callbacks.lightning_callback(algorithm, 3)], max_epochs=60)``.

    Parameters
    ----------
    algorithm : on the parameters of the LightningModule.
    epochs_per_step : epochs of each L step.
    options : ``checkpoint`` and ``state`` of :meth:`lc.LCAlgorithm.steps`.

    Raises
    ------
    ImportError : without ``lightning`` or ``pytorch_lightning``.
    RuntimeError : in training, if it ends before the schedule does.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback
    turns = _Turns(algorithm, epochs_per_step, options)

    class LCCallback(Callback):  # type: ignore[misc, unused-ignore]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            turns.begin(list(trainer.optimizers))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if turns.epoch_ended():
                trainer.should_stop = True

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            turns.check()

    return LCCallback()


def transformers_callback(algorithm: LCAlgorithm, epochs_per_step: int = 1, **options: Any) -> Any:
    """A callback for the Trainer of transformers: ``Trainer(..., callbacks=[transformers_callback(algorithm, 1)])``.

    Parameters, errors : as for :func:`lightning_callback`. ``num_train_epochs`` must be enough for the schedule.
    """
    from transformers import TrainerCallback

    turns = _Turns(algorithm, epochs_per_step, options)

    class LCCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            turns.begin([optimizer])

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if turns.epoch_ended():
                control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.check()

    return LCCallback()
