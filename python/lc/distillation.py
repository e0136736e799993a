"""Self-distillation: the uncompressed starting net teaches the L steps.

At equal data and epochs it was the one clear gain among the variants of the L step that were tried. Its loss is
(1 - weight) * loss + weight * T^2 * KL(q || softmax(student / T)) (Hinton et al. 2015), with the teacher's logits
computed on the very batch that the student sees, augmentation included, and q = (1 - smoothing) softmax(teacher / T)
+ smoothing / classes, as label smoothing does it (Szegedy et al. 2016). The defaults were chosen on validation sets:
see ``docs/driver.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .compressed_model import unwrapped

__all__ = ["Distillation"]


class Distillation:
    """A teacher for the L steps of an :class:`lc.LCAlgorithm`.

    Parameters
    ----------
    weight : of the teacher's loss against the user's, 0 to 1.
    temperature : of both softmaxes.
    teacher : a module with the outputs of the model. Default: a copy of the model as it stands when the algorithm is
        made, which is the uncompressed starting net.
    logits : picks the logits out of an output that is no tensor: by default its ``logits``, or its first item.
    smoothing : what part of the teacher's distribution, at the temperature, is made uniform: a student of compressed
        weights need not be as sure as a teacher that knows its training data by heart.
    scale : what the loss is multiplied by before ``backward``, as a number or a function: ``scaler.get_scale`` of a
        GradScaler, or 1 / n when the gradients of n batches are added up.

    Notes
    -----
    Through :class:`lc.LCAlgorithm` nothing in the training loop changes: a hook on the model's output replaces the
    gradient g of the loss with respect to the logits by the gradient of the mixed loss, (1 - weight) g + weight T
    (softmax(student / T) - q) / rows. This supposes a loss that is a mean over the rows of the
    logits, as those of torch are by default. For another loss, use :meth:`loss` in the training loop instead.

    Turn it off where the teacher is no better than what the L step can learn from the data: a net that was not trained
    to the end, or without the augmentation that the L step uses (measured: 7.7 % error against 5.8 % without). Each
    training step costs one more forward pass, and the teacher the memory of the model's parameters.

    Examples
    --------
    >>> soft = lc.Distillation(weight=0.5, temperature=2.0)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Quantize(2)), mu=[1e-2], distill=soft)
    """

    def __init__(
        self,
        weight: float = 0.9,
        temperature: float = 2.0,
        teacher: nn.Module | None = None,
        *,
        logits: Callable[[Any], Tensor] | None = None,
        smoothing: float = 0.3,
        scale: float | Callable[[], float] = 1.0,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be between 0 and 1, got {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher must be an nn.Module, got {type(teacher).__name__}")
        self.weight = weight
        self.temperature = temperature
        self.teacher = teacher
        self.logits = logits or _logits
        self.smoothing = smoothing
        self.scale = scale
        self.active = False

    def bind(self, model: nn.Module) -> RemovableHandle:
        """Take ``model`` as it stands for the teacher, if there is none, and hook its output."""
        model = unwrapped(model)
        if self.teacher is None:
            self.teacher = copy.deepcopy(model)
        self.teacher.eval().requires_grad_(False)
        return model.register_forward_hook(self._after_forward, with_kwargs=True)

    def loss(self, loss: Tensor, logits: Tensor, *inputs: Any, **kwargs: Any) -> Tensor:
        """The mixed loss, for a training loop that wants it there.

        Parameters
        ----------
        loss : the user's.
        logits : the student's, shape (..., classes), on ``inputs``, which the teacher is given too.
        """
        t = self.temperature
        target = self._target(inputs, kwargs)
        student = F.log_softmax(logits.float() / t, -1)
        rows = logits.numel() // logits.shape[-1]
        divergence = F.kl_div(student, target, reduction="sum") / rows
        return (1 - self.weight) * loss + self.weight * t * t * divergence

    @torch.no_grad()
    def _target(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The teacher's distribution, at the temperature and smoothed."""
        if self.teacher is None:
            raise RuntimeError("there is no teacher yet: give one, or hand this to an LCAlgorithm")
        logits = self.logits(self.teacher(*inputs, **kwargs)).float()
        target = F.softmax(logits / self.temperature, -1)
        return target * (1 - self.smoothing) + self.smoothing / target.shape[-1] if self.smoothing else target

    def _after_forward(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not (self.active and module.training and torch.is_grad_enabled() and self.weight):
            return
        logits = self.logits(output)
        if not logits.requires_grad:
            return
        t, student = self.temperature, logits.detach()
        target = self._target(inputs, kwargs)
        rows = student.numel() // student.shape[-1]

        def mix(gradient: Tensor) -> Tensor:
            scale = self.scale() if callable(self.scale) else self.scale
            pull = F.softmax(student.float() / t, -1) - target
            return (1 - self.weight) * gradient + (self.weight * t * scale / rows) * pull.to(gradient.dtype)

        logits.register_hook(mix)


def _logits(output: Any) -> Tensor:
    """The logits of a plain tensor, of a model output with a field ``logits``, or the first of a tuple."""
    found = getattr(output, "logits", output)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"the model's output holds no logits that are known how to find, got {type(output).__name__}")
    return found
