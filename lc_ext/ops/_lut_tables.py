"""Codebooks as small integers, for the integer arithmetic of lut_linear."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["int8_table", "int16_table"]

_MAX16, _MAX8 = 4095, 127  # kMax16, kMax8 of csrc/lut_linear.h
_SHARES = 32  # parts of the range that are tried as the range of the integers


def int16_table(books: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and steps, ``books ~ integers * step``, with one step for all codebooks of a row.

    Parameters
    ----------
    books : float32 tensor of shape (rows, groups, k).

    Returns
    -------
    integers : int16 tensor of the same shape, at most 4095 in magnitude.
    step : float32 tensor of shape (rows,).
    """
    wide = books.double()
    step = _step(wide.abs().amax((1, 2)), _MAX16)
    return (wide / step[:, None, None]).round().to(torch.int16), step.float()


def int8_table(books: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers from 0 to 127, steps and offsets, ``books ~ (integers - offset) * step``, for all codebooks of a row.

    The step is the best, in the sum of squares over the codewords, of those that use a part of the 127 steps.

    Returns
    -------
    integers : int16 tensor of the shape of ``books``.
    step : float32 tensor of shape (rows,).
    offset : int32 tensor of shape (rows,).
    """
    wide = books.double()
    low, high = wide.amin((1, 2)), wide.amax((1, 2))
    best: tuple[Tensor, ...] | None = None
    for share in range(_SHARES):
        step = _step((high - low) * (1 + share / (2 * _SHARES)), _MAX8)
        offset = torch.where(high > low, (-low / step).round(), (low < 0).double())
        step = torch.where(high > low, step, torch.where(low == 0, 1.0, low.abs()))
        integers = ((wide / step[:, None, None]).round() + offset[:, None, None]).clamp(0, _MAX8)
        error = (((integers - offset[:, None, None]) * step[:, None, None] - wide) ** 2).sum((1, 2))
        if best is None:
            best = error, integers, step, offset
        else:
            less = error < best[0]
            old_error, old_integers, old_step, old_offset = best
            best = (
                torch.where(less, error, old_error),
                torch.where(less[:, None, None], integers, old_integers),
                torch.where(less, step, old_step),
                torch.where(less, offset, old_offset),
            )
    assert best is not None
    _, integers, step, offset = best
    return integers.to(torch.int16), step.float(), offset.to(torch.int32)


def _step(size: Tensor, steps: int) -> Tensor:
    """``size / steps`` as a float32 can hold it, or 1 where that is 0."""
    step = (size / steps).float().double()
    return torch.where(step > 0, step, 1.0)
