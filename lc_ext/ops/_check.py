"""Argument checks shared by the ops: each raises a TypeError or ValueError that names the argument and its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

_FLOAT32, _STRIDED = torch.float32, torch.strided
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def tensor(value: object, name: str) -> Tensor:
    """``value`` as a plain dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    if value.is_complex() or value.is_quantized:
        raise TypeError(f"{name} must be a real floating-point tensor, got {value.dtype}")
    if value.is_neg():
        value = value.resolve_neg()
    return value.detach() if value.requires_grad else value


def _is_plain(value: object, like: Tensor | None) -> TypeGuard[Tensor]:
    """Whether ``value`` can be used as it is: the common case, told quickly, since every call of an op pays for it."""
    return (
        isinstance(value, Tensor)
        and value.dtype is _FLOAT32
        and value.layout is _STRIDED
        and value.is_contiguous()
        and not value.is_neg()
        and not value.requires_grad
        and (like is None or value.device == like.device)
    )


def float32(value: object, name: str, like: Tensor | None = None) -> Tensor:
    """``value`` as a contiguous float32 tensor; float16 and bfloat16 are widened, which is exact."""
    if _is_plain(value, like):
        return value
    t = tensor(value, name)
    if t.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {t.dtype}")
    if like is not None and t.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the other tensors, got {t.device}")
    return t.to(torch.float32).contiguous()


def float32_list(values: object, name: str) -> list[Tensor]:
    """A non-empty list of float tensors on one device, each as a contiguous float32 tensor."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} must be a tensor or a list of tensors, got {type(values).__name__}")
    if not values:
        raise ValueError(f"{name} must hold at least one tensor, got an empty list")
    first = tensor(values[0], f"{name}[0]")
    return [v if _is_plain(v, first) else float32(v, f"{name}[{i}]", first) for i, v in enumerate(values)]


def integer(value: object, name: str, low: int, high: int | None = None) -> int:
    """``value`` as an int in [low, high]."""
    if type(value) is not int:  # the common case first: a check is paid for at every call of a layer
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        value = operator.index(value)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return value


def finite(t: Tensor, name: str) -> None:
    """Refuse NaN and Inf."""
    if t.numel() == 0:
        return
    low, high = torch.aminmax(t)  # a NaN shows in both; 3 ms where isfinite().all() takes 233 on 4096^2
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} contains NaN or Inf")


def out(value: Tensor | None, name: str, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """A tensor to write a result to: ``value``, if it fits and is contiguous, or a new one."""
    if value is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != dtype or tuple(value.shape) != tuple(shape) or value.device != like.device:
        raise ValueError(
            f"{name} must be {dtype} of shape {tuple(shape)} on {like.device}, "
            f"got {value.dtype} of shape {tuple(value.shape)} on {value.device}"
        )
    if not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {value.stride()}")
    return value


def linear(
    x: Tensor, x32: Tensor, cols: int, rows: int, bias: Tensor | None, given: Tensor | None, accumulate: object
) -> tuple[Tensor | None, Tensor | None]:
    """``bias`` in float32 and the given ``out``, of a linear layer: both may be None."""
    if x32.dim() == 0 or x32.shape[-1] != cols:
        raise ValueError(f"x must have shape (..., {cols}), got {tuple(x32.shape)}")
    bias32 = None if bias is None else float32(bias, "bias", x32)
    if bias32 is not None and bias32.shape != (rows,):
        raise ValueError(f"bias must have shape ({rows},), got {tuple(bias32.shape)}")
    if not isinstance(accumulate, bool):
        raise TypeError(f"accumulate must be True or False, got {type(accumulate).__name__}")
    if given is None:
        if accumulate:
            raise ValueError("out must be given to accumulate, got None")
        return bias32, None
    if x.dtype != torch.float32:
        raise TypeError(f"out is for a float32 x, got {x.dtype}")
    y = out(given, "out", (*x.shape[:-1], rows), torch.float32, x32)
    for t in (x, bias):
        if t is not None and t.numel() and t.untyped_storage().data_ptr() == y.untyped_storage().data_ptr():
            raise ValueError("out must not share memory with x or bias")
    return bias32, y


def offsets(value: object, name: str, x: Tensor, single: bool) -> Tensor:
    """Ascending int64 boundaries, on the CPU, of segments of the flattened tensor ``x``."""
    t = tensor(value, name)
    if not single:
        raise ValueError(f"{name} are for one tensor, not for a list of them")
    if t.dtype != torch.int64 or t.dim() != 1 or t.numel() == 0:
        raise TypeError(f"{name} must be an int64 vector, got {t.dtype} of shape {tuple(t.shape)}")
    t = t.cpu().contiguous()
    if int(t[0]) != 0 or int(t[-1]) != x.numel() or bool((t.diff() < 0).any()):
        raise ValueError(f"{name} must ascend from 0 to {x.numel()}, got {int(t[0])} to {int(t[-1])}")
    return t


def sorted_codebook(value: object, name: str, like: Tensor) -> Tensor:
    """A float32 vector of 1 to 256 finite ascending codewords on the device of ``like``."""
    codebook = float32(value, name, like)
    if codebook.dim() != 1 or not 1 <= codebook.numel() <= 256:
        raise ValueError(f"{name} must be a vector of 1 to 256 codewords, got shape {tuple(codebook.shape)}")
    values = codebook.tolist()  # quicker than tensor operations on so few
    if not math.isfinite(sum(values)):  # which cannot overflow: these are 256 float32 values at most, in double
        raise ValueError(f"{name} contains NaN or Inf")
    if values != sorted(values):
        raise ValueError(f"{name} must be ascending, got {values}")
    return codebook


def output(value: object, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` as memory for a result of ``dtype`` with the shape and device of ``like``, apart from its memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype is not dtype or value.shape != like.shape or value.device != like.device:
        raise ValueError(
            f"{name} must be {dtype} of shape {tuple(like.shape)} on {like.device}, "
            f"got {value.dtype} of shape {tuple(value.shape)} on {value.device}"
        )
    if value.layout is not _STRIDED or not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous")
    start, begin = value.data_ptr(), like.data_ptr()
    if start < begin + like.nbytes and begin < start + value.nbytes:
        raise ValueError(f"{name} must not share memory with the input")
    return value
