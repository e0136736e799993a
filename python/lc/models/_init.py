"""Initial weights."""

from __future__ import annotations

from torch import nn

__all__ = ["glorot_", "he_"]


def glorot_(layer: nn.Conv2d | nn.Linear) -> None:
    """Uniform weights of Glorot and Bengio (2010), zero biases."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def he_(layer: nn.Conv2d | nn.Linear) -> None:
    """Normal weights of He et al. (2015) for a layer before a ReLU, variance 2 / fan in; zero biases."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
