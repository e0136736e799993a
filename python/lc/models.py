"""Small reference networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import nn

__all__ = ["lenet300"]


def lenet300(in_features: int = 784, classes: int = 10, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """LeNet300: fully connected, with 300 and 100 hidden units; 266,200 weights for 784 inputs and 10 classes.

    The weights are those of Glorot and Bengio (2010), the biases zero. Layers 0, 2 and 4 are linear.
    """
    sizes = [in_features, 300, 100, classes]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()] if i < 2 else [linear]
    return nn.Sequential(*layers)
