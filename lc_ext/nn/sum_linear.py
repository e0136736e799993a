"""Linear layer that is a sum of others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.activation import run_activation
from .one_row import NativeCall
from .packed import PackedLinear

__all__ = ["SumLinear"]


class SumLinear(PackedLinear):
    """``y = activation(parts[0](x) + parts[1](x) + ... + bias)``: an additive compression.

    Codes plus a sparse correction, for example.

    Parameters
    ----------
    parts : at least one packed layer without an activation or ``nn.Linear``, of the same shape.
    bias : float tensor of shape (out_features,), or None. Biases of the parts add to it.
    activation : None, "relu", "gelu", "gelu_tanh" or "silu": see :func:`~lc_ext.ops.activation`. It may be set.

    Raises
    ------
    TypeError, ValueError : for no parts, other modules, shapes that differ, or a part with an activation.

    Examples
    --------
    >>> parts = [layers.LowRankLinear(64, 32, rank=4, bias=False), layers.SparseLinear(64, 32, nnz=0, bias=False)]
    >>> layer = layers.SumLinear(parts)
    >>> layer(torch.randn(5, 64)).shape
    torch.Size([5, 32])
    """

    def __init__(
        self, parts: Iterable[PackedLinear | nn.Linear], bias: Tensor | None = None, activation: str | None = None
    ) -> None:
        held = list(parts)
        if not held:
            raise ValueError("parts must hold at least one layer, got none")
        for i, part in enumerate(held):
            if not isinstance(part, (PackedLinear, nn.Linear)):
                raise TypeError(f"parts[{i}] must be a packed layer or nn.Linear, got {type(part).__name__}")
            if (part.in_features, part.out_features) != (held[0].in_features, held[0].out_features):
                raise ValueError(
                    f"parts[{i}] must have the shape {held[0].in_features} -> {held[0].out_features} of parts[0], "
                    f"got {part.in_features} -> {part.out_features}"
                )
            if isinstance(part, PackedLinear) and part.activation is not None:
                raise ValueError(f"parts[{i}] must have no activation, got {part.activation!r}")
        super().__init__(held[0].in_features, held[0].out_features, activation)
        self.parts = nn.ModuleList(held)
        self.register_buffer("bias", None)
        self._set_bias(bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor | None = self.straight(x)
        if y is None:
            y = self.parts[0](x)
            for part in list(self.parts)[1:]:
                y = y + part(x)
            y = y if self.bias is None else y + self.bias
            y = (y if self._activation is None else self.activate(y, x)).to(x.dtype)
        return y

    def calls(self, bias: Tensor | None, accumulate: bool, activation: int = 0) -> list[NativeCall] | None:
        all_calls: list[NativeCall] = []
        for i, part in enumerate(self.parts):
            if not isinstance(part, PackedLinear) or part.activation or (bias is not None and part.bias is not None):
                return None
            last = activation if i == len(self.parts) - 1 else 0
            made = part.calls(bias if part.bias is None else part.bias, accumulate or i > 0, last)
            if made is None:
                return None
            bias = bias if part.bias is not None else None
            all_calls += made
        return all_calls

    def rests_on(self) -> list[tuple[dict[str, Any], str]]:
        modules: Any = self.parts._modules
        parts = [at for part in self.parts if isinstance(part, PackedLinear) for at in part.rests_on()]
        return [*super().rests_on(), *[(modules, name) for name in modules], *parts]

    def write(self, y: Tensor, x: Tensor, bias: Tensor | None, accumulate: bool, activation: int = 0) -> bool:
        """The first part writes, the others add to what is there."""
        parts: list[Any] = list(self._modules["parts"]._modules.values())  # type: ignore[union-attr]
        if not all([isinstance(part, PackedLinear) for part in parts]):
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in self.buffers()):
            return False
        for i, part in enumerate(parts):
            own = part._buffers["bias"]
            both = bias if own is None else own if bias is None else own + bias
            last = activation if i == len(parts) - 1 else 0
            if not part._code and part.write(y, x, both, accumulate or i > 0, last):
                bias, activation = None, 0 if last else activation
            elif i > 0 or accumulate:
                y.add_(part(x))
            else:
                y.copy_(part(x))
        if activation:
            run_activation(y, activation, bias, y)
        elif bias is not None:
            y.add_(bias)
        return True

    def dense_weight(self) -> Tensor:
        return sum(
            (_dense(part).weight.detach() for part in list(self.parts)[1:]), _dense(self.parts[0]).weight.detach()
        )

    def total_bias(self) -> Tensor | None:
        total = self.bias
        for part in self.parts:
            bias: Tensor | None = part.total_bias() if isinstance(part, PackedLinear) else part.bias  # type: ignore
            if bias is not None:
                total = bias.detach() if total is None else total + bias.detach()
        return total

    def config(self) -> dict[str, Any]:
        """The shape and whether there is a bias; the parts have their own."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            **self.activation_config(),
        }


def _dense(part: torch.nn.Module) -> nn.Linear:
    if isinstance(part, PackedLinear):
        return part.dense_linear()
    assert isinstance(part, nn.Linear)
    return part
