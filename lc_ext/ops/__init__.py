"""Compression steps as functions on torch tensors."""

from .assign import assign, assign_reference
from .codes import pack_codes, unpack_codes
from .conv_matrix import (
    ConvOptions,
    RankCost,
    conv_as_matrix,
    conv_factors,
    conv_macs,
    conv_options,
    matrix_as_conv,
)
from .kmeans1d import KMeansListResult, KMeansResult, decode, kmeans1d, kmeans1d_reference
from .lut_linear import lut_decode, lut_linear, lut_linear_reference
from .rank_select import RankSelection, rank_select, rank_select_reference
from .skinny_matmul import skinny_matmul, skinny_matmul_reference
from .sparse_linear import check_csr, csr_to_dense, dense_to_csr, sparse_linear, sparse_linear_reference
from .topk_prune import PruneResult, topk_prune, topk_prune_reference
from .truncated_svd import SVDResult, truncated_svd, truncated_svd_reference
from .tucker2 import Tucker2Result, tucker2, tucker2_weight
from .weighted_low_rank import LowRankFactors, weighted_error, weighted_low_rank

__all__ = [
    "ConvOptions",
    "KMeansListResult",
    "KMeansResult",
    "LowRankFactors",
    "PruneResult",
    "RankCost",
    "RankSelection",
    "SVDResult",
    "Tucker2Result",
    "assign",
    "assign_reference",
    "check_csr",
    "conv_as_matrix",
    "conv_factors",
    "conv_macs",
    "conv_options",
    "csr_to_dense",
    "decode",
    "dense_to_csr",
    "kmeans1d",
    "kmeans1d_reference",
    "lut_decode",
    "lut_linear",
    "lut_linear_reference",
    "matrix_as_conv",
    "pack_codes",
    "rank_select",
    "rank_select_reference",
    "skinny_matmul",
    "skinny_matmul_reference",
    "sparse_linear",
    "sparse_linear_reference",
    "topk_prune",
    "topk_prune_reference",
    "truncated_svd",
    "truncated_svd_reference",
    "tucker2",
    "tucker2_weight",
    "unpack_codes",
    "weighted_error",
    "weighted_low_rank",
]
