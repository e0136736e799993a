"""Linear layer that is a product of two thin ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import _check
from ..ops.activation import run_activation
from . import _ops
from .packed import PackedLinear

__all__ = ["LowRankLinear"]


class LowRankLinear(PackedLinear):
    """``y = activation((x @ v.T) @ u.T + bias)``, so ``W = u @ v``.

    Parameters
    ----------
    in_features, out_features : as for ``nn.Linear``.
    rank : columns of ``u`` and rows of ``v``; 0 is the zero weight.
    bias : whether there is a bias.
    activation : None, "relu", "gelu", "gelu_tanh" or "silu": see :func:`~lc_ext.ops.activation`. It may be set.

    Attributes
    ----------
    u : float buffer of shape (out_features, rank).
    v : float buffer of shape (rank, in_features).
    bias : float buffer of shape (out_features,), or None.

    Examples
    --------
    >>> layer = layers.LowRankLinear(64, 32, rank=4)
    >>> layer(torch.randn(5, 64)).shape
    torch.Size([5, 32])
    """

    u: Tensor
    v: Tensor

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, activation: str | None = None
    ) -> None:
        super().__init__(in_features, out_features, activation)
        rank = _check.integer(rank, "rank", 0)
        self.register_buffer("u", torch.zeros(self.out_features, rank, dtype=torch.float32))
        self.register_buffer("v", torch.zeros(rank, self.in_features, dtype=torch.float32))
        self._new_bias(bias)

    @classmethod
    def from_factors(cls, u: Tensor, v: Tensor, bias: Tensor | None = None) -> LowRankLinear:
        """A layer with the weight ``u @ v``.

        Parameters
        ----------
        u : float tensor of shape (out_features, rank).
        v : tensor of shape (rank, in_features), of the dtype and device of ``u``.
        bias : tensor of shape (out_features,) of the same dtype and device, or None.

        Raises
        ------
        TypeError, ValueError : for another dtype, shape or device.
        """
        _check.float32(u, "u")
        _check.float32(v, "v", u)
        if u.dim() != 2 or v.dim() != 2 or u.shape[1] != v.shape[0]:
            raise ValueError(f"u and v must have shapes (m, r) and (r, n), got {tuple(u.shape)} and {tuple(v.shape)}")
        for name, t in (("v", v), ("bias", bias)):
            if t is not None and t.dtype != u.dtype:
                raise TypeError(f"{name} must be {u.dtype} like u, got {t.dtype}")
        if bias is not None:
            _check.float32(bias, "bias", u)
        with torch.device("meta"):
            layer = cls(v.shape[1], u.shape[0], u.shape[1], bias is not None)
        layer.u, layer.v = u.detach().clone(), v.detach().clone()
        layer._set_bias(bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.u.dtype)
        y = F.linear(F.linear(x.to(self.v.dtype), self.v), self.u, bias)
        return y.to(x.dtype) if self._activation is None else self.activate(y, x).to(x.dtype)

    def write(self, y: Tensor, x: Tensor, bias: Tensor | None, accumulate: bool, activation: int = 0) -> bool:
        u, v = self.u, self.v
        if not accumulate or u.dtype is not torch.float32 or not _ops.are_plain(u, bias) or v.requires_grad:
            return False
        hidden, flat = F.linear(x, v).view(-1, u.shape[1]), y.view(-1, self.out_features)
        if flat.shape[0] == 1:
            flat[0].addmv_(u, hidden[0])
        else:
            flat.addmm_(hidden, u.t())
        if activation:
            run_activation(flat, activation, bias, flat)
        elif bias is not None:
            flat.add_(bias)
        return True

    def dense_weight(self) -> Tensor:
        return self.u @ self.v

    def config(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rank": self.u.shape[1],
            "bias": self.bias is not None,
            **self.activation_config(),
        }

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        super().check_buffers(buffers)
        for name, t in buffers.items():
            _check.float32(t, name)
            if t.dtype != buffers["u"].dtype:
                raise TypeError(f"{name} must be {buffers['u'].dtype} like u, got {t.dtype}")
