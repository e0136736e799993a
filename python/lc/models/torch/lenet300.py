"""LeNet300 for MNIST."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from .. import lenet300
from .utils import PlainNet

__all__ = ["LeNet300", "lenet300_classic", "lenet300_classic_drop", "lenet300_modern", "lenet300_modern_drop"]


class LeNet300(PlainNet):
    """Layers ``compressible_0`` to ``compressible_2``; ``dropout`` of one half after the hidden ones, if asked."""

    def __init__(self, dropout: bool, nonlinearity: Callable[[], nn.Module]) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(reshape=nn.Flatten())
        for i, layer in enumerate(lenet300(activation=nonlinearity)):
            layers[f"nonlinearity_{i // 2}" if i % 2 else f"compressible_{i // 2}"] = layer
            if i % 2 and dropout:
                layers[f"drop_{i // 2}"] = nn.Dropout()
        super().__init__(layers)


def lenet300_classic() -> LeNet300:
    """With tanh."""
    return LeNet300(False, nn.Tanh)


def lenet300_classic_drop() -> LeNet300:
    """With tanh and dropout."""
    return LeNet300(True, nn.Tanh)


def lenet300_modern() -> LeNet300:
    """With ReLU."""
    return LeNet300(False, nn.ReLU)


def lenet300_modern_drop() -> LeNet300:
    """With ReLU and dropout."""
    return LeNet300(True, nn.ReLU)
