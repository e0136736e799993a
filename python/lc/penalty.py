"""The penalty (mu/2) sum_i h_i (w_i - t_i)^2 of the L step, applied through hooks on the user's own optimizer.

h is the metric: all one unless the algorithm was given another.

Two forms, neither with an autograd cost:

``prox``: after each optimizer step, w <- (w + a mu h t) / (1 + a mu h), the proximal step for step size a. Stable
    for every mu, and no part of the penalty enters the optimizer's momentum or second moments. The step size is
    the distance that a unit of gradient carries a weight in the end, so that mu weighs the penalty against the loss as
    in the other form: the learning rate, divided by 1 - momentum for SGD, and by the root of the second moment, for
    each weight, for Adam and its like.
``gradient``: before each optimizer step, mu h (w - t) is added to the gradient. Needs a learning rate below 2 / mu.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .distributed.sharded import local

__all__ = ["Form", "Penalty"]

Form = Literal["prox", "gradient"]


class Penalty:
    """The targets t of some parameters, and the hooks that pull the parameters there. Idle while mu is zero.

    ``metric`` holds the h of those parameters that have one.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], form: Form, metric: dict[nn.Parameter, Tensor] | None = None
    ) -> None:
        if form not in ("prox", "gradient"):
            raise ValueError(f"penalty must be 'prox' or 'gradient', got {form!r}")
        self.form = form
        self.mu = 0.0
        self.parameters = set(parameters)
        self.metric = metric or {}
        self.targets: dict[nn.Parameter, Tensor] = {}
        self.reached: dict[nn.Parameter, str] = {}  # what has pulled them in this L step: "hook" or "loss"
        self._handles: weakref.WeakKeyDictionary[Optimizer, RemovableHandle] = weakref.WeakKeyDictionary()

    def start(self, mu: float, targets: dict[nn.Parameter, Tensor]) -> None:
        """Begin an L step."""
        self.mu, self.targets, self.reached = mu, targets, {}

    def stop(self) -> None:
        """End it: until the next ``start`` the optimizers are as if never attached."""
        self.mu, self.targets = 0.0, {}

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Hook ``optimizer``, once however often this is called; ``remove()`` of the handle takes the hook away."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not any(p in self.parameters for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer holds none of the parameters that are to be compressed")
        handle = self._handles.get(optimizer)
        if handle is None or handle.id not in (handle.hooks_dict_ref() or {}):
            if self.form == "prox":
                handle = optimizer.register_step_post_hook(lambda opt, args, kwargs: self.after_step(opt))
            else:
                handle = optimizer.register_step_pre_hook(lambda opt, args, kwargs: self.before_step(opt))
            self._handles[optimizer] = handle
        return handle

    def loss(self) -> Tensor:
        """(mu/2) ||w - t||^2 as a tensor to add to the loss: for those who want it there instead of a hook.

        Of parameters that are cut into shards, the part of this process.
        """
        if self.mu == 0:
            return torch.zeros(())
        self._reach(list(self.targets), "loss")
        terms = [self._weighted(p, (local(p).to(t.dtype) - t).square()).sum() for p, t in self.targets.items()]
        return self.mu / 2 * torch.stack(terms).sum()

    def _weighted(self, p: nn.Parameter, values: Tensor) -> Tensor:
        return values * self.metric[p].to(p.device) if p in self.metric else values

    def _reach(self, parameters: Sequence[nn.Parameter], by: str) -> None:
        for p in parameters:
            if self.reached.setdefault(p, by) != by:
                raise RuntimeError(
                    "the penalty is applied twice: use either attach(optimizer) or penalty() in the loss"
                )

    def _members(self, group: dict[str, Any]) -> list[nn.Parameter]:
        members = [p for p in group["params"] if p in self.targets]
        self._reach(members, "hook")
        return members

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """The hook of the form ``prox``."""
        if self.mu == 0 or _skipped(optimizer):
            return
        for group in optimizer.param_groups:
            rate = self.mu * _rate(group)
            plain: list[tuple[Tensor, Tensor]] = []
            for p in self._members(group):
                t, root = self.targets[p], _second_moment_root(optimizer, group, p)
                if root is None and p.dtype == t.dtype and p not in self.metric:
                    plain.append((local(p.detach()), t))
                    continue
                pull = self._weighted(p, torch.full_like(t, rate))
                part = pull / (pull + (1 if root is None else root.to(t.dtype)))
                w = local(p)
                w.copy_(torch.lerp(w.to(t.dtype), t, part))  # half precision: in float32
            if plain:
                torch._foreach_lerp_([p for p, _ in plain], [t for _, t in plain], rate / (1 + rate))

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """The hook of the form ``gradient``."""
        if self.mu == 0:
            return
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer will divide the gradients by it
        for group in optimizer.param_groups:
            for p in self._members(group):
                pull = self._weighted(p, (local(p).to(self.targets[p].dtype) - self.targets[p]).mul_(self.mu))
                if scale is not None:
                    pull *= scale.to(pull.device)
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                local(p.grad).add_(pull.to(p.dtype))


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer under a GradScaler has just left the weights alone because of an overflow."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _rate(group: dict[str, Any]) -> float:
    """The learning rate, as far as momentum carries it."""
    momentum = float(group.get("momentum") or 0)
    carried = (1 - float(group.get("dampening") or 0)) / (1 - momentum) if 0 < momentum < 1 else 1.0
    return float(group["lr"]) * carried


def _second_moment_root(optimizer: Optimizer, group: dict[str, Any], p: nn.Parameter) -> Tensor | None:
    """What Adam, RMSprop, Adagrad and their like divide the step of each weight by; None for other optimizers."""
    state, eps = optimizer.state.get(p, {}), float(group.get("eps", 0))
    if "exp_avg_sq" in state and "betas" in group:
        moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        return torch.sqrt(local(moment).float() / (1 - float(group["betas"][1]) ** float(state["step"]))) + eps
    if "exp_inf" in state:  # Adamax
        return local(torch.as_tensor(state["exp_inf"])).float()
    for name in ("square_avg", "sum"):  # RMSprop; Adagrad
        if name in state and "acc_delta" not in state:
            return torch.sqrt(local(state[name]).float()) + eps
    return None
