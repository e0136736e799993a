"""Compression steps as functions on torch tensors."""

from .assign import assign, assign_reference
from .binary_plus_sparse import binary_plus_sparse, binary_plus_sparse_reference
from .codebook_plus_sparse import CodebookPlusSparseResult, codebook_plus_sparse, codebook_plus_sparse_reference
from .codes import pack_codes, unpack_codes
from .kmeans1d import KMeansListResult, KMeansResult, decode, kmeans1d, kmeans1d_reference
from .kmeans_plus_sparse import kmeans_plus_sparse, kmeans_plus_sparse_reference
from .low_rank_sums import LowRankSumResult, low_rank_plus_codebook, low_rank_plus_sparse
from .lut_linear import lut_decode, lut_linear, lut_linear_reference
from .rate_distortion import RateDistortion, rate_distortion, rate_distortion_reference
from .sparse_codebook import SparseCodebookResult, sparse_codebook, sparse_codebook_reference
from .sparse_linear import check_csr, csr_to_dense, dense_to_csr, sparse_linear, sparse_linear_reference
from .topk_prune import PruneResult, topk_prune, topk_prune_reference
from .truncated_svd import SVDResult, truncated_svd, truncated_svd_reference

__all__ = [
    "CodebookPlusSparseResult",
    "KMeansListResult",
    "KMeansResult",
    "LowRankSumResult",
    "PruneResult",
    "RateDistortion",
    "SVDResult",
    "SparseCodebookResult",
    "assign",
    "assign_reference",
    "binary_plus_sparse",
    "binary_plus_sparse_reference",
    "check_csr",
    "codebook_plus_sparse",
    "codebook_plus_sparse_reference",
    "csr_to_dense",
    "decode",
    "dense_to_csr",
    "kmeans1d",
    "kmeans1d_reference",
    "kmeans_plus_sparse",
    "kmeans_plus_sparse_reference",
    "low_rank_plus_codebook",
    "low_rank_plus_sparse",
    "lut_decode",
    "lut_linear",
    "lut_linear_reference",
    "pack_codes",
    "rate_distortion",
    "rate_distortion_reference",
    "sparse_codebook",
    "sparse_codebook_reference",
    "sparse_linear",
    "sparse_linear_reference",
    "topk_prune",
    "topk_prune_reference",
    "truncated_svd",
    "truncated_svd_reference",
    "unpack_codes",
]
