"""VGG for CIFAR."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .. import vgg
from .utils import DecayedNet, named_features

__all__ = ["VGGcif", "vggcif9_bn", "vggcif11_bn", "vggcif13_bn", "vggcif16_bn", "vggcif19_bn"]


class VGGcif(DecayedNet):
    """With batch normalization and three fully connected layers, ``compressible_classifier_1`` to ``_3``."""

    decay = 5e-4

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = vgg(depth, batch_norm=True, fc_layers=3)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            features=nn.Sequential(named_features(net.features)),  # type: ignore[arg-type]
            pool=net.pool,  # type: ignore[arg-type]
            reshape=net.flatten,  # type: ignore[arg-type]
        )
        kinds = {nn.Dropout: "drop", nn.Linear: "compressible", nn.ReLU: "nonlinearity"}
        for i, layer in enumerate(net.head):  # type: ignore[arg-type]
            layers[f"{kinds[type(layer)]}_classifier_{i // 3 + 1}"] = layer
        self.output = nn.Sequential(layers)


def vggcif9_bn() -> VGGcif:
    """VGG11, which is what the toolkit makes under this name."""
    return VGGcif(11)


def vggcif11_bn() -> VGGcif:
    """VGG11."""
    return VGGcif(11)


def vggcif13_bn() -> VGGcif:
    """VGG13."""
    return VGGcif(13)


def vggcif16_bn() -> VGGcif:
    """VGG16."""
    return VGGcif(16)


def vggcif19_bn() -> VGGcif:
    """VGG19."""
    return VGGcif(19)
