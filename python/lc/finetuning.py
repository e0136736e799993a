"""Finetuning in the compressed parametrisation: codebook entries, survivors and factors move; codes and masks stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .compressed_model import install, unwrapped
from .compressions import Compression, leaves
from .tasks import BoundTask, tasks_of

__all__ = ["Finetuning"]


class Finetuning(nn.Module):
    """A compressed model whose parameters are those of its compressions, for some last epochs of any training loop.

    Parameters
    ----------
    model : compressed by an :class:`lc.LCAlgorithm` whose run has ended.

    Examples
    --------
    >>> algorithm = lc.compress(model, lc.Task(nn.Linear, lc.Quantize(2)), train_epoch, mu=[1e-2], epochs_per_step=1)
    >>> tuned = lc.Finetuning(model)
    >>> train(tuned, torch.optim.Adam(tuned.parameters(), 1e-4))
    >>> model = tuned.finish()  # which holds the finetuned weights, and can be packed
    >>> packed = lc.pack(model)

    Notes
    -----
    The gradient of a codeword is the sum of those of its weights (Han et al. 2016); it comes from autograd, through
    Delta(Theta), which is computed anew at each forward pass. Biases and all else that was not compressed train along.
    A compression takes part if it names what may move in ``trainable`` and its ``decompress`` is differentiable;
    others stay as they are.
    """

    inner: nn.Module
    tasks: list[BoundTask]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        inner = unwrapped(model)
        self.__dict__["inner"] = inner  # not a submodule: its compressed parameters are not to be trained
        self.__dict__["tasks"] = tasks_of(inner)
        compressed = {p for task in self.tasks for p in task.parameters}
        self.theta = nn.ParameterList()
        for leaf in self._leaves():
            self.theta.extend(leaf.start_finetuning())
        self.rest = nn.ParameterList([p for p in inner.parameters() if p not in compressed and p.requires_grad])

    def _leaves(self) -> list[Compression]:
        return [leaf for task in self.tasks for leaf in leaves(task.compression)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The compressed model on these arguments."""
        names = {p: name for name, p in self.inner.named_parameters()}
        weights = {}
        for task in self.tasks:
            for p, delta in zip(task.parameters, task.compression.decompress(), strict=True):
                weights[names[p]] = torch.empty_like(p).copy_(delta)  # in its memory format too: convolutions stay fast
        return torch.func.functional_call(self.inner, weights, args, kwargs, tie_weights=True)

    def train(self, mode: bool = True) -> Finetuning:
        """Also of the model inside."""
        self.inner.train(mode)
        return super().train(mode)

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """Put the finetuned weights into the model, and return it. This wrapper is used up then."""
        for leaf in self._leaves():
            leaf.finish_finetuning()
        for task in self.tasks:
            task.delta = [d.to(p.dtype) for d, p in zip(task.compression.decompress(), task.parameters, strict=True)]
        install(self.tasks, [task.delta for task in self.tasks])
        return self.inner
