"""The ops that appear in a forward, registered with torch: torch.compile, autograd and export see through them.

The low-level API, since a call then costs least. Gradients are for ``x`` only, through the decoded dense weight; the
packed tensors are buffers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native, ops

__all__ = ["csr_to_dense", "is_plain", "lut_decode", "lut_linear", "nm_linear", "nm_unpack", "sparse_linear"]

# What says that torch is tracing, transforming, or under a dispatch mode. Private names, read only to take a short cut:
# where one is absent, it is never taken.
_c: Any = torch._C
_tracing: Any = getattr(_c, "_get_tracing_state", None)
_modes: Any = getattr(_c, "_len_torch_dispatch_stack", None)
_transform: Any = getattr(getattr(_c, "_functorch", None), "peek_interpreter_stack", None)


def is_plain(x: Tensor, cols: int, weights: Tensor, *structure: Tensor) -> bool:
    """Whether nothing but the kernel need see a call, so that a layer may go straight to it.

    That is so for plain contiguous float32 tensors on the CPU that nobody differentiates, traces, compiles or
    transforms. The dispatcher and the checks of the op, which the layer's own buffers have passed, cost about 30
    microseconds a call.
    """
    return (
        _is_seen_by_nobody(x)
        and x.dtype is torch.float32
        and weights.dtype is torch.float32
        and weights.is_cpu
        and x.dim() > 0
        and x.shape[-1] == cols > 0
        and weights.numel() > 0
        and x.is_contiguous()
        and all(t.is_contiguous() for t in structure)
        and _native.has_kernel("lut_linear", x)
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
    "lut_linear(Tensor x, Tensor words, Tensor codebook, int bits, int cols, Tensor? bias=None, str mode='exact')"
    " -> Tensor"
)
_LIB.define("lut_decode(Tensor words, Tensor codebook, int bits, int cols) -> Tensor")
_LIB.define(
    "sparse_linear(Tensor x, Tensor values, Tensor columns, Tensor row_starts, int cols, Tensor? bias=None, "
    "Tensor? codebook=None) -> Tensor"
)
_LIB.define("csr_to_dense(Tensor values, Tensor columns, Tensor row_starts, int cols, Tensor? codebook=None) -> Tensor")
_LIB.define(
    "nm_linear(Tensor x, Tensor values, Tensor indices, int n, int m, int cols, Tensor? bias=None, "
    "Tensor? codebook=None) -> Tensor"
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
    x: Tensor, words: Tensor, codebook: Tensor, bits: int, cols: int, bias: Tensor | None = None, mode: str = "exact"
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
) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _nm_unpack_fake(
    values: Tensor, indices: Tensor, n: int, m: int, cols: int, codebook: Tensor | None = None
) -> Tensor:
    return (values if codebook is None else codebook).new_empty(values.shape[0], cols)


def _keep_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, words, codebook, ctx.bits, ctx.cols, *_ = inputs
    ctx.save_for_backward(words, codebook)


def _lut_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    words, codebook = ctx.saved_tensors
    if not ctx.needs_input_grad[0]:
        return (None,) * 7
    weight = lut_decode(words, codebook, ctx.bits, ctx.cols)
    return (grad.float() @ weight).to(grad.dtype), *(None,) * 6


def _keep_csr(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, columns, row_starts, ctx.cols, _, codebook = inputs
    ctx.save_for_backward(values, columns, row_starts, codebook)


def _sparse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[0]:
        return (None,) * 7
    values, columns, row_starts, codebook = ctx.saved_tensors
    weight = csr_to_dense(values, columns, row_starts, ctx.cols, codebook)
    return (grad.float() @ weight.float()).to(grad.dtype), *(None,) * 6


def _keep_nm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, indices, ctx.n, ctx.m, ctx.cols, _, codebook = inputs
    ctx.save_for_backward(values, indices, codebook)


def _nm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[0]:
        return (None,) * 8
    values, indices, codebook = ctx.saved_tensors
    weight = nm_unpack(values, indices, ctx.n, ctx.m, ctx.cols, codebook)
    return (grad.float() @ weight.float()).to(grad.dtype), *(None,) * 7


_library.register_fake("lc_ext::lut_linear", _lut_linear_fake, lib=_LIB)
_library.register_fake("lc_ext::lut_decode", _lut_decode_fake, lib=_LIB)
_library.register_fake("lc_ext::sparse_linear", _sparse_linear_fake, lib=_LIB)
_library.register_fake("lc_ext::csr_to_dense", _csr_to_dense_fake, lib=_LIB)
_library.register_autograd("lc_ext::lut_linear", _lut_backward, setup_context=_keep_codes, lib=_LIB)
_library.register_autograd("lc_ext::sparse_linear", _sparse_backward, setup_context=_keep_csr, lib=_LIB)
_library.register_fake("lc_ext::nm_linear", _nm_linear_fake, lib=_LIB)
_library.register_fake("lc_ext::nm_unpack", _nm_unpack_fake, lib=_LIB)
_library.register_autograd("lc_ext::nm_linear", _nm_backward, setup_context=_keep_nm, lib=_LIB)
