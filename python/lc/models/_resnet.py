"""The residual networks of He et al. (2015), "Deep Residual Learning", section 4.2: for CIFAR, not ImageNet."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lc_ext.nn._module_arguments import choice, whole
from lc_ext.nn.structure import register

from ._init import glorot_, he_

__all__ = ["ResNet", "resnet", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the channels that are new; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.arguments = {"in_channels": in_channels, "out_channels": out_channels, "stride": stride}
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return self.arguments

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch normalization, and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.arguments = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "stride": stride,
            "shortcut": shortcut,
        }
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PadShortcut(in_channels, out_channels, stride)
        else:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return self.arguments

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Use :func:`resnet`. Parts: ``conv`` and ``bn``, ``stages`` of blocks, ``fc``."""

    def __init__(
        self, depth: int, in_channels: int, classes: int, width: int, shortcut: Shortcut, stem_stride: int
    ) -> None:
        super().__init__()
        self.arguments = {
            "depth": depth,
            "in_channels": in_channels,
            "classes": classes,
            "width": width,
            "shortcut": shortcut,
            "stem_stride": stem_stride,
        }
        self.conv = nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages, before = [], width
        for stage, channels in enumerate((width, 2 * width, 4 * width)):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(Block(before, channels, 2 if stage and not i else 1, shortcut))
                before = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                he_(module)
        glorot_(self.fc)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return self.arguments

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.stages(F.relu(self.bn(self.conv(x)))).mean((2, 3)))
        return logits


_shape = {"in_channels": whole(1), "out_channels": whole(1), "stride": whole(1)}
register(PadShortcut, "lc.models.PadShortcut", _shape)
register(Block, "lc.models.Block", {**_shape, "shortcut": choice("A", "B")})
register(
    ResNet,
    "lc.models.ResNet",
    {
        "depth": whole(8, 2000),
        "in_channels": whole(1),
        "classes": whole(1),
        "width": whole(1),
        "shortcut": choice("A", "B"),
        "stem_stride": whole(1),
    },
)


def resnet(
    depth: int,
    in_channels: int = 3,
    classes: int = 10,
    width: int = 16,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """Residual network for small images: a convolution, three stages of n blocks, global average, a linear layer.

    Works for images of any size; at 32x32 the stages see 32, 16 and 8 pixels, at 28x28 they see 28, 14 and 7.
    Convolutions start with the normal weights of He et al. (2015, fan in), the last layer with those of Glorot and
    Bengio (2010) and zero biases.

    Parameters
    ----------
    depth : layers with weights on the main path, 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...
    width : channels of the first stage; the others have two and four times as many.
    shortcut : where the shape changes: "A", subsampling and zero channels, without parameters, as in the paper's
        experiments on CIFAR; "B", a projection, that is a 1x1 convolution with batch normalization.
    stem_stride : stride of the first convolution; 2 makes everything after it four times cheaper.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" or "B", got {shortcut!r}')
    return ResNet(depth, in_channels, classes, width, shortcut, stem_stride)


def resnet8(**options: Any) -> ResNet:
    """ResNet8: one block per stage, 75 k parameters, for quick trials. Options as for :func:`resnet`."""
    return resnet(8, **options)


def resnet20(**options: Any) -> ResNet:
    """ResNet20: 0.27 M parameters, 41 M multiply-adds at 32x32. Options as for :func:`resnet`."""
    return resnet(20, **options)


def resnet32(**options: Any) -> ResNet:
    """ResNet32: 0.46 M parameters, 69 M multiply-adds at 32x32. Options as for :func:`resnet`."""
    return resnet(32, **options)


def resnet44(**options: Any) -> ResNet:
    """ResNet44: 0.66 M parameters, 97 M multiply-adds at 32x32. Options as for :func:`resnet`."""
    return resnet(44, **options)


def resnet56(**options: Any) -> ResNet:
    """ResNet56: 0.85 M parameters, 125 M multiply-adds at 32x32. Options as for :func:`resnet`."""
    return resnet(56, **options)


def resnet110(**options: Any) -> ResNet:
    """ResNet110: 1.73 M parameters, 253 M multiply-adds at 32x32. Options as for :func:`resnet`."""
    return resnet(110, **options)
