"""LeNet5 for MNIST, with the layer sizes of Caffe."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .. import lenet5
from .utils import PlainNet

__all__ = ["LeNet5", "lenet5_classic", "lenet5_drop"]

NAMES = (
    "compressible_0 nonlineairy_0 maxpool_0 compressible_1 nonlineairy_1 maxpool_1 "
    "reshape compressible_2 nonlinearity_2 compressible_3"
).split()


class LeNet5(PlainNet):
    """Layers ``compressible_0`` to ``compressible_3``; dropout of one half before the last, if asked."""

    def __init__(self, dropout: bool) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            init_reshape=nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 28, 28)))
        )
        for name, layer in zip(NAMES, lenet5(), strict=True):
            layers[name] = layer
            if name == "nonlinearity_2" and dropout:
                layers["drop_2"] = nn.Dropout()
        super().__init__(layers)


def lenet5_classic() -> LeNet5:
    """Without dropout."""
    return LeNet5(False)


def lenet5_drop() -> LeNet5:
    """With dropout."""
    return LeNet5(True)
