"""Nearest codeword of a sorted one-dimensional codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["assign", "assign_reference", "midpoints"]


def assign(x: Tensor, codebook: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Index of the codeword nearest to each element of ``x``.

    Parameters
    ----------
    x : float tensor of any shape. float16 and bfloat16 are widened to float32.
    codebook : float tensor of shape (k,), 1 <= k <= 256, ascending and finite, on the device of ``x``.
    out : contiguous uint8 tensor for the codes, of the shape and device of ``x``. Fresh memory costs page faults when
        it is large.

    Returns
    -------
    codes : uint8 tensor of the shape of ``x``. The lower codeword in a tie; NaN takes 0.

    Raises
    ------
    TypeError, ValueError : for another dtype, device or shape, or a codebook that is not ascending.

    Notes
    -----
    O(n k), one pass, exact: the same codes on every device, instruction set and number of threads.

    Examples
    --------
    >>> ops.assign(torch.tensor([-1.2, 0.1, 0.9]), torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0, 1, 2], dtype=torch.uint8)
    """
    x32 = _check.float32(x, "x")
    book = _check.sorted_codebook(codebook, "codebook", x32)
    if out is None:
        out = torch.empty(x32.shape, dtype=torch.uint8, device=x32.device)
    else:
        _check.output(out, "out", x32, torch.uint8)
    if _native.has_kernel("assign", x32):
        _native.call("assign", x32, x32.numel(), _midpoints(book), book.numel(), out)
        return out
    return out.copy_(_nearest(x32, midpoints(book)))


def assign_reference(x: Tensor, codebook: Tensor) -> Tensor:
    """The same in plain torch: the meaning the kernels are tested against, and the path of other devices."""
    return _nearest(x.float(), midpoints(codebook.float()))


def midpoints(codebook: Tensor) -> Tensor:
    """Decision thresholds of an ascending float32 codebook: midpoints, rounded down to float32.

    Rounding down makes ``threshold < x`` mean "strictly nearer to the upper codeword" for every float32 x, exactly.
    """
    a, b = codebook[:-1].double(), codebook[1:].double()
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # two floats far apart have no exact sum in double either (Knuth)
    mids = (total / 2).float()
    high = (mids.double() > total / 2) | ((mids.double() == total / 2) & (error < 0))
    return torch.where(high, torch.nextafter(mids, torch.full_like(mids, -torch.inf)), mids)


def _midpoints(codebook: Tensor) -> Tensor:
    """:func:`midpoints` in one call where there is a kernel, with one element more."""
    if not _native.has_kernel("midpoints", codebook):
        return midpoints(codebook)
    mids = torch.empty_like(codebook)
    _native.call("midpoints", codebook, codebook.numel(), mids)
    return mids


def _nearest(x: Tensor, mids: Tensor) -> Tensor:
    return torch.bucketize(x.nan_to_num(-torch.inf, torch.inf, -torch.inf), mids).to(torch.uint8)
