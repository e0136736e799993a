"""Sharpness-aware minimisation, for the L step or alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["SAM"]


class SAM(Optimizer):
    """Sharpness-aware minimisation over another optimizer: the gradient is taken at w + rho g / ||g||.

    Parameters
    ----------
    base : any optimizer; its parameter groups, state and learning rate are shared.
    rho : radius of the perturbation, in the norm over all parameters.
    model : its batch normalisations do not update their statistics in the perturbed pass.

    Notes
    -----
    Foret et al. 2021; inside the L step of a splitting, as in SAFE (2025). Two forward and backward passes a step.
    ``step(closure)``, where the closure zeroes the gradients, computes the loss, calls ``backward`` and returns the
    loss; or, with no closure, ``loss.backward(); first_step(); zero_grad(); loss.backward(); second_step()``.
    ``algorithm.attach(sam)`` works as for any optimizer.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, model: nn.Module | None = None) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"base must be a torch.optim.Optimizer, got {type(base).__name__}")
        if not rho > 0:
            raise ValueError(f"rho must be positive, got {rho}")
        super().__init__(base.param_groups, {})
        self.base = base
        self.rho = rho
        self.model = model
        self.param_groups = base.param_groups
        self.state = base.state
        self._moved: list[tuple[Tensor, Tensor]] = []  # parameters and what they were
        self._momenta: list[tuple[Any, float | None]] = []

    @torch.no_grad()
    def first_step(self) -> None:
        """Move to the worst point nearby; the gradients are those at w."""
        if self._moved:
            raise RuntimeError("first_step was called twice: call second_step in between")
        having = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not having:
            return
        norm = torch.stack([torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in having]).norm()
        scale = self.rho / (norm + 1e-12)
        self._leave(having)
        torch._foreach_add_([p.detach() for p in having], torch._foreach_mul([p.grad for p in having], scale))

    def _leave(self, parameters: list[Tensor]) -> None:
        self._moved = [(p, p.detach().clone()) for p in parameters]
        if self.model is not None:
            norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            self._momenta = [(m, m.momentum) for m in norms]
            for m in norms:
                m.momentum = 0.0

    @torch.no_grad()
    def second_step(self) -> None:
        """Go back to w and take the base optimizer's step with the gradients of the perturbed point."""
        self._combine()
        self.step()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """With a closure, a whole step. Without, what :meth:`second_step` ends with."""
        if closure is None:
            self.base.step()
            return None
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self._abandon()
            raise
        self._combine()
        self.base.step()
        return loss

    def _combine(self) -> None:
        """Back to w, with the gradients that the base optimizer is to take."""
        self._back()

    def _abandon(self) -> None:
        """Back to w after an error."""
        self._back()

    def _back(self) -> None:
        with torch.no_grad():
            for p, before in self._moved:
                p.copy_(before)
        for norm, momentum in self._momenta:
            norm.momentum = momentum
        self._moved, self._momenta = [], []

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state
