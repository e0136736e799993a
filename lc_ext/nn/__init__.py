"""Packed layers: compressed weights that are run as they are stored."""

from .archive import archive_parts
from .conv import LUTConv1d, LUTConv2d, PackedConv, SparseConv1d, SparseConv2d, SumConv1d, SumConv2d, packed_conv
from .io import load, save
from .low_rank_conv import LowRankConv1d, LowRankConv2d
from .low_rank_linear import LowRankLinear
from .lut_embedding import LUTEmbedding
from .lut_linear import LUTLinear
from .nm_linear import NMLinear
from .packed import PackedLayer, PackedLinear
from .sparse_linear import SparseLinear
from .sum_linear import SumLinear

__all__ = [
    "LUTConv1d",
    "LUTConv2d",
    "LUTEmbedding",
    "LUTLinear",
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankLinear",
    "NMLinear",
    "PackedConv",
    "PackedLayer",
    "PackedLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SumConv1d",
    "SumConv2d",
    "SumLinear",
    "archive_parts",
    "load",
    "packed_conv",
    "save",
]
