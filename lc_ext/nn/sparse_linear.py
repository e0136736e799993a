"""Linear layer that stores the elements of its weight that are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import _check
from ..ops.sparse_linear import column_dtype, run_sparse_linear
from . import _ops
from .packed import PackedLinear

__all__ = ["SparseLinear"]


class SparseLinear(PackedLinear):
    """``y = x @ W.T + bias`` with ``W`` in compressed rows (CSR).

    Parameters
    ----------
    in_features, out_features : as for ``nn.Linear``.
    nnz : number of stored elements.
    bias : whether there is a bias.

    Attributes
    ----------
    values : float buffer of shape (nnz,).
    columns : buffer of shape (nnz,), uint16 if ``in_features <= 65536``, else int32.
    row_starts : int32 buffer of shape (out_features + 1,).
    bias : float buffer of shape (out_features,), or None.

    Notes
    -----
    The structure is checked when a layer is made and when a state dict is loaded, and trusted by ``forward``: writing
    to ``columns`` or ``row_starts`` otherwise calls for :meth:`check`.
    """

    values: Tensor
    columns: Tensor
    row_starts: Tensor

    def __init__(self, in_features: int, out_features: int, nnz: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features)
        nnz = _check.integer(nnz, "nnz", 0, 2**31 - 1)
        if nnz and (self.in_features == 0 or self.out_features == 0):
            raise ValueError(f"nnz must be 0 for an empty weight, got {nnz}")
        self.register_buffer("values", torch.zeros(nnz, dtype=torch.float32))
        self.register_buffer("columns", torch.zeros(nnz, dtype=column_dtype(self.in_features)))
        starts = torch.full((self.out_features + 1,), nnz, dtype=torch.int32)  # all elements in the first row
        starts[0] = 0
        self.register_buffer("row_starts", starts)
        self._new_bias(bias)

    @classmethod
    def from_csr(
        cls, values: Tensor, columns: Tensor, row_starts: Tensor, in_features: int, bias: Tensor | None = None
    ) -> SparseLinear:
        """A layer with these compressed rows, see :func:`~lc_ext.ops.check_csr`.

        Raises
        ------
        TypeError, ValueError : for another dtype, shape or device, or a structure that is not valid.
        """
        _check.float32(values, "values")
        ops.check_csr(values, columns, row_starts, in_features)
        for name, t in (("columns", columns), ("row_starts", row_starts), ("bias", bias)):
            if t is not None and t.device != values.device:
                raise ValueError(f"{name} must be on {values.device} like the values, got {t.device}")
        with torch.device("meta"):
            layer = cls(in_features, row_starts.numel() - 1, values.numel(), bias is not None)
        layer.values = values.detach().clone()
        layer.columns, layer.row_starts = columns.clone(), row_starts.clone()
        layer._set_bias(bias)
        return layer

    @classmethod
    def from_dense(cls, linear: nn.Linear) -> SparseLinear:
        """A layer with the weight of ``linear``, exactly; zeros are not stored.

        Raises
        ------
        TypeError, ValueError : for a weight that is not float32, float16 or bfloat16, or has 2**31 elements to store.
        """
        values, columns, row_starts = ops.dense_to_csr(linear.weight)
        return cls.from_csr(values, columns, row_starts, linear.in_features, linear.bias).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        args = (self.values, self.columns, self.row_starts, self.in_features, self.bias)
        if _ops.is_plain(x, self.in_features, self.values, self.columns, self.row_starts):
            return run_sparse_linear(x, *args)
        y: Tensor = _ops.sparse_linear(x, *args)
        return y

    def dense_weight(self) -> Tensor:
        return ops.csr_to_dense(self.values, self.columns, self.row_starts, self.in_features)

    # torch 2.13 writes an unsigned tensor with pickle but cannot read it back: the same bits as int16 can.
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.columns.dtype == torch.uint16:
            state["_buffers"] = {**self._buffers, "columns": self.columns.view(torch.int16)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.columns.dtype == torch.int16:
            self.columns = self.columns.view(torch.uint16)

    def config(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "nnz": self.values.numel(),
            "bias": self.bias is not None,
        }

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        super().check_buffers(buffers)
        _check.float32(buffers["values"], "values")
        ops.check_csr(buffers["values"], buffers["columns"], buffers["row_starts"], self.in_features)
