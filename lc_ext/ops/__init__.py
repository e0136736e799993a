"""Compression steps as functions on torch tensors."""

from .assign import assign, assign_reference
from .codes import pack_codes, unpack_codes
from .kmeans1d import KMeansListResult, KMeansRaggedResult, KMeansResult, decode, kmeans1d, kmeans1d_reference
from .lut_linear import lut_decode, lut_linear, lut_linear_reference
from .sparse_linear import check_csr, csr_to_dense, dense_to_csr, sparse_linear, sparse_linear_reference
from .topk_prune import PruneResult, topk_prune, topk_prune_reference
from .truncated_svd import SVDResult, truncated_svd, truncated_svd_reference

__all__ = [
    "KMeansListResult",
    "KMeansRaggedResult",
    "KMeansResult",
    "PruneResult",
    "SVDResult",
    "assign",
    "assign_reference",
    "check_csr",
    "csr_to_dense",
    "decode",
    "dense_to_csr",
    "kmeans1d",
    "kmeans1d_reference",
    "lut_decode",
    "lut_linear",
    "lut_linear_reference",
    "pack_codes",
    "sparse_linear",
    "sparse_linear_reference",
    "topk_prune",
    "topk_prune_reference",
    "truncated_svd",
    "truncated_svd_reference",
    "unpack_codes",
]
