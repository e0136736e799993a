"""The ops that appear in a forward, registered with torch: torch.compile, autograd and export see through them.

The low-level API, since a call then costs least. Gradients are those of the dense product, through the decoded weight:
for ``x``, the bias, and whatever of codebook and values requires one, for finetuning (their codes and positions stay).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _native, ops
from ..ops.activation import activation_gradient

__all__ = [
    "are_plain",
    "csr_to_dense",
    "is_plain",
    "lut_decode",
    "lut_linear",
    "nm_linear",
    "nm_unpack",
    "sparse_linear",
]

# What says that torch is tracing, transforming, or under a dispatch mode. Private names, read only to take a short cut:
# where one is absent, it is never taken.
_c: Any = torch._C
_tracing: Any = getattr(_c, "_get_tracing_state", None)
_modes: Any = getattr(_c, "_len_torch_dispatch_stack", None)
_transform: Any = getattr(getattr(_c, "_functorch", None), "peek_interpreter_stack", None)


def is_plain(x: Tensor, cols: int) -> bool:
    """Whether nothing but the kernel need see a call with ``x``, so that a layer may go straight to it.

    That is so for plain contiguous float32 tensors on the CPU that nobody differentiates, traces, compiles or
    transforms. The dispatcher and the checks of the op, which the layer's own buffers have passed, cost about 30
    microseconds a call.
    """
    return (
        _is_seen_by_nobody(x)
        and x.dtype is torch.float32
        and x.dim() > 0
        and x.shape[-1] == cols > 0
        and x.is_contiguous()
        and _native.has_kernel("lut_linear", x)
    )


def are_plain(floats: Tensor, bias: Tensor | None) -> bool:
    """The same for the floats of a layer, and a bias: neither is to learn."""
    return (
        floats.is_cpu
        and floats.numel() > 0
        and (bias is None or (bias.dtype is torch.float32 and bias.is_contiguous()))
        and not ((floats.requires_grad or (bias is not None and bias.requires_grad)) and torch.is_grad_enabled())
    )


def is_plain_conv(x: Tensor) -> bool:
    """The same for the input of a convolution, in any layout of memory."""
    return _is_seen_by_nobody(x) and x.dtype in (torch.float32, torch.float16, torch.bfloat16) and x.numel() > 0


def _is_seen_by_nobody(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and None not in (_tracing, _modes, _transform)
        and _tracing() is None
        and _modes() == 0
        and _transform() is None
        and type(x) is Tensor
        and x.is_cpu
        and not (x.requires_grad and torch.is_grad_enabled())
    )


_library: Any = torch.library  # partly untyped
_LIB = _library.Library("lc_ext", "DEF")
_LIB.define(
    "lut_linear(Tensor x, Tensor words, Tensor codebook, int bits, int cols, Tensor? bias=None, str mode='exact', "
    "str? activation=None) -> Tensor"
)
_LIB.define("lut_decode(Tensor words, Tensor codebook, int bits, int cols) -> Tensor")
_LIB.define(
    "sparse_linear(Tensor x, Tensor values, Tensor columns, Tensor row_starts, int cols, Tensor? bias=None, "
    "Tensor? codebook=None, str? activation=None) -> Tensor"
)
_LIB.define("csr_to_dense(Tensor values, Tensor columns, Tensor row_starts, int cols, Tensor? codebook=None) -> Tensor")
_LIB.define(
    "nm_linear(Tensor x, Tensor values, Tensor indices, int n, int m, int cols, Tensor? bias=None, "
    "Tensor? codebook=None, str? activation=None) -> Tensor"
)
_LIB.define("nm_unpack(Tensor values, Tensor indices, int n, int m, int cols, Tensor? codebook=None) -> Tensor")

# One implementation for every device: the ops choose a kernel or plain torch themselves.
for _name, _op in (
    ("lut_linear", ops.lut_linear),
    ("lut_decode", ops.lut_decode),
    ("sparse_linear", ops.sparse_linear),
    ("csr_to_dense", ops.csr_to_dense),
    ("nm_linear", ops.nm_linear),
    ("nm_unpack", ops.nm_unpack),
):
    _LIB.impl(_name, _op, "CompositeExplicitAutograd")

lut_linear = torch.ops.lc_ext.lut_linear
lut_decode = torch.ops.lc_ext.lut_decode
sparse_linear = torch.ops.lc_ext.sparse_linear
csr_to_dense = torch.ops.lc_ext.csr_to_dense
nm_linear = torch.ops.lc_ext.nm_linear
nm_unpack = torch.ops.lc_ext.nm_unpack


def _lut_linear_fake(
    x: Tensor,
    words: Tensor,
    codebook: Tensor,
    bits: int,
    cols: int,
    bias: Tensor | None = None,
    mode: str = "exact",
    activation: str | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], words.shape[0])


def _lut_decode_fake(words: Tensor, codebook: Tensor, bits: int, cols: int) -> Tensor:
    return words.new_empty(words.shape[0], cols, dtype=torch.float32)


def _sparse_linear_fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_starts: Tensor,
    cols: int,
    bias: Tensor | None = None,
    codebook: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], row_starts.shape[0] - 1)


def _csr_to_dense_fake(
    values: Tensor, columns: Tensor, row_starts: Tensor, cols: int, codebook: Tensor | None = None
) -> Tensor:
    return (values if codebook is None else codebook).new_empty(row_starts.shape[0] - 1, cols)


def _nm_linear_fake(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    n: int,
    m: int,
    cols: int,
    bias: Tensor | None = None,
    codebook: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _nm_unpack_fake(
    values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None = None
) -> Tensor:
    return (values if codebook is None else codebook).new_empty(values.shape[0], cols)


def _needs(ctx: Any, i: int) -> bool:
    """Whether input ``i`` needs its gradient. Trailing inputs that were left out are not there."""
    needs: tuple[bool, ...] = ctx.needs_input_grad
    return i < len(needs) and needs[i]


def _through_x(grad: Tensor, weight: Tensor) -> Tensor:
    return (grad.float() @ weight.float()).to(grad.dtype)


def _of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the dense weight."""
    return grad.reshape(-1, grad.shape[-1]).float().T @ x.reshape(-1, x.shape[-1]).float()


def _of_bias(ctx: Any, at: int, grad: Tensor) -> Tensor | None:
    return grad.reshape(-1, grad.shape[-1]).float().sum(0).to(ctx.bias_dtype) if _needs(ctx, at) else None


def _bias_of(ctx: Any, bias: Tensor | None) -> Tensor | None:
    """The bias, where the backward pass computes the product again."""
    return None if ctx.activation is None else bias


def _through_activation(ctx: Any, grad: Tensor, product: Callable[[], Tensor]) -> Tensor:
    """The gradient before the activation, which is torch's function here; ``product`` is what it was taken of."""
    return grad if ctx.activation is None else activation_gradient(grad, product(), ctx.activation)


def _of_codewords(codes: Tensor, grad: Tensor, k: int) -> Tensor:
    """Sums of the gradients, over the last dimension, of elements with the same code."""
    return grad.new_zeros(*grad.shape[:-1], k).scatter_add_(-1, codes.long(), grad)


def _keep_decode(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    words, codebook, ctx.bits, ctx.cols = inputs
    ctx.save_for_backward(words, codebook)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, _lut_gradient(ctx, grad, *ctx.saved_tensors), None, None


def _lut_gradient(ctx: Any, grad: Tensor, words: Tensor, codebook: Tensor) -> Tensor:
    """The gradient by the codebook, for one by the dense weight."""
    k, rows = codebook.shape[-1], words.shape[0]
    if grad.numel() == 0:
        return torch.zeros_like(codebook)
    numbers = torch.arange(k, dtype=torch.float32, device=words.device)
    parts = (rows, codebook.shape[1] if codebook.dim() == 3 else 1, -1)
    sums = _of_codewords(lut_decode(words, numbers, ctx.bits, ctx.cols).reshape(parts), grad.float().reshape(parts), k)
    return (sums.sum((0, 1)) if codebook.dim() == 1 else sums.view_as(codebook)).to(codebook.dtype)


def _keep_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, words, codebook, ctx.bits, ctx.cols, bias, ctx.mode, ctx.activation = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    kept = x if codebook.requires_grad or ctx.activation is not None else None
    ctx.save_for_backward(kept, words, codebook, _bias_of(ctx, bias))


def _lut_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, words, codebook, bias = ctx.saved_tensors
    shape = (words, codebook, ctx.bits, ctx.cols)
    grad = _through_activation(ctx, grad, lambda: lut_linear(x, *shape, bias, ctx.mode))
    by_x = _through_x(grad, lut_decode(*shape)) if _needs(ctx, 0) else None
    by_codebook = _lut_gradient(ctx, _of_weight(grad, x), words, codebook) if _needs(ctx, 2) else None
    return by_x, None, by_codebook, None, None, _of_bias(ctx, 5, grad), None, None


def _keep_dense(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, columns, row_starts, ctx.cols, codebook = inputs
    ctx.save_for_backward(values, columns, row_starts, codebook)


def _dense_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    by_values, by_codebook = _csr_gradients(grad, *ctx.saved_tensors)
    return by_values, None, None, None, by_codebook


def _csr_gradients(
    grad: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor, codebook: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by values and codebook, for one by the dense weight."""
    each = torch.arange(row_starts.shape[0] - 1, device=values.device)
    row = each.repeat_interleave(row_starts.long().diff(), output_size=values.shape[0])
    elements = grad[row, columns.to(torch.int32).long()]  # uint16 does not index
    if codebook is None:
        return elements.to(values.dtype), None
    return None, _of_codewords(values, elements.float(), codebook.shape[0]).to(codebook.dtype)


def _keep_csr(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, columns, row_starts, ctx.cols, bias, codebook, ctx.activation = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    learned = (values if codebook is None else codebook).requires_grad or ctx.activation is not None
    ctx.save_for_backward(x if learned else None, values, columns, row_starts, codebook, _bias_of(ctx, bias))


def _sparse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, columns, row_starts, codebook, bias = ctx.saved_tensors
    structure = (values, columns, row_starts, ctx.cols)
    grad = _through_activation(ctx, grad, lambda: sparse_linear(x, *structure, bias, codebook))
    by_x = by_values = by_codebook = None
    if _needs(ctx, 0):
        by_x = _through_x(grad, csr_to_dense(*structure, codebook))
    if _needs(ctx, 1) or _needs(ctx, 6):
        by_values, by_codebook = _csr_gradients(_of_weight(grad, x), values, columns, row_starts, codebook)
    return by_x, by_values, None, None, None, _of_bias(ctx, 5, grad), by_codebook, None


def _keep_unpack(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, ctx.n, ctx.m, ctx.cols, codebook = inputs
    ctx.save_for_backward(values, indices, codebook)


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    by_values, by_codebook = _nm_gradients(ctx, grad, *ctx.saved_tensors)
    return by_values, None, None, None, None, by_codebook


def _nm_gradients(
    ctx: Any, grad: Tensor, values: Tensor, indices: Tensor, codebook: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by values and codebook, for one by the dense weight."""
    slots = values.shape[1]  # numbered from 1 in each row; 0 where the weight has none
    numbers = torch.arange(1, slots + 1, dtype=torch.float32, device=values.device).repeat(values.shape[0], 1)
    which = nm_unpack(numbers, indices, ctx.n, ctx.m, ctx.cols)
    elements = _of_codewords(which, grad.float(), slots + 1)[:, 1:]
    if codebook is None:
        return elements.to(values.dtype), None
    return None, _of_codewords(values, elements, codebook.shape[0]).sum(0).to(codebook.dtype)


def _keep_nm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, indices, ctx.n, ctx.m, ctx.cols, bias, codebook, ctx.activation = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    learned = (values if codebook is None else codebook).requires_grad or ctx.activation is not None
    ctx.save_for_backward(x if learned else None, values, indices, codebook, _bias_of(ctx, bias))


def _nm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, indices, codebook, bias = ctx.saved_tensors
    shape = (indices, ctx.n, ctx.m, ctx.cols)
    grad = _through_activation(ctx, grad, lambda: nm_linear(x, values, *shape, bias, codebook))
    by_x = by_values = by_codebook = None
    if _needs(ctx, 0):
        by_x = _through_x(grad, nm_unpack(values, *shape, codebook))
    if _needs(ctx, 1) or _needs(ctx, 7):
        by_values, by_codebook = _nm_gradients(ctx, _of_weight(grad, x), values, indices, codebook)
    return by_x, by_values, None, None, None, None, _of_bias(ctx, 6, grad), by_codebook, None


_library.register_fake("lc_ext::lut_linear", _lut_linear_fake, lib=_LIB)
_library.register_fake("lc_ext::lut_decode", _lut_decode_fake, lib=_LIB)
_library.register_fake("lc_ext::sparse_linear", _sparse_linear_fake, lib=_LIB)
_library.register_fake("lc_ext::csr_to_dense", _csr_to_dense_fake, lib=_LIB)
_library.register_autograd("lc_ext::lut_linear", _lut_backward, setup_context=_keep_codes, lib=_LIB)
_library.register_autograd("lc_ext::sparse_linear", _sparse_backward, setup_context=_keep_csr, lib=_LIB)
_library.register_fake("lc_ext::nm_linear", _nm_linear_fake, lib=_LIB)
_library.register_fake("lc_ext::nm_unpack", _nm_unpack_fake, lib=_LIB)
_library.register_autograd("lc_ext::nm_linear", _nm_backward, setup_context=_keep_nm, lib=_LIB)
_library.register_autograd("lc_ext::lut_decode", _decode_backward, setup_context=_keep_decode, lib=_LIB)
_library.register_autograd("lc_ext::csr_to_dense", _dense_backward, setup_context=_keep_dense, lib=_LIB)
_library.register_autograd("lc_ext::nm_unpack", _unpack_backward, setup_context=_keep_unpack, lib=_LIB)
