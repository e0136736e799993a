"""Linear layer that stores the elements of its weight that are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import _check
from ..ops.sparse_linear import column_dtype, run_sparse_linear, sparse_linear_slices
from . import _ops
from ._activations import linear_of
from .one_row import NativeCall
from .values_linear import ValuesLinear

__all__ = ["SparseLinear"]


class SparseLinear(ValuesLinear):
    """``y = activation(x @ W.T + bias)`` with ``W`` in compressed rows (CSR).

    Parameters
    ----------
    in_features, out_features : as for ``nn.Linear``.
    nnz : number of stored elements.
    codebook_size : number of codewords if the values are codes, else None.
    bias : whether there is a bias.
    activation : None, "relu", "gelu", "gelu_tanh" or "silu": see :func:`~lc_ext.ops.activation`. It may be set.

    Attributes
    ----------
    values : float buffer of shape (nnz,), or uint8 codes of that shape.
    columns : buffer of shape (nnz,), uint16 if ``in_features <= 65536``, else int32, ascending in each row.
    row_starts : int32 buffer of shape (out_features + 1,).
    codebook : float buffer of shape (codebook_size,), or None.
    bias : float buffer of shape (out_features,), or None.
    """

    run = staticmethod(run_sparse_linear)
    columns: Tensor
    row_starts: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nnz: int,
        bias: bool = True,
        codebook_size: int | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        nnz = _check.integer(nnz, "nnz", 0, 2**31 - 1)
        if nnz and (self.in_features == 0 or self.out_features == 0):
            raise ValueError(f"nnz must be 0 for an empty weight, got {nnz}")
        if nnz > self.in_features * self.out_features:
            raise ValueError(f"nnz must be at most {self.in_features * self.out_features}, got {nnz}")
        size = None if codebook_size is None else _check.integer(codebook_size, "codebook_size", 1, 256)
        self.register_buffer("values", torch.zeros(nnz, dtype=torch.float32 if size is None else torch.uint8))
        at = torch.arange(nnz) % max(self.in_features, 1)  # the first rows are full
        self.register_buffer("columns", at.to(column_dtype(self.in_features)))
        starts = torch.arange(self.out_features + 1) * self.in_features
        self.register_buffer("row_starts", starts.clamp(max=nnz).to(torch.int32))
        self.register_buffer("codebook", None if size is None else torch.zeros(size, dtype=torch.float32))
        self._new_bias(bias)

    @classmethod
    def from_csr(
        cls,
        values: Tensor,
        columns: Tensor,
        row_starts: Tensor,
        in_features: int,
        bias: Tensor | None = None,
        codebook: Tensor | None = None,
    ) -> SparseLinear:
        """A layer with these compressed rows, as for :func:`~lc_ext.ops.sparse_linear`.

        Raises
        ------
        TypeError, ValueError : for another dtype, shape or device, or a structure that is not valid.
        """
        ops.check_csr(values, columns, row_starts, in_features, codebook)
        for name, t in (("columns", columns), ("row_starts", row_starts), ("codebook", codebook), ("bias", bias)):
            if t is not None and t.device != values.device:
                raise ValueError(f"{name} must be on {values.device} like the values, got {t.device}")
        with torch.device("meta"):
            size = None if codebook is None else codebook.numel()
            layer = cls(in_features, row_starts.numel() - 1, values.numel(), bias is not None, size)
        layer.values = values.detach().clone()
        layer.codebook = None if codebook is None else codebook.detach().clone()
        layer.columns, layer.row_starts = columns.clone(), row_starts.clone()
        layer._set_bias(bias)
        return layer

    @classmethod
    def from_dense(cls, linear: nn.Linear | nn.Sequential) -> SparseLinear:
        """A layer with the weight of an ``nn.Linear``, exactly; zeros are not stored.

        Parameters
        ----------
        linear : an ``nn.Linear``, or an ``nn.Sequential`` of one and its activation.

        Raises
        ------
        TypeError, ValueError : for a weight that is not float32, float16 or bfloat16, or has 2**31 elements to store.
        """
        linear, activation = linear_of(linear)
        values, columns, row_starts = ops.dense_to_csr(linear.weight)
        layer = cls.from_csr(values, columns, row_starts, linear.in_features, linear.bias).train(linear.training)
        layer.activation = activation
        return layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor | None = self.straight(x)
        return _ops.sparse_linear(x, *self.arguments(), self._activation) if y is None else y

    def arguments(self) -> tuple[Any, ...]:
        of: dict[str, Any] = self._buffers  # directly: each attribute of a module that is a tensor costs 0.7 us
        return (of["values"], of["columns"], of["row_starts"], self.in_features, of["bias"], of["codebook"])

    def calls(self, bias: Tensor | None, accumulate: bool, activation: int = 0) -> list[NativeCall] | None:
        values, columns, row_starts, cols, _, codebook = self.arguments()
        if not self.is_plain(values, codebook, bias):
            return None
        slices = sparse_linear_slices(values, columns, row_starts, cols, codebook)
        ends = (self.out_features, cols, 0 if bias is None else bias.data_ptr(), accumulate, activation)
        return [NativeCall("sparse_linear_slice", (*slices.arguments, *ends), slices)]

    def dense_weight(self) -> Tensor:
        weight: Tensor = _ops.csr_to_dense(self.values, self.columns, self.row_starts, self.in_features, self.codebook)
        return weight

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
            **({} if self.codebook is None else {"codebook_size": self.codebook.numel()}),
            **self.activation_config(),
        }

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        super().check_buffers(buffers)
        rows = (buffers["values"], buffers["columns"], buffers["row_starts"])
        ops.check_csr(*rows, self.in_features, buffers.get("codebook"))
