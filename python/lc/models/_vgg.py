"""VGG (Simonyan and Zisserman, 2015) for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from ._init import glorot_, he_

__all__ = ["vgg", "vgg11", "vgg13", "vgg16", "vgg19"]

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    depth: int,
    in_channels: int = 3,
    classes: int = 10,
    batch_norm: bool = False,
    fc_layers: int = 2,
    dropout: float = 0.5,
) -> nn.Sequential:
    """VGG for images of 32x32, also of 28x28: five stages of 3x3 convolutions, each closed by a 2x2 pooling, a head.

    The parts are ``features``, ``pool``, ``flatten`` and ``head``. The last layer is linear: logits of either sign.
    Its weights are those of Glorot and Bengio (2010); all others are normal as in He et al. (2015, fan in); biases
    are zero. With batch normalization the convolutions have none.

    Parameters
    ----------
    depth : 11, 13, 16 or 19: the name in the paper, which counts three fully connected layers.
    fc_layers : fully connected layers in the head, 1 to 3; all but the last have 512 units. The published networks for
        CIFAR have one or two.
    dropout : share of the inputs of each fully connected layer that is dropped in training, where there is more than
        one such layer.
    """
    if depth not in CONVOLUTIONS:
        raise ValueError(f"depth must be one of {sorted(CONVOLUTIONS)}, got {depth}")
    if not 1 <= fc_layers <= 3:
        raise ValueError(f"fc_layers must be 1, 2 or 3, got {fc_layers}")
    features: list[nn.Module] = []
    before = in_channels
    for channels, count in zip(CHANNELS, CONVOLUTIONS[depth], strict=True):
        for _ in range(count):
            conv = nn.Conv2d(before, channels, 3, padding=1, bias=not batch_norm)
            he_(conv)
            features += [conv, nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [conv, nn.ReLU()]
            before = channels
        features.append(nn.MaxPool2d(2, ceil_mode=True))  # the mode matters at 28x28: 7 pixels become 4
    head: list[nn.Module] = []
    for _ in range(fc_layers - 1):
        hidden = nn.Linear(512, 512)
        he_(hidden)
        head += [nn.Dropout(dropout), hidden, nn.ReLU()]
    last = nn.Linear(512, classes)
    glorot_(last)
    head += [nn.Dropout(dropout), last] if head else [last]
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=nn.Sequential(*features),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Sequential(*head),
    )
    return nn.Sequential(parts)


def vgg11(**options: Any) -> nn.Sequential:
    """VGG11: 9.5 M parameters, 153 M multiply-adds at 32x32. Options as for :func:`vgg`."""
    return vgg(11, **options)


def vgg13(**options: Any) -> nn.Sequential:
    """VGG13: 9.7 M parameters, 228 M multiply-adds at 32x32. Options as for :func:`vgg`."""
    return vgg(13, **options)


def vgg16(**options: Any) -> nn.Sequential:
    """VGG16: 15.0 M parameters, 313 M multiply-adds at 32x32. Options as for :func:`vgg`."""
    return vgg(16, **options)


def vgg19(**options: Any) -> nn.Sequential:
    """VGG19: 20.3 M parameters, 398 M multiply-adds at 32x32. Options as for :func:`vgg`."""
    return vgg(19, **options)
