"""Criteria from what goes through the layers: a forward pass over each batch, no labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calibration import calibrate, call_model, weight_layers
from ..compressed_model import unwrapped
from .weights import check_damping, counted, evaluating, metric, of_groups

__all__ = ["apoz", "input_moments", "obs", "wanda"]


def wanda(model: nn.Module, batches: Iterable[Any], *, damping: float = 0.01) -> dict[str, Tensor]:
    """Wanda: |w_ij| ||x_j||, the weight times the norm of its input; h_ij = E[x_j^2].

    Parameters
    ----------
    model : its weights stay as they are; it runs in evaluation mode.
    batches : what the model is called with: inputs, tuples with the input first, dictionaries of keyword arguments.
    damping : this part of the mean of h is added to it.

    Raises
    ------
    ValueError : if there are no batches, or for a damping out of range.

    Notes
    -----
    Sun, Liu, Bair, Kolter (2023), who compare the weights of a row: ``lc.Prune(0.5, per="row")``. It is
    ``lc.calibrate(kind="activation")`` with no bound on h.

    Examples
    --------
    >>> h = lc.criteria.wanda(model, batches)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.5, per="row")), mu=[1.0], metric=h)
    >>> algorithm.start()
    >>> _ = algorithm.c_step(0.0)  # one-shot
    >>> algorithm.install()
    """
    check_damping(damping)
    return metric(calibrate(model, batches, damping=0.0, clip=1.0), damping)


@torch.no_grad()
def apoz(model: nn.Module, batches: Iterable[Any], *, damping: float = 0.01) -> dict[str, Tensor]:
    """APoZ, the average part of zeros in a unit's activations: units that a ReLU mostly silences go.

    Parameters
    ----------
    model, batches, damping : as for :func:`wanda`. Zero is what is at most zero before the activation: in the layer's
        output, or in that of a batch normalisation that takes it.

    Returns
    -------
    h for ``lc.GroupPrune(keep, groups="row")``: sum h w^2 over a row is 1 - APoZ of its unit for the present weights.

    Raises
    ------
    ValueError : if there are no batches, or for a damping out of range.

    Notes
    -----
    Hu, Peng, Tai, Tang, "Network Trimming" (2016). It means nothing for units that no ReLU follows, such as those of
    the last layer.

    Examples
    --------
    >>> h = lc.criteria.apoz(model, batches)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.GroupPrune(0.5, groups="row")), mu=[1e-2], metric=h)
    """
    check_damping(damping)
    active: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    outputs: dict[str, Tensor] = {}

    def after_layer(name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            add(name)  # of an earlier call of the same layer
            outputs[name] = output

        return hook

    def after_norm(_norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        for name in [name for name, t in outputs.items() if t is inputs[0]]:
            outputs[name] = output

    def add(name: str) -> None:
        if name not in outputs:
            return
        t = outputs.pop(name)
        unit = 1 if isinstance(layers[name], nn.modules.conv._ConvNd) and t.dim() > 2 else -1
        positive = (t > 0).movedim(unit, 0).flatten(1)
        active[name] = active.get(name, 0) + positive.sum(1)
        counts[name] = counts.get(name, 0) + positive.shape[1]

    with evaluating(model) as inner:
        layers = weight_layers(inner)
        handles = [layer.register_forward_hook(after_layer(name)) for name, layer in layers.items()]
        norms = [m for m in inner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        handles += [norm.register_forward_hook(after_norm) for norm in norms]
        try:
            for batch in counted(batches):
                call_model(model, batch)
                for name in list(outputs):
                    add(name)
        finally:
            for handle in handles:
                handle.remove()
    scores = {name: metric({name: n.float() / counts[name]}, damping)[name] for name, n in active.items()}
    return {name: _of_units(layers[name], score) for name, score in scores.items()}


def _of_units(layer: Any, score: Tensor) -> Tensor:
    if getattr(layer, "transposed", False):
        raise TypeError(f"apoz knows no {type(layer).__name__}, whose units are not the rows of its weight")
    return metric({"": of_groups(layer.weight, score, "row")}, 0.0)[""]


@torch.no_grad()
def input_moments(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """E[x x^T] of the inputs of each layer, in the order of a row of its weight: for :class:`SecondOrder`.

    Parameters
    ----------
    model, batches : as for :func:`wanda`.

    Returns
    -------
    by parameter name, float64 (n, n) with n = ``weight[0].numel()``; for a convolution in groups, one for each group:
        (groups, n, n). Of Linear, Conv1d and Conv2d layers.

    Raises
    ------
    ValueError : if there are no batches.

    Notes
    -----
    Every position of a sequence and every place of a kernel is a sample. O(n^2) for each, and n^2 of memory for a
    layer.

    Examples
    --------
    >>> moments = lc.criteria.input_moments(model, batches)
    >>> moments["0.weight"].shape
    torch.Size([8, 8])
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook_for(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = _patches(layer, inputs[0].detach().float())
            totals[name] = totals.get(name, 0) + (x.mT @ x).double()
            counts[name] = counts.get(name, 0) + x.shape[1]

        return hook

    with evaluating(model) as inner:
        layers = {n: m for n, m in weight_layers(inner).items() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))}
        handles = [layer.register_forward_pre_hook(hook_for(name)) for name, layer in layers.items()]
        try:
            for batch in counted(batches):
                call_model(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    moments = {name: (total + total.mT) / (2 * counts[name]) for name, total in totals.items()}
    return {name: m[0] if len(m) == 1 else m for name, m in moments.items()}


def _patches(layer: Any, x: Tensor) -> Tensor:
    """(groups, samples, n): the inputs of the rows of a layer's weight."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    dims = len(layer.kernel_size)
    if x.dim() == dims + 1:
        x = x.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    one = (1,) * (2 - dims)
    x = x if dims == 2 else x.unsqueeze(2)
    columns = F.unfold(x, one + layer.kernel_size, one + layer.dilation, 0, one + layer.stride)
    grouped = columns.view(len(x), layer.groups, -1, columns.shape[-1])
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def obs(model: nn.Module, batches: Iterable[Any], *, damping: float = 0.01) -> dict[str, Tensor]:
    """Optimal Brain Surgeon, layer by layer: w_ij^2 / [H^-1]_jj with H = E[x x^T], so h_ij = 1 / [H^-1]_jj.

    The rise of the squared error of the layer's outputs if the weight goes and the others of its row adapt, which
    :class:`SecondOrder` lets them do.

    Parameters
    ----------
    model, batches : as for :func:`wanda`.
    damping : this part of the mean of the diagonal of H is added to it. Positive.

    Raises
    ------
    ValueError : if there are no batches, or for a damping out of range.

    Notes
    -----
    Hassibi and Stork (1993); the layer's own Hessian as in Dong, Chen, Pan, "Layer-wise OBS" (2017). Linear, Conv1d and
    Conv2d layers; O(n^3) for n weights in a row.

    Examples
    --------
    >>> h = lc.criteria.obs(model, batches)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Prune(0.2)), mu=[1e-2], metric=h)
    """
    check_damping(damping)
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    layers = weight_layers(unwrapped(model))
    found = {}
    for name, moment in input_moments(model, batches).items():
        mean = moment.diagonal(dim1=-2, dim2=-1).mean()
        eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
        inverse = torch.linalg.inv(moment + (damping * mean if mean > 0 else 1.0) * eye)
        h = 1 / inverse.diagonal(dim1=-2, dim2=-1).reshape(-1, moment.shape[-1])
        weight = layers[name].weight
        rows = h.repeat_interleave(weight.shape[0] // len(h), 0)
        found[name] = rows.reshape(weight.shape).float().contiguous()
    return found
