"""A scaled binary codebook and sparse corrections, jointly optimal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from . import _check, _sums
from ._sums import CodebookPlusSparseResult
from .codebook_plus_sparse import codebook_plus_sparse_reference

__all__ = ["binary_plus_sparse", "binary_plus_sparse_reference"]


def binary_plus_sparse(
    x: Tensor | Sequence[Tensor], kappa: int, *, out: CodebookPlusSparseResult | None = None
) -> CodebookPlusSparseResult:
    """The codebook {-c, c} and ``kappa`` corrections that minimise sum_i (x_i - q_i - s_i)^2, exactly.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite; or a list of them on one device, taken as one.
    kappa : number of corrections, 0 to the number N of elements.
    out : a previous result for tensors of the same shapes, whose memory is used again.

    Returns
    -------
    codebook, codes, indices, values, distortion : as of :func:`codebook_plus_sparse`.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    The magnitudes that are not corrected are a window of N - kappa in sorted order, and c is their mean; the best
    window is that of least variance. It is found without a sort: a histogram bounds the change of the variance from
    window to window, and only the bins where it may turn from falling to rising are sorted. Exact up to the rounding of
    c to float32. O(N). There are no weights: with them the values that are kept are no window any more.

    Examples
    --------
    >>> found = ops.binary_plus_sparse(torch.tensor([-1.0, 1.0, 1.0, 9.0]), 1)
    >>> found.codebook, found.indices, found.values
    (tensor([-1.,  1.]), tensor([3]), tensor([8.]))
    """
    xs, _ = _sums.inputs(x, None)
    kappa = _check.integer(kappa, "kappa", 0, sum(t.numel() for t in xs))
    if _native.has_kernel("binary_plus_sparse", xs[0]):
        codes, indices, values = _sums.outputs(xs, kappa, out)
        device = xs[0].device
        distortion = torch.empty((), dtype=torch.float64, device=device)
        book = torch.empty(2, dtype=torch.float32, device=device)
        sizes = [t.numel() for t in xs]
        _sums.refuse(_native.call("binary_plus_sparse", xs, sizes, kappa, codes, book, indices, values, distortion))
        result = CodebookPlusSparseResult(book, codes, indices, values, distortion.item())
    else:
        _sums.refuse_bad(xs, None)
        result = binary_plus_sparse_reference(xs, kappa)
    return result._replace(codes=result.codes[0]) if isinstance(x, Tensor) else result


def binary_plus_sparse_reference(x: Sequence[Tensor], kappa: int) -> CodebookPlusSparseResult:
    """The definition in plain torch: every window of the sorted magnitudes."""
    magnitude = _sums.flat(x).abs().double().sort().values
    size = magnitude.numel() - kappa
    c = magnitude.new_zeros(())
    if size:
        middle = magnitude.median()
        t, zero = magnitude - middle, magnitude.new_zeros(1)
        s, q = torch.cat([zero, t.cumsum(0)]), torch.cat([zero, t.square().cumsum(0)])
        s, q = s[size:] - s[: s.numel() - size], q[size:] - q[: q.numel() - size]
        c = middle + s[(q - s * s / size).argmin()] / size
    return codebook_plus_sparse_reference(x, torch.stack([-c, c]).float(), kappa)
