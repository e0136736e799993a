"""Multiply-adds of a network, counted on a forward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lc_ext.nn import PackedLinear

__all__ = ["count_macs", "layer_macs"]

UNKNOWN = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear, PackedLinear)


def layer_macs(model: nn.Module, *example: Any) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer in one call ``model(*example)``, by the name of the module.

    A layer that is called twice counts twice. Biases, normalization, activations and products outside such layers do
    not count. The model runs without gradients in evaluation mode, and is left as it was.

    Parameters
    ----------
    example : the arguments of one call; for the cost of one image, a batch of one.

    Raises
    ------
    ValueError : a module does products that are not counted: attention, recurrent, bilinear and packed layers.
    """
    unknown = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if isinstance(m, UNKNOWN)]
    if unknown:
        raise ValueError(f"cannot count the multiply-adds of {', '.join(unknown)}")
    counts: dict[str, int] = {}
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, _ConvNd))]
    training = [module for module in model.modules() if module.training]
    hooks = []

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counts[name] += _macs(module, inputs[0], output)

        return hook

    try:
        for name, layer in layers:
            counts[name] = 0
            hooks.append(layer.register_forward_hook(count(name)))
        model.eval()
        with torch.no_grad():
            model(*example)
    finally:
        for handle in hooks:
            handle.remove()
        for module in training:
            module.training = True
    return counts


def count_macs(model: nn.Module, *example: Any) -> int:
    """All multiply-adds of :func:`layer_macs` together.

    >>> from lc.models import count_macs, lenet300
    >>> count_macs(lenet300(), torch.zeros(1, 784))
    266200
    """
    return sum(layer_macs(model, *example).values())


def _macs(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(layer, _ConvTransposeNd):  # each input element meets the kernels of all output channels of its group
        return x.numel() * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, _ConvNd):
        return output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return output.numel() * layer.in_features
