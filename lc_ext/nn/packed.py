"""What the packed layers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import _check
from ..ops.activation import activation_code, activation_reference, run_activation
from . import _ops
from ._activations import activation_module, linear_and_activation
from .one_row import NativeCall, OneRow

__all__ = ["PackedLayer", "PackedLinear"]


class PackedLayer(nn.Module, ABC):
    """Base of the packed layers: tensors are plain buffers, and are checked before they are loaded."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, those of submodules included."""
        tensors = [*self.buffers(), *self.parameters()]
        return sum(t.numel() * t.element_size() for t in tensors)

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """The weight that the layer stands for, of the shape of its dense layer's."""

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """The layer of ``torch.nn`` that computes the same, with a copy of every tensor."""

    @abstractmethod
    def check_replaces(self, dense: nn.Module) -> None:
        """Refuse a layer of ``torch.nn`` whose place this one cannot take.

        Raises
        ------
        ValueError : for another class, shape or options.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as values that JSON can hold."""

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Refuse tensors, of the shapes of this layer's own, that would not make a valid layer.

        Raises
        ------
        TypeError, ValueError : naming the tensor.
        """

    def check(self) -> None:
        """:meth:`check_buffers` of the layer's own buffers."""
        self.check_buffers({name: t for name, t in self._buffers.items() if t is not None})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config().items())

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {name: t for name, t in self._buffers.items() if t is not None}
        new = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        whole = {**own, **new}  # a state dict that is loaded with strict=False may hold only some
        if new and all(t.shape == own[name].shape and not t.is_meta for name, t in whole.items()):
            try:
                self.check_buffers(whole)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class PackedLinear(PackedLayer):
    """Base of the packed layers that take the place of an ``nn.Linear``.

    Attributes
    ----------
    in_features, out_features : shape of the dense weight, transposed.
    bias : tensor of shape (out_features,), or None.
    activation : what is applied to the result, None, "relu", "gelu", "gelu_tanh" or "silu"; it may be set.
    """

    bias: Tensor | None
    _activation: str | None = None
    _code: int = 0  # of the activation in the kernels

    def __init__(self, in_features: int, out_features: int, activation: str | None = None) -> None:
        super().__init__()
        self.activation = activation
        self.in_features = _check.integer(in_features, "in_features", 0)
        self.out_features = _check.integer(out_features, "out_features", 0)

    @property
    def activation(self) -> str | None:
        return self._activation

    @activation.setter
    def activation(self, activation: str | None) -> None:
        self._code = activation_code(activation)
        self._activation = activation

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "activation" and isinstance(value, nn.Module):  # would become a child, which nothing calls
            raise TypeError(f"activation must be None or a name, got {type(value).__name__}")
        super().__setattr__(name, value)

    def to_dense(self) -> nn.Module:
        """An ``nn.Linear`` with a copy of every tensor; with an activation, an ``nn.Sequential`` of both."""
        linear = self.dense_linear()
        if self.activation is None:
            return linear
        return nn.Sequential(linear, activation_module(self.activation)).train(self.training)

    def dense_linear(self) -> nn.Linear:
        """The layer without its activation as an ``nn.Linear``, with a copy of every tensor."""
        weight = self.dense_weight().clone()
        bias = self.total_bias()
        linear = nn.Linear(self.in_features, self.out_features, bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight)
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(weight.dtype).clone())
        return linear.train(self.training)

    def straight(self, x: Tensor) -> Tensor | None:
        """``self(x)`` by the kernels alone; None where somebody else must see the call: see ``_ops.is_plain``."""
        if not _ops.is_plain(x, self.in_features):
            return None
        y = x.new_empty((*x.shape[:-1], self.out_features))
        if x.numel() == self.in_features:
            kept: OneRow | None = self.__dict__.get("_one_row")
            if kept is None or not kept.holds():
                kept = self._one_row = OneRow(self.calls(self._buffers["bias"], False, self._code), self.rests_on())
            if kept.write(y, x):
                return y
        return y if self.write(y, x, self._buffers["bias"], False, self._code) else None

    def rests_on(self) -> list[tuple[dict[str, Any], str]]:
        """What :meth:`calls` is made from: dictionaries and names in them."""
        return [(self.__dict__, "_activation"), *[(self._buffers, name) for name in self._buffers]]

    def calls(self, bias: Tensor | None, accumulate: bool, activation: int = 0) -> list[NativeCall] | None:
        """:meth:`write` for one row of ``x``, as calls of kernels; None where :meth:`write` is to do it."""
        return None

    def write(self, y: Tensor, x: Tensor, bias: Tensor | None, accumulate: bool, activation: int = 0) -> bool:
        """Write the product of ``x`` and the weight, plus ``bias``, to ``y``, or add it there: for sums of layers. Then
        the activation of that number is taken of ``y``, whatever the layer's own is.

        Returns
        -------
        done : False, and ``y`` is what it was, if the layer's tensors are not those that its kernel takes.
        """
        return False

    def total_bias(self) -> Tensor | None:
        """What is added to every output: the bias, and those of the parts of a sum."""
        return self.bias

    def check_replaces(self, dense: nn.Module) -> None:
        dense, activation = linear_and_activation(dense)
        if activation not in (None, self.activation):
            raise ValueError(f"has the activation {self.activation} in the file, {activation} in the model")
        if not isinstance(dense, nn.Linear):
            raise ValueError(f"must be an nn.Linear in the model, got {type(dense).__name__}")
        if (self.in_features, self.out_features) != (dense.in_features, dense.out_features):
            raise ValueError(
                f"is {self.in_features} -> {self.out_features} in the file, "
                f"{dense.in_features} -> {dense.out_features} in the model"
            )

    def activate(self, y: Tensor, x: Tensor) -> Tensor:
        """The activation of ``y``, the result for ``x``: by the kernel, in place, where nothing else sees the call."""
        if _ops.is_plain(x, self.in_features) and _ops.is_plain(y, self.out_features):
            return run_activation(y, self._code, None, y)
        return activation_reference(y, self._activation)

    def activation_config(self) -> dict[str, Any]:
        """The constructor's argument ``activation``, if it is not its default."""
        return {} if self.activation is None else {"activation": self.activation}

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        if "bias" in buffers:
            _check.float32(buffers["bias"], "bias")

    def _new_bias(self, bias: bool) -> None:
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {type(bias).__name__}")
        self.register_buffer("bias", torch.zeros(self.out_features, dtype=torch.float32) if bias else None)

    def _set_bias(self, bias: Tensor | None) -> None:
        if bias is None:
            return
        _check.float32(bias, "bias")
        if bias.shape != (self.out_features,):
            raise ValueError(f"bias must have shape ({self.out_features},), got {tuple(bias.shape)}")
        self.bias = bias.detach().clone()
