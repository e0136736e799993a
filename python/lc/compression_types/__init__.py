"""The compressions of the older toolkit, UCMerced's LC-model-compression, under its names.

Each wraps one of :mod:`lc.compressions`, and shows what that has learned in the toolkit's terms: NumPy arrays, made
when they are asked for. The modules have the toolkit's names too. See ``docs/older_toolkit.md``.
"""

from .base_types import CompressionTypeBase, PruningTypeBase
from .low_rank import LowRank, RankSelection
from .meta import Mapper
from .pruning import ConstraintL0Pruning, ConstraintL1Pruning, PenaltyL0Pruning, PenaltyL1Pruning
from .quantization import (
    AdaptiveQuantization,
    BinaryQuantization,
    OptimalAdaptiveQuantization,
    ScaledBinaryQuantization,
    ScaledTernaryQuantization,
)

__all__ = [
    "AdaptiveQuantization",
    "BinaryQuantization",
    "CompressionTypeBase",
    "ConstraintL0Pruning",
    "ConstraintL1Pruning",
    "LowRank",
    "Mapper",
    "OptimalAdaptiveQuantization",
    "PenaltyL0Pruning",
    "PenaltyL1Pruning",
    "PruningTypeBase",
    "RankSelection",
    "ScaledBinaryQuantization",
    "ScaledTernaryQuantization",
]
