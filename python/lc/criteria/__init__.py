"""Which weights matter: criteria for pruning, as weights h of the C step.

Each function returns, by parameter name, a positive float32 tensor of the parameter's shape for the weight of every
Linear and convolution layer that it knows. A pruning C step keeps the largest h w^2, so h is the criterion over w^2. It
goes where every metric goes: ``LCAlgorithm(metric=...)``, ``lc.compress(metric=...)``, and
``lc.recipes.deep_compression(criterion=...)`` anew in each round. In the LC algorithm h weighs the penalty too.

:class:`SecondOrder` makes any C step one of second order: what is pruned or rounded is made up for by the rest.
"""

from .activations import apoz, input_moments, obs, wanda
from .gradients import fisher, obd, taylor, woodfisher
from .second_order import SecondOrder
from .weights import magnitude

__all__ = [
    "SecondOrder",
    "apoz",
    "fisher",
    "input_moments",
    "magnitude",
    "obd",
    "obs",
    "taylor",
    "wanda",
    "woodfisher",
]
