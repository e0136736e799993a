"""What the pruning ops share: scores to rank by, kinds of masks, results and their reuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _check
from .pack_codes import pack_codes, words_per_row

MaskKind = Literal["bool", "bits"] | None
_MASKS: dict[MaskKind, int] = {None: 0, "bool": 1, "bits": 2}  # as the native code counts them


class PruneResult(NamedTuple):
    """Result of pruning one tensor. ``mask`` is None where none was asked for."""

    values: Tensor
    mask: Any
    threshold: Tensor


class ListPruneResult(NamedTuple):
    """Result of pruning a list of tensors. ``mask`` is None where none was asked for."""

    values: list[Tensor]
    mask: Any
    threshold: Tensor


class Outputs(NamedTuple):
    """The part of a previous result that is used again; any result with these fields does."""

    values: Any
    mask: Any


class Scores(NamedTuple):
    """What entries are ranked by: magnitudes (0), weights h for h x^2 (1), or given scores (2)."""

    kind: int
    name: str
    given: list[Tensor]

    def tensors(self, x: Sequence[Tensor]) -> list[Tensor]:
        """The scores themselves, in float32: (h |x|) |x|, in this order, with weights."""
        if self.kind == 0:
            return [t.abs() for t in x]
        return [h * t.abs() * t.abs() for h, t in zip(self.given, x, strict=True)] if self.kind == 1 else self.given

    def check(self, x: Sequence[Tensor]) -> None:
        """Raise what is wrong with the values of x or of the scores, if anything is."""
        for t in x:
            _check.finite(t, "x")
        for t in self.given:
            _check.finite(t, self.name)
            if bool((t < 0).any()):
                raise ValueError(f"{self.name} must not be negative, got {t.min()}")
        if self.kind == 1 and not all(bool(torch.isfinite(s).all()) for s in self.tensors(x)):
            raise ValueError("weights must be such that weights * x**2 is below the largest float32")


def scores_of(x: Sequence[Tensor], single: bool, weights: object, scores: object) -> Scores:
    """The checked scores for x, from the arguments of an op."""
    if weights is not None and scores is not None:
        raise ValueError("weights and scores must not both be given")
    if weights is None and scores is None:
        return Scores(0, "x", [])
    kind, name, value = (1, "weights", weights) if weights is not None else (2, "scores", scores)
    return Scores(kind, name, like_list(value, name, x, single))


def like_list(value: object, name: str, x: Sequence[Tensor], single: bool) -> list[Tensor]:
    """``value`` as a list of float32 tensors of the shapes of x."""
    given = [_check.float32(value, name, x[0])] if single else _check.float32_list(value, name)
    if len(given) != len(x):
        raise ValueError(f"{name} must hold {len(x)} tensors like x, got {len(given)}")
    for g, t in zip(given, x, strict=True):
        if g.shape != t.shape or g.device != t.device:
            raise ValueError(f"{name} must have the shape {tuple(t.shape)} of x on {t.device}, got {tuple(g.shape)}")
    return given


def mask_kind(mask: object) -> int:
    """The native code's number of a kind of mask."""
    if mask is not None and mask not in ("bool", "bits"):
        raise ValueError(f"mask must be 'bool', 'bits' or None, got {mask!r}")
    return _MASKS[mask]


def empty_mask(like: Tensor, kind: int) -> Tensor:
    """Memory for a mask of the shape of ``like``."""
    if kind == 1:
        return torch.empty(like.shape, dtype=torch.bool, device=like.device)
    return torch.empty(words_per_row(like.numel(), 1), dtype=torch.int32, device=like.device)


def as_mask(keep: Tensor, kind: int) -> Tensor:
    """A bool mask as one of the kind asked for."""
    return keep if kind == 1 else pack_codes(keep.reshape(1, -1).to(torch.uint8), 1).reshape(-1)


def outputs(x: Sequence[Tensor], kind: int, out: Any, single: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Memory for values and masks: fresh, or that of a previous result."""
    if out is None:
        values = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in x]
        return values, [empty_mask(t, kind) for t in x] if kind else []
    values = [out.values] if single else list(out.values)
    masks = [] if out.mask is None else [out.mask] if single else list(out.mask)
    if len(values) != len(x) or len(masks) != (len(x) if kind else 0):
        raise ValueError(f"out must hold {len(x)} values and masks as asked for, got {len(values)} and {len(masks)}")
    for v, t in zip(values, x, strict=True):
        if v.dtype is not t.dtype or v.shape != t.shape or not v.is_contiguous() or v.device != t.device:
            raise ValueError(f"out.values must be contiguous {t.dtype} of shape {tuple(t.shape)} on {t.device}")
    dtype = torch.bool if kind == 1 else torch.int32
    for m, t in zip(masks, x, strict=False):
        shape = t.shape if kind == 1 else (words_per_row(t.numel(), 1),)
        if m.dtype is not dtype or m.shape != shape or not m.is_contiguous() or m.device != t.device:
            raise ValueError(f"out.mask must be contiguous {dtype} of shape {tuple(shape)} on {t.device}")
    return values, masks


def no_overlap(written: Sequence[Tensor], read: Sequence[Tensor]) -> None:
    """Refuse outputs that share memory with an input or with each other."""
    spans = [(t.data_ptr(), t.nbytes, True) for t in written]
    spans += [(t.data_ptr(), t.nbytes, False) for t in read]
    spans.sort()
    end = end_written = 0  # of what starts before
    for start, size, is_written in spans:
        if not size:
            continue
        if start < (end if is_written else end_written):
            raise ValueError("out must not share memory with the inputs or within itself")
        end = max(end, start + size)
        if is_written:
            end_written = max(end_written, start + size)


def float32_buffers(values: Sequence[Tensor]) -> list[Tensor]:
    """The values themselves, or float32 memory to be narrowed into them by :func:`narrow`."""
    return [v if v.dtype == torch.float32 else torch.empty_like(v, dtype=torch.float32) for v in values]


def narrow(values: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    """Write float32 buffers into the values that they stand in for."""
    for v, b in zip(values, buffers, strict=True):
        if v is not b:
            v.copy_(b)


def number(value: object, name: str) -> float:
    """A finite float that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return float(value)


def check_values(x: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raise what is wrong with the values of x or of the weights, if anything is."""
    Scores(2, "weights", list(weights)).check(x)
