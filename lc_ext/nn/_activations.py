"""The activation of a packed linear layer, as a module of ``torch.nn`` and back."""

from __future__ import annotations

from torch import nn

__all__ = ["activation_module", "activation_of", "linear_and_activation", "linear_of"]


def activation_of(module: nn.Module) -> str | None:
    """The name of the activation that a module is, or None."""
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.SiLU:
        return "silu"
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}[module.approximate]
    return None


def activation_module(name: str) -> nn.Module:
    """The module of an activation."""
    return {"relu": nn.ReLU(), "silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}[name]


def linear_of(dense: nn.Module) -> tuple[nn.Linear, str | None]:
    """The same of what must be an ``nn.Linear``, or an ``nn.Sequential`` of one and an activation.

    Raises
    ------
    TypeError : for another module.
    """
    linear, activation = linear_and_activation(dense)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, alone or with its activation, got {type(dense).__name__}")
    return linear, activation


def linear_and_activation(dense: nn.Module) -> tuple[nn.Module, str | None]:
    """What ``to_dense`` makes, in two: a layer, and the name of the activation that follows it in a ``Sequential``."""
    if type(dense) is nn.Sequential and len(dense) == 2 and (name := activation_of(dense[1])) is not None:
        return dense[0], name
    return dense, None
