"""Linear layer that stores n of each m consecutive elements of a row of its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import _check
from ..ops.nm_linear import nm_linear_layout, position_bits, run_nm_linear
from ..ops.pack_codes import words_per_row
from . import _ops
from ._activations import linear_of
from .one_row import NativeCall
from .values_linear import ValuesLinear

__all__ = ["NMLinear"]


class NMLinear(ValuesLinear):
    """``y = activation(x @ W.T + bias)`` with an N:M sparse ``W``, such as 2:4.

    Parameters
    ----------
    in_features, out_features : as for ``nn.Linear``.
    n, m : at most n of each m consecutive elements of a row are not zero; 1 <= n < m <= 16.
    codebook_size : number of codewords if the values are codes, else None.
    bias : whether there is a bias.
    activation : None, "relu", "gelu", "gelu_tanh" or "silu": see :func:`~lc_ext.ops.activation`. It may be set.

    Attributes
    ----------
    values : float buffer of shape (out_features, ceil(in_features / m) * n), or uint8 codes of that shape.
    indices : int32 buffer: the packed positions of the values, see :func:`~lc_ext.ops.nm_pack`.
    codebook : float buffer of shape (codebook_size,), or None.
    bias : float buffer of shape (out_features,), or None.

    Raises
    ------
    TypeError, ValueError : for an argument out of range.
    """

    run = staticmethod(run_nm_linear)
    indices: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n: int,
        m: int,
        codebook_size: int | None = None,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.m = _check.integer(m, "m", 2, 16)
        self.n = _check.integer(n, "n", 1, self.m - 1)
        shape = (self.out_features, (self.in_features + self.m - 1) // self.m * self.n)
        bits = position_bits(self.m)
        indices = torch.zeros(self.out_features, words_per_row(shape[1], bits), dtype=torch.int32)
        if not indices.is_meta:  # the first n columns of each group
            indices = ops.pack_codes((torch.arange(shape[1]) % self.n).to(torch.uint8).expand(shape), bits)
        size = None if codebook_size is None else _check.integer(codebook_size, "codebook_size", 1, 256)
        self.register_buffer("values", torch.zeros(shape, dtype=torch.float32 if size is None else torch.uint8))
        self.register_buffer("indices", indices)
        self.register_buffer("codebook", None if size is None else torch.zeros(size, dtype=torch.float32))
        self._new_bias(bias)

    @classmethod
    def from_packed(
        cls,
        values: Tensor,
        indices: Tensor,
        n: int,
        m: int,
        in_features: int,
        bias: Tensor | None = None,
        codebook: Tensor | None = None,
    ) -> NMLinear:
        """A layer with these tensors, as for :func:`~lc_ext.ops.nm_linear`.

        Raises
        ------
        TypeError, ValueError : for another dtype, shape or device, or positions or codes that are not valid.
        """
        ops.check_nm(values, indices, n, m, in_features, codebook)
        for name, t in (("indices", indices), ("codebook", codebook), ("bias", bias)):
            if t is not None and t.device != values.device:
                raise ValueError(f"{name} must be on {values.device} like the values, got {t.device}")
        size = None if codebook is None else codebook.numel()
        with torch.device("meta"):
            layer = cls(in_features, values.shape[0], n, m, size, bias is not None)
        layer.values, layer.indices = values.detach().clone(), indices.clone()
        layer.codebook = None if codebook is None else codebook.detach().clone()
        layer._set_bias(bias)
        return layer

    @classmethod
    def from_dense(cls, linear: nn.Linear | nn.Sequential, n: int = 2, m: int = 4) -> NMLinear:
        """A layer with the weight of a linear layer, exactly: at most n of each m consecutive elements may be nonzero.

        Parameters
        ----------
        linear : an ``nn.Linear``, or an ``nn.Sequential`` of one and its activation.
        n, m : the pattern.

        Raises
        ------
        TypeError, ValueError : for a weight that is not float32, float16 or bfloat16, or not N:M sparse.
        """
        linear, activation = linear_of(linear)
        values, indices = ops.nm_pack(linear.weight, n, m)
        layer = cls.from_packed(values, indices, n, m, linear.in_features, linear.bias).train(linear.training)
        layer.activation = activation
        return layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor | None = self.straight(x)
        return _ops.nm_linear(x, *self.arguments(), self._activation) if y is None else y

    def arguments(self) -> tuple[Any, ...]:
        of: dict[str, Any] = self._buffers  # directly: each attribute of a module that is a tensor costs 0.7 us
        return (of["values"], of["indices"], self.n, self.m, self.in_features, of["bias"], of["codebook"])

    def calls(self, bias: Tensor | None, accumulate: bool, activation: int = 0) -> list[NativeCall] | None:
        values, indices, n, m, cols, _, codebook = self.arguments()
        if not self.is_plain(values, codebook, bias):
            return None
        layout = nm_linear_layout(values, indices, n, m, cols, codebook)
        weight = (layout.values.data_ptr(), layout.values.dtype is torch.bfloat16, layout.words.data_ptr())
        ends = (self.out_features, cols, n, m, 0 if bias is None else bias.data_ptr(), accumulate, activation)
        return [NativeCall("nm_linear", (1, *weight, *ends), layout)]

    def dense_weight(self) -> Tensor:
        return ops.nm_unpack(self.values, self.indices, self.n, self.m, self.in_features, self.codebook)

    def config(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "n": self.n,
            "m": self.m,
            "codebook_size": None if self.codebook is None else self.codebook.numel(),
            "bias": self.bias is not None,
            **self.activation_config(),
        }

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        super().check_buffers(buffers)
        shape = (self.n, self.m, self.in_features)
        ops.check_nm(buffers["values"], buffers["indices"], *shape, buffers.get("codebook"))
