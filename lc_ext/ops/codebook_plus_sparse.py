"""A fixed codebook and sparse corrections, jointly optimal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from . import _check, _sums
from ._sums import CodebookPlusSparseResult
from .assign import assign_reference

__all__ = ["CodebookPlusSparseResult", "codebook_plus_sparse", "codebook_plus_sparse_reference"]


def codebook_plus_sparse(
    x: Tensor | Sequence[Tensor],
    codebook: Tensor,
    kappa: int,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    out: CodebookPlusSparseResult | None = None,
) -> CodebookPlusSparseResult:
    """A given codebook and the ``kappa`` corrections that minimise sum_i h_i (x_i - q_i - s_i)^2, exactly.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite; or a list of them on one device, taken as one.
    codebook : float tensor of shape (k,), 1 <= k <= 256, ascending and finite.
    kappa : number of corrections, 0 to the number N of elements.
    weights : the h_i, like ``x``: finite, not negative. Default: all one.
    out : a previous result for tensors of the same shapes, whose memory is used again.

    Returns
    -------
    codebook : as given, float32.
    codes : uint8, like ``x``: the nearest codeword, the lower one in a tie.
    indices : int64 tensor of shape (kappa,), ascending, counted through the list in order.
    values : float32 tensor of shape (kappa,), the residuals x - q there.
    distortion : what is left of the sum.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Every value goes to its nearest codeword and the kappa largest h_i (x_i - q_i)^2, compared in double precision, are
    corrected, the lowest indices in a tie; no other choice is better (Idelbayev and Carreira-Perpinan 2021, theorem
    4.1). O(N k), one pass; the same for every instruction set and number of threads.

    Examples
    --------
    >>> x = torch.tensor([-1.0, 1.25, 0.75, 9.0])
    >>> found = ops.codebook_plus_sparse(x, torch.tensor([-1.0, 1.0]), 1)
    >>> found.codes, found.indices, found.values
    (tensor([0, 1, 1, 1], dtype=torch.uint8), tensor([3]), tensor([8.]))
    """
    xs, hs = _sums.inputs(x, weights)
    book = _check.sorted_codebook(codebook, "codebook", xs[0])
    kappa = _check.integer(kappa, "kappa", 0, sum(t.numel() for t in xs))
    if _native.has_kernel("codebook_plus_sparse", xs[0]):
        codes, indices, values = _sums.outputs(xs, kappa, out)
        distortion = torch.empty((), dtype=torch.float64, device=xs[0].device)
        sizes = [t.numel() for t in xs]
        args = (xs, hs or [], sizes, book, book.numel(), kappa, codes, indices, values, distortion)
        _sums.refuse(_native.call("codebook_plus_sparse", *args))
        result = CodebookPlusSparseResult(book, codes, indices, values, distortion.item())
    else:
        _sums.refuse_bad(xs, hs)
        result = codebook_plus_sparse_reference(xs, book, kappa, weights=hs)
    return result._replace(codes=result.codes[0]) if isinstance(x, Tensor) else result


def codebook_plus_sparse_reference(
    x: Sequence[Tensor], codebook: Tensor, kappa: int, *, weights: Sequence[Tensor] | None = None
) -> CodebookPlusSparseResult:
    """The definition in plain torch: a stable sort of the weighted squared residuals."""
    flat = _sums.flat(x)
    codes = assign_reference(flat, codebook)
    q = codebook[codes.long()]
    score = (flat.double() - q.double()).square()
    if weights is not None:
        score = _sums.flat(weights).double() * score
    order = score.sort(descending=True, stable=True).indices
    indices = order[:kappa].sort().values
    distortion = float(score[order[kappa:]].sum())
    return CodebookPlusSparseResult(codebook, _sums.split(codes, x), indices, (flat - q)[indices], distortion)
