"""What the older toolkit's networks have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DecayedNet", "PlainNet", "count_params", "named_features"]


class PlainNet(nn.Module):
    """``output`` holds the layers, ``loss`` is the cross-entropy."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.output = nn.Sequential(layers)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.output(input)
        return logits


class DecayedNet(nn.Module):
    """``output`` holds the layers; ``loss`` is the cross-entropy plus ``decay`` times the weights squared."""

    output: nn.Sequential
    decay: float

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.output(input)
        return logits

    def decayed(self) -> Iterable[Tensor]:
        """The parameters that are decayed: all called ``weight``."""
        return [p for name, p in self.named_parameters() if name.endswith(".weight") and p.requires_grad]

    def weight_decay(self) -> Tensor:
        """Their squared norm."""
        return sum((p.square().sum() for p in self.decayed()), start=next(self.parameters()).new_zeros(()))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """What to train with, beside the penalty."""
        return F.cross_entropy(output, target) + self.decay * self.weight_decay()


def named_features(features: nn.Sequential) -> OrderedDict[str, nn.Module]:
    """Layers under the toolkit's names: a convolution and what belongs to it have one number, as has a pooling."""
    kinds = {nn.Conv2d: "compressible_conv", nn.BatchNorm2d: "bn_conv", nn.ReLU: "nonlinearity_conv"}
    kinds |= {nn.MaxPool2d: "maxpool_features", nn.AvgPool2d: "avgpool_features", nn.Dropout: "dropout"}
    named: OrderedDict[str, nn.Module] = OrderedDict()
    number = -1
    for layer in features:
        number += isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
        named[f"{kinds[type(layer)]}_{number}"] = layer
    return named


def count_params(module: nn.Module, compressible: bool = False) -> int:
    """The number of trainable parameters; with ``compressible``, of the weights of layers with such names."""
    if not compressible:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)
    layers = [m for name, m in module.named_modules() if "compressible" in name.rpartition(".")[2]]
    return sum(layer.weight.numel() for layer in layers if isinstance(layer.weight, Tensor))
