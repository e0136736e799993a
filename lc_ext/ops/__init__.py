"""Compression steps as functions on torch tensors."""

from . import codebooks
from .assign import assign, assign_reference
from .kmeans1d import KMeansListResult, KMeansResult, decode, kmeans1d, kmeans1d_reference
from .kmeans_vq import VQResult, kmeans_vq, kmeans_vq_reference
from .lut_linear import lut_decode, lut_linear, lut_linear_reference
from .pack_codes import (
    GapBits,
    code_entropy,
    gap_bits,
    pack_codes,
    pack_codes_reference,
    unpack_codes,
    unpack_codes_reference,
)
from .quantize_scaled import (
    ScaledListResult,
    ScaledResult,
    quantize_fixed,
    quantize_scaled,
    quantize_scaled_reference,
)
from .sparse_linear import check_csr, csr_to_dense, dense_to_csr, sparse_linear, sparse_linear_reference
from .topk_prune import PruneResult, topk_prune, topk_prune_reference
from .truncated_svd import SVDResult, truncated_svd, truncated_svd_reference

__all__ = [
    "GapBits",
    "KMeansListResult",
    "KMeansResult",
    "PruneResult",
    "SVDResult",
    "ScaledListResult",
    "ScaledResult",
    "VQResult",
    "assign",
    "assign_reference",
    "check_csr",
    "code_entropy",
    "codebooks",
    "csr_to_dense",
    "decode",
    "dense_to_csr",
    "gap_bits",
    "kmeans1d",
    "kmeans1d_reference",
    "kmeans_vq",
    "kmeans_vq_reference",
    "lut_decode",
    "lut_linear",
    "lut_linear_reference",
    "pack_codes",
    "pack_codes_reference",
    "quantize_fixed",
    "quantize_scaled",
    "quantize_scaled_reference",
    "sparse_linear",
    "sparse_linear_reference",
    "topk_prune",
    "topk_prune_reference",
    "truncated_svd",
    "truncated_svd_reference",
    "unpack_codes",
    "unpack_codes_reference",
]
