"""Packed layers: compressed weights that are run as they are stored."""

from .io import load, save
from .low_rank_linear import LowRankLinear
from .lut_linear import LUTLinear
from .nm_linear import NMLinear
from .packed import PackedLinear
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = ["LUTLinear", "LowRankLinear", "NMLinear", "PackedLinear", "SparseLinear", "SumLinear", "load", "save"]
