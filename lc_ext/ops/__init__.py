"""Compression steps as functions on torch tensors."""

from . import codebooks
from .assign import assign, assign_reference
from .group_prune import GroupPruneResult, ListGroupPruneResult, group_lasso, group_prune
from .kmeans1d import KMeansListResult, KMeansResult, decode, kmeans1d, kmeans1d_reference
from .kmeans_vq import VQResult, kmeans_vq, kmeans_vq_reference
from .l1_ball import BallResult, ListBallResult, l1_ball, l1_ball_reference, l1_penalty, l1_penalty_reference
from .lut_linear import lut_decode, lut_linear, lut_linear_reference
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
from .sparse_linear import check_csr, csr_to_dense, dense_to_csr, sparse_linear, sparse_linear_reference
from .topk_prune import (
    IndexedListPruneResult,
    IndexedPruneResult,
    ListPruneResult,
    PruneResult,
    topk_prune,
    topk_prune_reference,
)
from .truncated_svd import SVDResult, truncated_svd, truncated_svd_reference

__all__ = [
    "BallResult",
    "GapBits",
    "GroupPruneResult",
    "IndexedListPruneResult",
    "IndexedPruneResult",
    "KMeansListResult",
    "KMeansResult",
    "ListBallResult",
    "ListGroupPruneResult",
    "ListPruneResult",
    "NMPruneResult",
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
    "group_lasso",
    "group_prune",
    "kmeans1d",
    "kmeans1d_reference",
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
    "lut_decode",
    "lut_linear",
    "lut_linear_reference",
    "nm_prune",
    "nm_prune_reference",
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
