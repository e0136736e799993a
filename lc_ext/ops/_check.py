"""Argument checks shared by the ops: each raises a TypeError or ValueError that names the argument and its value."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

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


def float32(value: object, name: str, like: Tensor | None = None) -> Tensor:
    """``value`` as a contiguous float32 tensor; float16 and bfloat16 are widened, which is exact."""
    t = tensor(value, name)
    if t.dtype is torch.float32 and t.is_contiguous() and (like is None or t.device == like.device):
        return t
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
    return [float32(v, f"{name}[{i}]", first) for i, v in enumerate(values)]


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
    if not bool(torch.isfinite(t).all()):
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
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} contains NaN or Inf")
    if any(b < a for a, b in itertools.pairwise(values)):
        raise ValueError(f"{name} must be ascending, got {values}")
    return codebook
