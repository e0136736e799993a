"""Activation functions, after a bias: alone, and as the last step of the linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["ACTIVATIONS", "activation", "activation_code", "activation_gradient", "activation_reference"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
ACTIVATIONS = tuple(_FUNCTIONS)  # in the order of csrc/activation.h
_aten: Any = torch.ops.aten
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, x: _aten.threshold_backward(grad, x, 0),
    "gelu": lambda grad, x: _aten.gelu_backward(grad, x),
    "gelu_tanh": lambda grad, x: _aten.gelu_backward(grad, x, approximate="tanh"),
    "silu": lambda grad, x: _aten.silu_backward(grad, x),
}


def activation_code(kind: str | None) -> int:
    """The number of an activation in the kernels, 0 for None.

    Raises
    ------
    ValueError : for another name.
    """
    if kind is None:
        return 0
    if not isinstance(kind, str) or kind not in _FUNCTIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {kind!r}")
    return 1 + ACTIVATIONS.index(kind)


def activation(x: Tensor, kind: str | None, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """``f(x + bias)``, elementwise.

    Parameters
    ----------
    x : float tensor of shape (..., n). float16 and bfloat16 are widened to float32 and the result is cast back.
    kind : "relu"; "gelu", x Phi(x), by erf; "gelu_tanh", its approximation by tanh; "silu", x / (1 + exp(-x)); None.
    bias : float tensor of shape (n,), or None.
    out : contiguous float32 tensor of the shape of ``x`` for the result, for a float32 ``x``; it may be ``x`` itself.

    Returns
    -------
    y : tensor of the shape and dtype of ``x``.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or kind, naming the argument.

    Notes
    -----
    O(n). The error is at most 2**-20 of the result (``csrc/activation.h``), also where it is tiny, as torch's is not;
    the bits are the same on every instruction set and for any number of threads. -Inf gives 0, the limit, where torch's
    gelu and silu give NaN. No gradient.

    Examples
    --------
    >>> ops.activation(torch.tensor([-1.0, 0.0, 2.0]), "relu", bias=torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.5000, 3.0000])
    """
    code, x32 = activation_code(kind), _check.float32(x, "x")
    bias32 = None if bias is None else _check.float32(bias, "bias", x32)
    if bias32 is not None and (x32.dim() == 0 or bias32.shape != x32.shape[-1:]):
        raise ValueError(f"bias must have shape {tuple(x32.shape[-1:])}, got {tuple(bias32.shape)}")
    if out is not None:
        _check.out(out, "out", x.shape, torch.float32, x32)
        if x.dtype != torch.float32:
            raise TypeError(f"out is for a float32 x, got {x.dtype}")
        begin, end = out.data_ptr(), out.data_ptr() + out.nbytes
        for name, t in (("x", x32), ("bias", bias32)):
            same = name == "x" and t is not None and t.data_ptr() == begin
            if t is not None and not same and t.data_ptr() < end and begin < t.data_ptr() + t.nbytes:
                raise ValueError(f"out must not share memory with {name}, unless it is x")
    if not _native.has_kernel("activation", x32):
        y = activation_reference(x, kind, bias)
        return y if out is None else out.copy_(y)
    return run_activation(x32, code, bias32, torch.empty_like(x32) if out is None else out).to(x.dtype)


def run_activation(x: Tensor, code: int, bias: Tensor | None, out: Tensor) -> Tensor:
    """:func:`activation` without its checks: for contiguous float32 tensors that it would take."""
    rows = x.shape[-1] if x.dim() else 1
    _native.call("activation", code, x, bias, x.numel() // max(rows, 1), rows, out)
    return out


def activation_reference(x: Tensor, kind: str | None, bias: Tensor | None = None) -> Tensor:
    """The same by torch's functions: the meaning the kernels are tested against, and the path of other devices."""
    y = x.float() if bias is None else x.float() + bias.float()
    return (y if kind is None else _FUNCTIONS[kind](y)).to(x.dtype)


def activation_gradient(grad: Tensor, x: Tensor, kind: str) -> Tensor:
    """The gradient by ``x`` of torch's function, for a gradient by its result."""
    return _GRADIENTS[kind](grad, x)
