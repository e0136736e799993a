"""Compression without training: from the inputs that a few unlabelled batches give each layer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lc_ext import ops

from .algorithm import LCAlgorithm
from .compensation import compensate
from .compressed_model import install, unwrapped
from .tasks import BoundTask, Task, remember

__all__ = ["post_train"]

log = logging.getLogger(__name__)

Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a block


@torch.no_grad()
def post_train(
    model: nn.Module,
    tasks: Task | Sequence[Task],
    batches: Iterable[Any],
    *,
    blocks: Sequence[nn.Module] | None = None,
    sequential: bool = True,
    second_order: bool = True,
    bias_correction: bool = True,
    damping: float = 0.01,
) -> LCAlgorithm:
    """Compress the Linear layers of ``model`` in place, in one pass over them and without labels.

    Each layer is fitted to its outputs on ``batches``: the C step has E[x_j^2] of its inputs as weights, and a
    second-order sweep (:func:`compensate`) then rounds or prunes anew, so that the errors of the columns cancel.

    Parameters
    ----------
    model : trained.
    tasks : their targets must be weights of ``nn.Linear``, each compressed on its own, not jointly.
    batches : what the model is called with: inputs; tuples, of which the first item is taken; or dictionaries of
        keyword arguments. Every position counts alike, padding too: batches of equally long sequences are best.
    blocks : modules that hold all these layers and that run one after another, the output of each being the first
        argument of the next, as the layers of a transformer. Only for speed: with ``sequential``, a block at a time is
        run and not the whole model, and the inputs of one block for all batches are held, twice. Default: the model.
    sequential : a layer gets the inputs that the layers compressed before it leave, and is fitted to the outputs that
        it had in the uncompressed net: so later layers make up for errors of earlier ones. It costs two forward passes
        through the block, or the model, for each group of layers that have the same input.
    second_order : False: the weighted C step alone.
    bias_correction : the mean error of an output goes into the layer's bias, if it has one.
    damping : this part of the mean of E[x_j^2] is added to each of them.

    Returns
    -------
    algorithm : with the compressions that were learned, and ``size()``. The model holds its compressed weights, ready
        for :func:`lc.pack` and :class:`lc.Finetuning`.

    Raises
    ------
    TypeError, ValueError : for tasks on other layers or joint ones, layers that the batches do not reach, no batches;
        and whatever a compression raises.

    Notes
    -----
    With x the input that a layer now has and f the one that it had, it is fitted to W + W E[(f - x) x^T] (E[x x^T] +
    damping)^-1 in the metric E[x x^T]; all moments are about the means if the bias is corrected.
    """
    if not (isinstance(damping, (int, float)) and 0 < damping < float("inf")):
        raise ValueError(f"damping must be a finite number above 0, got {damping!r}")
    inner = unwrapped(model)
    algorithm = LCAlgorithm(model, tasks, mu=[1.0])
    algorithm.start()
    of_layer = _layers(inner, algorithm.tasks)
    modes = {module: module.training for module in inner.modules()}
    inner.eval()
    try:
        if sequential:
            stages = _in_sequence(inner, of_layer, list(batches), blocks)
        else:
            calls = [_call(batch) for batch in batches]
            stages = iter([_moments(list(of_layer), [(inner, call, inner, call) for call in calls])])
        missed = dict(of_layer)
        for stage in stages:
            for layer, moments in stage.items():
                task = missed.pop(layer)
                _fit(task, layer, moments, second_order, bias_correction and layer.bias is not None, damping)
                install([task], [task.delta])
    finally:
        for module, mode in modes.items():
            module.training = mode
    if missed:
        raise ValueError(f"the batches never reach {[task.name for task in missed.values()]}")
    remember(inner, algorithm.tasks)
    return algorithm


@dataclass
class _Moments:
    """Sums over positions, in float64: of x and of the uncompressed net's f, of x x^T and f x^T."""

    count: int = 0
    x: Any = 0.0
    f: Any = 0.0
    xx: Any = 0.0
    fx: Any = 0.0

    def add(self, x: Tensor, f: Tensor) -> None:
        x, f = x.detach().float().flatten(0, -2), f.detach().float().flatten(0, -2)
        self.count += len(x)
        self.x, self.xx = self.x + x.double().sum(0), self.xx + (x.T @ x).double()
        same = f is x or f.data_ptr() == x.data_ptr()
        self.f = self.x if same else self.f + f.double().sum(0)
        self.fx = self.xx if same else self.fx + (f.T @ x).double()


def _fit(task: BoundTask, layer: nn.Linear, m: _Moments, second_order: bool, bias: bool, damping: float) -> None:
    w = layer.weight.detach().double()
    x, f, xx, fx = (t / m.count for t in (m.x, m.f, m.xx, m.fx))
    if bias:
        xx, fx = xx - torch.outer(x, x), fx - torch.outer(f, x)
    xx = (xx + xx.T) / 2
    mean = xx.diagonal().mean()
    damped = xx + (damping * mean if mean > 0 else 1.0) * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    target = (w + torch.linalg.solve(damped, (w @ (fx - xx)).T).T).float() if m.fx is not m.xx else w.float()
    h = damped.diagonal().float().clamp_min(1e-30)
    options: dict[str, Any] = {"weights": [(h / h.mean()).expand_as(target).contiguous()]}
    try:
        fitted = task.compression.fit([target], **(options if task.compression.weighted else {}))[0]
        if second_order:
            fitted = compensate(task.compression, target, xx, damping=damping)
    except (TypeError, ValueError) as error:
        raise type(error)(f"task {task.name}: {error}") from error
    task.set_delta([fitted])
    if bias:
        layer.bias.add_((w @ f - fitted.double() @ x).to(layer.bias))
    lost, power = ops.weighted_error(target - fitted, moment=xx), ops.weighted_error(w, moment=xx)
    log.info("%s: %.3g of the power of its outputs is lost", task.name, lost / max(power, 1e-300))


def _layers(model: nn.Module, tasks: Sequence[BoundTask]) -> dict[nn.Linear, BoundTask]:
    owners = {m.weight: m for m in model.modules() if type(m) is nn.Linear}
    found: dict[nn.Linear, BoundTask] = {}
    for task in tasks:
        if len(task.parameters) != 1:
            raise ValueError(f"task {task.name} is joint: here every layer is fitted to its own inputs")
        if task.parameters[0] not in owners:
            raise TypeError(f"task {task.name}: it must be the weight of an nn.Linear")
        if task.compression.penalised:
            raise TypeError(f"task {task.name}: {task.compression!r} needs a mu, which is an LC algorithm's")
        found[owners[task.parameters[0]]] = task
    return found


class _Stop(Exception):
    """Ends a forward pass that has shown what was asked for."""


def _call(batch: Any) -> Call:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch[0] if isinstance(batch, (tuple, list)) else batch,), {}


def _inputs(module: nn.Module, call: Call, layers: Sequence[nn.Linear], stop: bool) -> list[tuple[nn.Linear, Tensor]]:
    """The inputs of ``layers`` in the order of the calls; with ``stop``, until each has been seen."""
    seen: list[tuple[nn.Linear, Tensor]] = []
    waiting = set(layers)

    def hook(layer: Any, args: tuple[Any, ...]) -> None:
        seen.append((layer, args[0]))
        waiting.discard(layer)
        if stop and not waiting:
            raise _Stop

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        module(*call[0], **call[1])
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _moments(
    layers: Sequence[nn.Linear],
    runs: Iterable[tuple[nn.Module, Call, nn.Module, Call]],
    twins: Mapping[nn.Module, Any] | None = None,
) -> dict[nn.Linear, _Moments]:
    """Moments of the inputs of ``layers`` over ``runs``; consecutive layers with one input share theirs."""
    found: dict[nn.Linear, _Moments] = {}
    for module, call, reference, reference_call in runs:
        now = _inputs(module, call, layers, twins is not None)
        then = now if twins is None else _inputs(reference, reference_call, [twins[layer] for layer in layers], True)
        added: list[tuple[Tensor, _Moments]] = []
        for (layer, x), (_, f) in zip(now, then, strict=True):
            shared = next((m for t, m in added if t is x), None)
            if shared is None:
                shared = found.get(layer) or _Moments()
                shared.add(x, f)
                added.append((x, shared))
            found[layer] = shared
    return found


def _in_sequence(
    model: nn.Module,
    of_layer: Mapping[nn.Linear, BoundTask],
    batches: Sequence[Any],
    blocks: Sequence[nn.Module] | None,
) -> Iterable[dict[nn.Linear, _Moments]]:
    """Moments of the layers that have the same input, group after group; the caller compresses them in between."""
    if not batches:
        raise ValueError("batches must hold at least one batch")
    reference = copy.deepcopy(model)
    twins = dict(zip(model.modules(), reference.modules(), strict=True))
    chain = [model] if blocks is None else list(blocks)
    if not all(isinstance(block, nn.Module) and block in twins for block in chain):
        raise ValueError("blocks must be modules of the model")
    outside = set(of_layer) - {module for block in chain for module in block.modules()}
    if outside:
        raise ValueError(f"{sorted(of_layer[layer].name for layer in outside)} are in none of the blocks")
    calls = [_call(batch) for batch in batches]
    if blocks is not None:
        calls = [_entrance(model, call, chain[0]) for call in calls]
    originals = list(calls)
    for block in chain:
        mine = [m for m in block.modules() if isinstance(m, nn.Linear) and m in of_layer]
        groups: list[list[nn.Linear]] = []
        before: Tensor | None = None
        for layer, x in _inputs(block, calls[0], mine, False) if mine else []:
            if any(layer in group for group in groups):
                continue
            if x is before:
                groups[-1].append(layer)
            else:
                groups.append([layer])
            before = x
        for group in groups:
            runs = zip([block] * len(calls), calls, [twins[block]] * len(calls), originals, strict=True)
            yield _moments(group, runs, twins)
        if block is not chain[-1]:
            calls = [_exit(block, call) for call in calls]
            originals = [_exit(twins[block], call) for call in originals]


def _entrance(model: nn.Module, call: Call, block: nn.Module) -> Call:
    """The arguments with which ``block`` is called."""
    found: list[Call] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Stop

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model(*call[0], **call[1])
    except _Stop:
        pass
    finally:
        handle.remove()
    if not found or not found[0][0]:
        raise ValueError("the batches must reach the first of the blocks, with the hidden state as first argument")
    return found[0]


def _exit(block: nn.Module, call: Call) -> Call:
    output = block(*call[0], **call[1])
    return ((output[0] if isinstance(output, (tuple, list)) else output), *call[0][1:]), call[1]
