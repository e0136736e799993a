"""Compression steps as functions on torch tensors."""

from . import codebooks
from .activation import activation, activation_reference
from .assign import assign, assign_reference
from .binary_plus_sparse import binary_plus_sparse, binary_plus_sparse_reference
from .codebook_plus_sparse import CodebookPlusSparseResult, codebook_plus_sparse, codebook_plus_sparse_reference
from .conv_matrix import (
    ConvOptions,
    RankCost,
    conv_as_matrix,
    conv_factors,
    conv_macs,
    conv_options,
    matrix_as_conv,
)
from .gram_product import gram_product, gram_product_reference
from .group_prune import GroupPruneResult, ListGroupPruneResult, group_lasso, group_prune
from .jacobi_svd import jacobi_svd, jacobi_svd_reference
from .kmeans1d import KMeansListResult, KMeansRaggedResult, KMeansResult, decode, kmeans1d, kmeans1d_reference
from .kmeans_plus_sparse import kmeans_plus_sparse, kmeans_plus_sparse_reference
from .kmeans_vq import VQResult, kmeans_vq, kmeans_vq_reference
from .l1_ball import BallResult, ListBallResult, l1_ball, l1_ball_reference, l1_penalty, l1_penalty_reference
from .low_rank_sums import LowRankSumResult, low_rank_plus_codebook, low_rank_plus_sparse
from .lut_linear import lut_decode, lut_linear, lut_linear_reference
from .nm_linear import NMPacked, check_nm, nm_linear, nm_linear_reference, nm_pack, nm_unpack
from .nm_prune import NMPruneResult, nm_prune, nm_prune_reference
from .pack_codes import (
    GapBits,
    code_entropy,
    gap_bits,
    pack_codes,
    pack_codes_reference,
    unpack_codes,
    unpack_codes_reference,
)
from .prune_penalties import l0_penalty, l0_penalty_reference, l2_ball, l2_penalty
from .quantize_scaled import (
    ScaledListResult,
    ScaledResult,
    quantize_fixed,
    quantize_scaled,
    quantize_scaled_reference,
)
from .rank_select import RankSelection, rank_select, rank_select_reference
from .rate_distortion import RateDistortion, rate_distortion, rate_distortion_reference
from .second_order import SecondOrderPruned, SecondOrderQuantized, second_order_prune, second_order_quantize
from .second_order_refine import SecondOrderRefined, second_order_exact, second_order_refine
from .skinny_matmul import skinny_matmul, skinny_matmul_reference
from .sparse_codebook import SparseCodebookResult, sparse_codebook, sparse_codebook_reference
from .sparse_linear import check_csr, csr_to_dense, dense_to_csr, sparse_linear, sparse_linear_reference
from .tiled_conv2d import ConvTiles, conv_tiles, tiled_conv2d, tiled_conv2d_reference
from .topk_prune import (
    IndexedListPruneResult,
    IndexedPruneResult,
    ListPruneResult,
    PruneResult,
    topk_prune,
    topk_prune_reference,
)
from .truncated_svd import SVDResult, truncated_svd, truncated_svd_reference
from .tucker2 import Tucker2Result, tucker2, tucker2_weight
from .weighted_low_rank import LowRankFactors, weighted_error, weighted_low_rank

__all__ = [
    "BallResult",
    "CodebookPlusSparseResult",
    "ConvOptions",
    "ConvTiles",
    "GapBits",
    "GroupPruneResult",
    "IndexedListPruneResult",
    "IndexedPruneResult",
    "KMeansListResult",
    "KMeansRaggedResult",
    "KMeansResult",
    "ListBallResult",
    "ListGroupPruneResult",
    "ListPruneResult",
    "LowRankFactors",
    "LowRankSumResult",
    "NMPacked",
    "NMPruneResult",
    "PruneResult",
    "RankCost",
    "RankSelection",
    "RateDistortion",
    "SVDResult",
    "ScaledListResult",
    "ScaledResult",
    "SecondOrderPruned",
    "SecondOrderQuantized",
    "SecondOrderRefined",
    "SparseCodebookResult",
    "Tucker2Result",
    "VQResult",
    "activation",
    "activation_reference",
    "assign",
    "assign_reference",
    "binary_plus_sparse",
    "binary_plus_sparse_reference",
    "check_csr",
    "check_nm",
    "code_entropy",
    "codebook_plus_sparse",
    "codebook_plus_sparse_reference",
    "codebooks",
    "conv_as_matrix",
    "conv_factors",
    "conv_macs",
    "conv_options",
    "conv_tiles",
    "csr_to_dense",
    "decode",
    "dense_to_csr",
    "gap_bits",
    "gram_product",
    "gram_product_reference",
    "group_lasso",
    "group_prune",
    "jacobi_svd",
    "jacobi_svd_reference",
    "kmeans1d",
    "kmeans1d_reference",
    "kmeans_plus_sparse",
    "kmeans_plus_sparse_reference",
    "kmeans_vq",
    "kmeans_vq_reference",
    "l0_penalty",
    "l0_penalty_reference",
    "l1_ball",
    "l1_ball_reference",
    "l1_penalty",
    "l1_penalty_reference",
    "l2_ball",
    "l2_penalty",
    "low_rank_plus_codebook",
    "low_rank_plus_sparse",
    "lut_decode",
    "lut_linear",
    "lut_linear_reference",
    "matrix_as_conv",
    "nm_linear",
    "nm_linear_reference",
    "nm_pack",
    "nm_prune",
    "nm_prune_reference",
    "nm_unpack",
    "pack_codes",
    "pack_codes_reference",
    "quantize_fixed",
    "quantize_scaled",
    "quantize_scaled_reference",
    "rank_select",
    "rank_select_reference",
    "rate_distortion",
    "rate_distortion_reference",
    "second_order_exact",
    "second_order_prune",
    "second_order_quantize",
    "second_order_refine",
    "skinny_matmul",
    "skinny_matmul_reference",
    "sparse_codebook",
    "sparse_codebook_reference",
    "sparse_linear",
    "sparse_linear_reference",
    "tiled_conv2d",
    "tiled_conv2d_reference",
    "topk_prune",
    "topk_prune_reference",
    "truncated_svd",
    "truncated_svd_reference",
    "tucker2",
    "tucker2_weight",
    "unpack_codes",
    "unpack_codes_reference",
    "weighted_error",
    "weighted_low_rank",
]
