"""Compressions: each projects a group of tensors on the set of those that it can represent.

``fit`` is the C step, Theta <- argmin ||v - Delta(Theta)||^2; ``decompress`` is Delta(Theta). Constructors only store
their arguments; what ``fit`` has learned ends in an underscore, and the next ``fit`` starts from it.
"""

from .base import Compression, Sum, leaves
from .low_rank import LowRank, RankSelection, Tucker2
from .prune import GroupPrune, L0Penalty, L1Ball, L1Penalty, L2Ball, L2Penalty, NMPrune, Prune
from .quantize import Binary, Levels, PowersOfTwo, Quantize, SymmetricInt, Ternary, VectorQuantize
from .sparse_codebook import SparseCodebook

__all__ = [
    "Binary",
    "Compression",
    "GroupPrune",
    "L0Penalty",
    "L1Ball",
    "L1Penalty",
    "L2Ball",
    "L2Penalty",
    "Levels",
    "LowRank",
    "NMPrune",
    "PowersOfTwo",
    "Prune",
    "Quantize",
    "RankSelection",
    "SparseCodebook",
    "Sum",
    "SymmetricInt",
    "Ternary",
    "Tucker2",
    "VectorQuantize",
    "leaves",
]
