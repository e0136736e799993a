"""Network in network for CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

from .. import nin
from .utils import DecayedNet, named_features

__all__ = ["NINcif", "nincif_bn"]


class NINcif(DecayedNet):
    """Nine convolutions; only their weights are decayed."""

    decay = 0.5e-4

    def __init__(self) -> None:
        super().__init__()
        *features, pool, flatten = nin()
        layers = OrderedDict(
            features=nn.Sequential(named_features(nn.Sequential(*features))), pool=pool, reshape=flatten
        )
        self.output = nn.Sequential(layers)

    def decayed(self) -> Iterable[Tensor]:
        """The weights of the convolutions."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]


def nincif_bn() -> NINcif:
    """With batch normalization."""
    return NINcif()
