"""Criteria from the gradients and the curvature of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import calibrate, weight_layers
from .weights import Groups, check_damping, counted, evaluating, group_dims, metric, of_groups

__all__ = ["fisher", "obd", "taylor", "woodfisher"]

Loss = Callable[[nn.Module, Any], Tensor]


def fisher(model: nn.Module, batches: Iterable[Any], loss: Loss, *, damping: float = 0.01) -> dict[str, Tensor]:
    """Diagonal Fisher information, w^2 E[(dL/dw)^2]: the loss's rise to second order, in expectation.

    Parameters
    ----------
    model : its weights and gradients stay as they are; it runs in evaluation mode.
    batches : what ``loss`` is called with.
    loss : ``loss(model, batch)``, the mean loss of a batch as a tensor.
    damping : this part of the mean of h is added to it.

    Raises
    ------
    ValueError : if there are no batches, or for a damping out of range.

    Notes
    -----
    It is ``lc.calibrate(kind="fisher")`` with no bound on h: one backward pass per batch gives the squares of the
    gradients of the single samples.

    Examples
    --------
    >>> loss = lambda model, batch: F.cross_entropy(model(batch), y)
    >>> h = lc.criteria.fisher(model, batches, loss)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.2)), mu=[1e-2], metric=h)
    """
    check_damping(damping)
    return metric(calibrate(model, batches, kind="fisher", loss=loss, damping=0.0, clip=1.0), damping)


def taylor(
    model: nn.Module, batches: Iterable[Any], loss: Loss, *, groups: Groups | None = None, damping: float = 0.01
) -> dict[str, Tensor]:
    """Taylor: |w dL/dw|, how much the loss moves to first order if a weight goes, or a group of them.

    Parameters
    ----------
    model, batches, loss, damping : as for :func:`fisher`.
    groups : None: for single weights, h = E[|dL/dw|]^2, the mean over batches. "row" or "column": for
        ``lc.GroupPrune(keep, groups=...)``; sum h w^2 over a group is E[(sum w dL/dw)^2] for the present weights.

    Raises
    ------
    ValueError : if there are no batches, or for a damping or groups out of range.

    Notes
    -----
    Molchanov, Tyree, Karras, Aila, Kautz (2017) and Molchanov et al. (2019). The gradients are those of whole batches:
    take small ones, for the mean over many samples vanishes in a trained net.

    Examples
    --------
    >>> loss = lambda model, batch: F.cross_entropy(model(batch), y)
    >>> h = lc.criteria.taylor(model, batches, loss, groups="row")
    >>> rows = lc.Task("re:.*weight", lc.GroupPrune(0.5, groups="row"), joint=True)
    >>> algorithm = lc.LCAlgorithm(model, rows, mu=[1e-2], metric=h)
    """
    check_damping(damping)
    totals: dict[str, Tensor] = {}
    seen = 0
    with evaluating(model) as inner:
        layers = weight_layers(inner)
        for gradients in _gradients(model, layers, batches, loss):
            seen += 1
            for name, g in gradients.items():
                weight = layers[name].weight.detach()
                if groups is None:
                    score = g.abs()
                else:
                    score = (g * weight).sum(group_dims(weight, groups), keepdim=True).square()
                totals[name] = totals[name] + score if name in totals else score
    means = {name: total / seen for name, total in totals.items()}
    if groups is None:
        return metric({name: g.square() for name, g in means.items()}, damping)
    damped = metric(means, damping)
    return metric({name: of_groups(layers[name].weight, score, groups) for name, score in damped.items()}, 0.0)


def obd(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    samples: int = 4,
    damping: float = 0.01,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Optimal Brain Damage: w^2 H_ii / 2 with the diagonal of the loss's own Hessian, where it is positive.

    Parameters
    ----------
    model, batches, loss, damping : as for :func:`fisher`. The loss must be twice differentiable.
    samples : random probes for each batch; more make the estimate better.
    generator : of the probes, on the CPU. Default: one of seed 0.

    Raises
    ------
    ValueError : if there are no batches, or for samples or a damping out of range.

    Notes
    -----
    LeCun, Denker, Solla (1990). The diagonal is estimated as E[z * Hz] over signs z (Hutchinson 1989; Bekas,
    Kokiopoulou, Saad 2007): a product with the Hessian, about three backward passes, for each probe.

    Examples
    --------
    >>> loss = lambda model, batch: F.cross_entropy(model(batch), y)
    >>> h = lc.criteria.obd(model, batches, loss)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.2)), mu=[1e-2], metric=h)
    """
    check_damping(damping)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be an int of at least 1, got {samples!r}")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    totals: dict[str, Tensor] = {}
    with evaluating(model) as inner, torch.enable_grad():
        layers = weight_layers(inner)
        for batch in counted(batches):
            used = _used(layers, loss(model, batch))
            weights = [layers[name].weight for name in used.names]
            for _ in range(samples):
                signs = [torch.randint(0, 2, w.shape, generator=source).to(w).mul_(2).sub_(1) for w in weights]
                products = torch.autograd.grad(
                    used.gradients, weights, signs, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for name, z, p in zip(used.names, signs, products, strict=True):
                    diagonal = (z * p).detach().float()
                    totals[name] = totals[name] + diagonal if name in totals else diagonal
    return metric({name: total.clamp_min(0) for name, total in totals.items()}, damping)


def woodfisher(model: nn.Module, batches: Iterable[Any], loss: Loss, *, damping: float = 0.01) -> dict[str, Tensor]:
    """WoodFisher: w_i^2 / [F^-1]_ii with the empirical Fisher matrix F of each layer, inverted by Woodbury's identity.

    Parameters
    ----------
    model, batches, loss : as for :func:`fisher`. Each batch is one gradient: give some dozens, of few samples.
    damping : this part of the mean of F's diagonal is added to its diagonal. Positive.

    Raises
    ------
    ValueError : if there are no batches, or for a damping out of range.

    Notes
    -----
    Singh and Alistarh (2020). With n gradients G of p weights, F = G^T G / n + d: the diagonal of its inverse takes
    O(n^2 p), and the gradients n times the memory of a layer.

    Examples
    --------
    >>> loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
    >>> h = lc.criteria.woodfisher(model, list(zip(x.split(4), y.split(4))), loss)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.2)), mu=[1e-2], metric=h)
    """
    check_damping(damping)
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    rows: dict[str, list[Tensor]] = {}
    with evaluating(model) as inner:
        layers = weight_layers(inner)
        for gradients in _gradients(model, layers, batches, loss):
            for name, g in gradients.items():
                rows.setdefault(name, []).append(g.flatten())
    found = {}
    for name, samples in rows.items():
        g = torch.stack(samples)
        n = len(g)
        floor = damping * g.double().square().mean()
        if not floor > 0:
            found[name] = torch.ones_like(layers[name].weight, dtype=torch.float32)
            continue
        gram = (g.double() @ g.double().T) + n * floor * torch.eye(n, dtype=torch.float64, device=g.device)
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), g.double(), upper=False)
        h = floor / (1 - half.square().sum(0)).clamp_min(torch.finfo(torch.float32).eps)
        found[name] = h.view(layers[name].weight.shape).float()
    return metric(found, 0.0)


class _Used:
    """The weights that a loss depends on, and its gradients there, with their graph."""

    def __init__(self, names: list[str], gradients: list[Tensor]) -> None:
        self.names, self.gradients = names, gradients


def _used(layers: dict[str, Any], value: Tensor) -> _Used:
    names = [name for name, layer in layers.items() if layer.weight.requires_grad]
    weights = [layers[name].weight for name in names]
    gradients = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
    pairs = [(name, g) for name, g in zip(names, gradients, strict=True) if g is not None]
    return _Used([name for name, _ in pairs], [g for _, g in pairs])


def _gradients(
    model: nn.Module, layers: dict[str, Any], batches: Iterable[Any], loss: Loss
) -> Iterator[dict[str, Tensor]]:
    names = [name for name, layer in layers.items() if layer.weight.requires_grad]
    weights = [layers[name].weight for name in names]
    for batch in counted(batches):
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(model, batch), weights, allow_unused=True)
        yield {name: g.detach().float() for name, g in zip(names, gradients, strict=True) if g is not None}
