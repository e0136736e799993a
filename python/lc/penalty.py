"""The penalty (mu/2) ||w - t||^2 of the L step, applied through hooks on the user's own optimizer.

Two forms, neither with an autograd cost:

``prox``: after each optimizer step, w <- (w + a mu t) / (1 + a mu), the proximal step of the penalty for step size a.
    Stable for every mu, and no part of the penalty enters the optimizer's momentum or second moments. The step size is
    the distance that a unit of gradient carries a weight in the end, so that mu weighs the penalty against the loss as
    in the other form: the learning rate, divided by 1 - momentum for SGD, and by the root of the second moment, for
    each weight, for Adam and its like.
``gradient``: before each optimizer step, mu (w - t) is added to the gradient. Needs a learning rate below 2 / mu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["Form", "Penalty"]

Form = Literal["prox", "gradient"]


class Penalty:
    """The targets t of some parameters, and the hooks that pull the parameters there."""

    def __init__(self, parameters: Sequence[nn.Parameter], form: Form) -> None:
        if form not in ("prox", "gradient"):
            raise ValueError(f"penalty must be 'prox' or 'gradient', got {form!r}")
        self.form = form
        self.mu = 0.0
        self.targets: dict[nn.Parameter, Tensor] = dict.fromkeys(parameters, torch.empty(0))
        self.reached: set[nn.Parameter] = set()  # those that a step of this L step has pulled

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Hook ``optimizer``; the handle's ``remove()`` takes the hook away again."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not any(p in self.targets for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer holds none of the parameters that are to be compressed")
        if self.form == "prox":
            return optimizer.register_step_post_hook(lambda opt, args, kwargs: self._prox(opt))
        return optimizer.register_step_pre_hook(lambda opt, args, kwargs: self._add_gradient(opt))

    def loss(self) -> Tensor:
        """(mu/2) ||w - t||^2 as a tensor to add to the loss: for those who want it there instead of a hook."""
        self.reached.update(self.targets)
        terms = [(p.to(t.dtype) - t).square().sum() for p, t in self.targets.items()]
        return self.mu / 2 * torch.stack(terms).sum()

    def _members(self, group: dict[str, Any]) -> list[nn.Parameter]:
        members = [p for p in group["params"] if p in self.targets]
        self.reached.update(members)
        return members

    @torch.no_grad()
    def _prox(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            members = self._members(group)
            rate = float(group["lr"]) / (1 - float(group.get("momentum", 0)))
            plain: list[tuple[Tensor, Tensor]] = []
            for p in members:
                t, root = self.targets[p], _second_moment_root(optimizer, group, p)
                if root is None and p.dtype == t.dtype:
                    plain.append((p.detach(), t))
                    continue
                pull = self.mu * rate / (torch.ones_like(t) if root is None else root.to(t.dtype))
                p.copy_(torch.lerp(p.to(t.dtype), t, pull / (1 + pull)))  # half precision: in float32
            if plain:
                part = self.mu * rate / (1 + self.mu * rate)
                torch._foreach_lerp_([p for p, _ in plain], [t for _, t in plain], part)

    @torch.no_grad()
    def _add_gradient(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for p in self._members(group):
                pull = (p.to(self.targets[p].dtype) - self.targets[p]).mul_(self.mu).to(p.dtype)
                p.grad = pull if p.grad is None else p.grad.add_(pull)


def _second_moment_root(optimizer: Optimizer, group: dict[str, Any], p: nn.Parameter) -> Tensor | None:
    """What Adam and its like divide the step of each weight by; None for other optimizers."""
    state = optimizer.state.get(p, {})
    if "exp_avg_sq" not in state or "betas" not in group:
        return None
    moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    return torch.sqrt(moment / correction) + float(group.get("eps", 0))
