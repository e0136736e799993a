"""Second moments of the inputs of layers, as arguments of operations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check

__all__ = ["checked_moment", "damped_moment"]


def checked_moment(value: Tensor, n: int, like: Tensor) -> Tensor:
    """A symmetric (n, n) matrix, in float64."""
    moment = _check.tensor(value, "moment")
    if moment.dtype is not torch.float64:
        moment = _check.float32(value, "moment", like)
    if moment.shape != (n, n):
        raise ValueError(f"moment must have shape ({n}, {n}), got {tuple(moment.shape)}")
    _check.finite(moment, "moment")
    moment = moment.double()
    if not torch.allclose(moment, moment.t(), rtol=1e-4, atol=1e-5 * float(moment.abs().max())):
        raise ValueError("moment must be symmetric")
    return (moment + moment.t()) / 2


def damped_moment(w: Tensor, moment: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """``w`` in float32, and the damped moment in float64."""
    a = _check.float32(w, "w")
    if a.dim() != 2 or not a.numel():
        raise ValueError(f"w must be a matrix and not empty, got shape {tuple(a.shape)}")
    _check.finite(a, "w")
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 < damping < float("inf"):
        raise ValueError(f"damping must be a finite number above 0, got {damping!r}")
    h = checked_moment(moment, a.shape[1], a)
    mean = float(h.diagonal().mean())
    if float(h.diagonal().min()) < 0:
        raise ValueError(f"moment must be positive semidefinite, got {float(h.diagonal().min()):g} on its diagonal")
    return a, h + (damping * mean or 1.0) * torch.eye(len(h), dtype=h.dtype, device=h.device)
