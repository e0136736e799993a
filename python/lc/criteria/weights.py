"""What the criteria have in common, and the one that needs the weights alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..calibration import weight_layers
from ..compressed_model import unwrapped

__all__ = ["Groups", "check_damping", "counted", "evaluating", "group_dims", "magnitude", "metric", "of_groups"]

Groups = Literal["row", "column"]


@torch.no_grad()
def magnitude(model: nn.Module, *, per_layer: bool = False) -> dict[str, Tensor]:
    """Magnitude pruning, w^2: h = 1.

    Parameters
    ----------
    model : its layers give the names and shapes.
    per_layer : weights are measured by the standard deviation of their layer, h = 1 / var(w), which a budget over
        several layers takes for comparable (Han et al. 2015).

    Examples
    --------
    >>> h = lc.criteria.magnitude(model, per_layer=True)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.2), joint=True), mu=[1e-2], metric=h)
    """
    found = {}
    for name, layer in weight_layers(unwrapped(model)).items():
        w = layer.weight.detach().float()
        scale = w.square().mean() - w.mean().square() if per_layer else torch.ones((), device=w.device)
        found[name] = torch.ones_like(w) / scale.clamp_min(torch.finfo(torch.float32).tiny)
    return found


def metric(scores: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
    """Scores that are not negative made positive: ``damping`` times their mean is added, or one if all are zero."""
    found = {}
    for name, h in scores.items():
        h = h.float()
        mean = h.mean()
        floor = (damping * mean).clamp_min(torch.finfo(torch.float32).tiny)
        found[name] = (h + floor if mean > 0 else torch.ones_like(h)).contiguous()
    return found


def of_groups(weight: Tensor, score: Tensor, groups: Groups) -> Tensor:
    """h, the same within a group, for which sum h w^2 over each group is its score; one of zeros counts as usual."""
    dims = group_dims(weight, groups)
    squares = weight.detach().float().square().sum(dims, keepdim=True)
    usual = squares.mean() if bool(squares.any()) else torch.ones_like(squares.mean())
    squares = torch.where(squares > 0, squares.clamp_min(1e-9 * usual), usual)
    return (score.reshape(squares.shape) / squares).expand(weight.shape)


def group_dims(weight: Tensor, groups: Groups) -> list[int]:
    """The dimensions of a weight that a group goes over."""
    if groups not in ("row", "column"):
        raise ValueError(f"groups must be None, 'row' or 'column', got {groups!r}")
    return [d for d in range(weight.dim()) if d != (groups == "column")]


def check_damping(damping: float) -> None:
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping < math.inf:
        raise ValueError(f"damping must be a finite number of at least 0, got {damping!r}")


def counted(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, or an error if there are none."""
    seen = False
    for batch in batches:
        seen = True
        yield batch
    if not seen:
        raise ValueError("batches must hold at least one batch")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model inside its wrappers, in evaluation mode for a while."""
    inner = unwrapped(model)
    modes = {module: module.training for module in inner.modules()}
    model.eval()
    try:
        yield inner
    finally:
        for module, mode in modes.items():
            module.training = mode
