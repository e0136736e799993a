"""Embedding of codes and a codebook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _ops
from .lut_linear import LUTLinear
from .packed import PackedLayer

__all__ = ["LUTEmbedding"]


class LUTEmbedding(PackedLayer):
    """``y = W[index]``, only the rows that are asked for decoded.

    Parameters
    ----------
    matrix : packed layer of shape embedding_dim -> num_embeddings, without bias: the table.
    padding_idx : as for ``nn.Embedding``; kept for :meth:`to_dense`.

    Raises
    ------
    TypeError, ValueError : for another matrix, or an index out of range.
    """

    def __init__(self, matrix: LUTLinear, padding_idx: int | None = None) -> None:
        super().__init__()
        if not isinstance(matrix, LUTLinear):
            raise TypeError(f"matrix must be a LUTLinear, got {type(matrix).__name__}")
        if matrix.bias is not None:
            raise ValueError("matrix must have no bias")
        if matrix.activation is not None:
            raise ValueError(f"matrix must have no activation, got {matrix.activation!r}")
        self.matrix = matrix
        rows = matrix.out_features
        if padding_idx is not None and not (isinstance(padding_idx, int) and -rows <= padding_idx < rows):
            raise ValueError(f"padding_idx must be one of {rows} rows, got {padding_idx!r}")
        self.padding_idx = padding_idx

    @classmethod
    def from_dense(cls, embedding: nn.Embedding) -> LUTEmbedding:
        """A layer with the table of ``embedding``, exactly: it must have at most 256 distinct values.

        Raises
        ------
        TypeError, ValueError : for another class of layer, an option that has no packed form, or too many values.
        """
        _check_options(embedding)
        rows, cols = embedding.weight.shape
        linear = nn.Linear(cols, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(embedding.weight.detach(), requires_grad=False)
        return cls(LUTLinear.from_dense(linear), embedding.padding_idx).train(embedding.training)

    def forward(self, index: Tensor) -> Tensor:
        m = self.matrix
        if index.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"index must be int32 or int64, got {index.dtype}")
        which = index.reshape(-1)
        words = m.words.index_select(0, which)
        codebook = m.codebook if m.codebook.dim() == 1 else m.codebook.index_select(0, which)
        rows: Tensor = _ops.lut_decode(words, codebook, m.bits, m.in_features)
        return rows.view(*index.shape, m.in_features).to(m.codebook.dtype)

    def dense_weight(self) -> Tensor:
        return self.matrix.dense_weight()

    def to_dense(self) -> nn.Embedding:
        """The same layer as an ``nn.Embedding``."""
        weight = self.dense_weight().clone()
        embedding = nn.Embedding(weight.shape[0], weight.shape[1], padding_idx=self.padding_idx, device="meta")
        embedding.weight = nn.Parameter(weight)
        return embedding.train(self.training)

    def check_replaces(self, dense: nn.Module) -> None:
        if not isinstance(dense, nn.Embedding):
            raise ValueError(f"must be an nn.Embedding in the model, got {type(dense).__name__}")
        if tuple(dense.weight.shape) != (self.matrix.out_features, self.matrix.in_features):
            raise ValueError(
                f"is {self.matrix.out_features} x {self.matrix.in_features} in the file, "
                f"{tuple(dense.weight.shape)} in the model"
            )

    def config(self) -> dict[str, Any]:
        return {"padding_idx": self.padding_idx}

    def check(self) -> None:
        self.matrix.check()


def _check_options(embedding: nn.Module) -> None:
    if type(embedding) is not nn.Embedding:
        raise TypeError(f"embedding must be an nn.Embedding, got {type(embedding).__name__}")
    if embedding.max_norm is not None:
        raise ValueError(f"embedding must have no max_norm, got {embedding.max_norm}")
