"""LeNet300 and LeNet5, for digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import nn

from ._init import glorot_

__all__ = ["lenet5", "lenet300"]


def lenet300(in_features: int = 784, classes: int = 10, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """LeNet300: fully connected, with 300 and 100 hidden units; 266,200 weights for 784 inputs and 10 classes.

    Takes vectors, (N, in_features). The weights are those of Glorot and Bengio (2010), the biases zero. Layers 0, 2
    and 4 are linear.
    """
    sizes = [in_features, 300, 100, classes]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(before, after)
        glorot_(linear)
        layers += [linear, activation()] if i < 2 else [linear]
    return nn.Sequential(*layers)


def lenet5(
    in_channels: int = 1, classes: int = 10, size: int = 28, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """LeNet5 with the layer sizes of Caffe: convolutions 5x5 of 20 and 50 channels, 500 hidden units.

    431,080 parameters, 430,500 of them weights, for 28x28 grey images and 10 classes. Unlike Caffe's file, and like the
    literature on compression, it has the activation after the convolutions too. The weights are those of Glorot and
    Bengio (2010), as in Caffe, the biases zero. Layers 0 and 3 are convolutions, 7 and 9 linear.

    Parameters
    ----------
    size : height and width of the images, 16 at least.
    """
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"size must be 16 at least, got {size}")
    layers = [
        nn.Conv2d(in_channels, 20, 5),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * side * side, 500),
        activation(),
        nn.Linear(500, classes),
    ]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            glorot_(layer)
    return nn.Sequential(*layers)
