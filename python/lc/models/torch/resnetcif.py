"""Residual networks for CIFAR."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import resnet
from .._resnet import Block
from .utils import DecayedNet

__all__ = ["ResNet", "resnetcif20", "resnetcif32", "resnetcif44", "resnetcif56", "resnetcif110"]


class BasicBlock(nn.Module):
    """A block of :mod:`lc.models` with its convolutions under the toolkit's names."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.compressible_conv1, self.bn1 = block.conv1, block.bn1
        self.compressible_conv2, self.bn2 = block.conv2, block.bn2
        self.shortcut = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.compressible_conv2(F.relu(self.bn1(self.compressible_conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(DecayedNet):
    """Each layer is there twice, by its own name and in ``output``, as the toolkit's files have them."""

    decay = 1e-4

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = resnet(depth)
        stages: Any = net.stages
        layer1, layer2, layer3 = (nn.Sequential(*(BasicBlock(block) for block in stage)) for stage in stages)
        self.compressible_conv1, self.bn1 = net.conv, net.bn
        self.layer1, self.layer2, self.layer3 = layer1, layer2, layer3
        self.compressible_linear = net.fc
        pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.output = nn.Sequential(net.conv, net.bn, nn.ReLU(), layer1, layer2, layer3, pool, flatten, net.fc)


def resnetcif20() -> ResNet:
    """ResNet20."""
    return ResNet(20)


def resnetcif32() -> ResNet:
    """ResNet32."""
    return ResNet(32)


def resnetcif44() -> ResNet:
    """ResNet44."""
    return ResNet(44)


def resnetcif56() -> ResNet:
    """ResNet56."""
    return ResNet(56)


def resnetcif110() -> ResNet:
    """ResNet110."""
    return ResNet(110)
