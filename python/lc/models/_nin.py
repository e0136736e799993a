"""Network in network (Lin, Chen and Yan, 2014) for CIFAR."""

from __future__ import annotations

from torch import nn

from ._init import glorot_, he_

__all__ = ["nin"]


def nin(in_channels: int = 3, classes: int = 10, batch_norm: bool = True, dropout: float = 0.5) -> nn.Sequential:
    """Network in network: three groups of a convolution and two 1x1 convolutions; global average; no linear layer.

    0.97 M parameters; images of 32x32, also of 28x28. Batch normalization, which the paper does not have, follows each
    convolution but the last, and then these have no biases. Unlike in the paper no ReLU follows the last convolution:
    the logits have either sign. Weights are normal as in He et al. (2015, fan in), those of the last convolution as in
    Glorot and Bengio (2010); biases are zero.

    Parameters
    ----------
    dropout : share of the inputs of the second and third group that is dropped in training.
    """

    def group(before: int, *shapes: tuple[int, int]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for channels, kernel in shapes:
            conv = nn.Conv2d(before, channels, kernel, padding=kernel // 2, bias=not batch_norm)
            he_(conv)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [conv, nn.ReLU()]
            before = channels
        return layers

    last = nn.Conv2d(192, classes, 1)
    glorot_(last)
    return nn.Sequential(
        *group(in_channels, (192, 5), (160, 1), (96, 1)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        *group(96, (192, 5), (192, 1), (192, 1)),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        *group(192, (192, 3), (192, 1)),
        last,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
