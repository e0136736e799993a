"""Reference networks, as plain modules: no loss, no weight decay, no files; the last layer gives the logits.

Each function makes a network with fresh weights from torch's global generator (``torch.manual_seed``); its docstring
states their distribution. Images are (N, channels, height, width).
"""

from ._lenet import lenet5, lenet300
from ._macs import count_macs, layer_macs
from ._nin import nin
from ._resnet import ResNet, resnet, resnet8, resnet20, resnet32, resnet44, resnet56, resnet110
from ._vgg import vgg, vgg11, vgg13, vgg16, vgg19

__all__ = [
    "ResNet",
    "count_macs",
    "layer_macs",
    "lenet5",
    "lenet300",
    "nin",
    "resnet",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
