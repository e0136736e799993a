"""Keep the n largest of each m consecutive entries: N:M sparsity, such as 2:4."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from . import _check, _prune
from ._prune import MaskKind

__all__ = ["NMPruneResult", "nm_prune", "nm_prune_reference"]


class NMPruneResult(NamedTuple):
    """Result of :func:`nm_prune`. ``mask`` is None where none was asked for."""

    values: Tensor
    mask: Any


def nm_prune(
    x: Tensor,
    n: int,
    m: int,
    *,
    dim: int = -1,
    weights: Tensor | None = None,
    scores: Tensor | None = None,
    mask: MaskKind = "bool",
    out: NMPruneResult | None = None,
) -> NMPruneResult:
    """Keep the ``n`` entries of the largest score among each ``m`` consecutive ones along ``dim``, zero the rest.

    The projection on N:M sparse tensors, in the norm sum h (x - theta)^2 with weights h.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of one dimension or more. Finite.
    n, m : 1 <= n < m <= 16. The size of ``dim`` must be divisible by m.
    dim : the dimension along which entries are consecutive. No transposed copy is made for any.
    weights : tensor like x, not negative: the score is h x^2, computed in float32 as (h |x|) |x|.
    scores : tensor like x, not negative: the score itself. Without both, the score is |x|.
    mask : "bool", "bits" or None, as in :func:`topk_prune`.
    out : a previous result for such a tensor, whose memory is used again.

    Returns
    -------
    values : like ``x``, survivors in place and zeros elsewhere.
    mask : true for the n survivors of each group. Among equal scores the lowest index survives.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range of an argument, for a dimension that m does not
        divide, for NaN or Inf in ``x``, and for NaN, Inf or negative entries in weights or scores.

    Notes
    -----
    O(N m), one pass, exact: the same on every instruction set and for any number of threads. m = 2, 4 (and 8 and 16
    where a vector has that many lanes) along the last dimension take the time of a copy. Other devices take the
    plain-torch path.

    Examples
    --------
    >>> ops.nm_prune(torch.tensor([1.0, -4.0, 2.0, 3.0, 0.5, 0.25, -0.75, 0.125]), 2, 4).values
    tensor([ 0.0000, -4.0000,  0.0000,  3.0000,  0.5000,  0.0000, -0.7500,  0.0000])
    """
    x32 = _check.float32(x, "x")
    m = _check.integer(m, "m", 2, 16)
    n = _check.integer(n, "n", 1, m - 1)
    if x32.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    axis = _check.integer(dim, "dim", -x32.dim(), x32.dim() - 1) % x32.dim()
    if x32.shape[axis] % m:
        raise ValueError(f"x must have a multiple of m = {m} entries along dim {dim}, got {x32.shape[axis]}")
    score = _prune.scores_of([x32], True, weights, scores)
    kind = _prune.mask_kind(mask)
    if out is not None and not isinstance(out, NMPruneResult):
        raise TypeError(f"out must be a previous result of nm_prune, got {type(out).__name__}")
    values, masks = _prune.outputs([x], kind, out, True)
    if out is not None:
        _prune.no_overlap([*values, *masks], [x, *score.given])
    if _native.has_kernel("nm_prune", x32):
        wide, inner = _prune.float32_buffers(values), math.prod(x32.shape[axis + 1 :])
        given = score.given[0] if score.given else None
        place = masks[0] if masks else None
        if x32.numel() and not _native.call(
            "nm_prune", x32, given, score.kind, x32.numel(), inner, n, m, wide[0], place, kind
        ):
            score.check([x32])
        _prune.narrow(values, wide)
    else:
        score.check([x32])
        keep = nm_prune_reference(x32, n, m, dim=axis, scores=score.tensors([x32])[0]).mask
        values[0].copy_(torch.where(keep, x32, 0))
        if masks:
            masks[0].copy_(_prune.as_mask(keep, kind))
    return NMPruneResult(values[0], masks[0] if masks else None)


def nm_prune_reference(x: Tensor, n: int, m: int, *, dim: int = -1, scores: Tensor | None = None) -> NMPruneResult:
    """The definition in plain torch: a stable sort of each group by score; its first n survive."""
    groups = (x.abs() if scores is None else scores).movedim(dim, -1)
    shape = groups.shape
    groups = groups.reshape(*shape[:-1], shape[-1] // m, m)
    order = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    keep = torch.zeros(groups.shape, dtype=torch.bool, device=x.device).scatter_(-1, order, True)
    keep = keep.reshape(shape).movedim(-1, dim).contiguous()
    return NMPruneResult(x.where(keep, x.new_zeros(())), keep)
