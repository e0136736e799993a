"""Keep the largest magnitudes of a tensor, or of a list of tensors jointly: the l0-constraint C step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["ListPruneResult", "PruneResult", "topk_prune", "topk_prune_reference"]


class PruneResult(NamedTuple):
    """Result of :func:`topk_prune` on one tensor."""

    values: Tensor
    mask: Tensor
    threshold: Tensor


class ListPruneResult(NamedTuple):
    """Result of :func:`topk_prune` on a list of tensors."""

    values: list[Tensor]
    mask: list[Tensor]
    threshold: Tensor


@overload
def topk_prune(x: Tensor, keep: int | float, *, out: PruneResult | None = None) -> PruneResult: ...
@overload
def topk_prune(x: Sequence[Tensor], keep: int | float, *, out: ListPruneResult | None = None) -> ListPruneResult: ...
def topk_prune(
    x: Tensor | Sequence[Tensor], keep: int | float, *, out: PruneResult | ListPruneResult | None = None
) -> PruneResult | ListPruneResult:
    """Keep the ``keep`` largest magnitudes of ``x`` and zero the rest.

    This is the projection on {theta : ||theta||_0 <= kappa} in the Euclidean norm. For a list of tensors the
    threshold is shared, so the sparsity of each tensor is learned.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device. Finite.
    keep : int, the number kappa of survivors, 0 <= kappa <= N; or float in [0, 1], a fraction of N, rounded.
    out : a previous result for tensors of the same shapes and dtypes, whose memory is used again. Fresh outputs cost
        3 to 7 times the kernel itself in page faults when they are large.

    Returns
    -------
    values : like ``x``, survivors in place and zeros elsewhere.
    mask : bool, like ``x``, with exactly kappa true entries. Among equal magnitudes the lowest index survives,
        counted through the list in order.
    threshold : float32 scalar tensor, the smallest surviving magnitude; inf if kappa is 0.

    Raises
    ------
    TypeError, ValueError : for another dtype, device or range of ``keep``, or for NaN or Inf in ``x``.

    Notes
    -----
    O(N). On the CPU one streaming pass in the common case, exact always; the same result for every instruction set
    and number of threads. Other devices take the plain-torch path.
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if isinstance(x, Tensor) else _check.float32_list(x, "x")
    kappa = _kappa(keep, sum(t.numel() for t in xs))
    if out is None:
        values = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in given]
        masks = [torch.empty(t.shape, dtype=torch.bool, device=t.device) for t in given]
    else:
        if not isinstance(out, PruneResult if single else ListPruneResult):
            raise TypeError(f"out must be a previous result of topk_prune for such an x, got {type(out).__name__}")
        values, masks = ([out.values], [out.mask]) if isinstance(out, PruneResult) else (out.values, out.mask)
        _check_out(values, masks, given)
    if _native.has_kernel("topk_prune", xs[0]):
        threshold = torch.empty((), dtype=torch.float32, device=xs[0].device)
        wide = [v if v.dtype == torch.float32 else torch.empty_like(v, dtype=torch.float32) for v in values]
        if not _native.call("topk_prune", xs, [t.numel() for t in xs], kappa, wide, masks, threshold):
            raise ValueError("x contains NaN or Inf")
        for v, w in zip(values, wide, strict=True):
            if v is not w:
                v.copy_(w)
    else:
        for t in xs:
            _check.finite(t, "x")
        reference = topk_prune_reference(xs, kappa)
        threshold = reference.threshold
        for v, m, rv, rm in zip(values, masks, reference.values, reference.mask, strict=True):
            v.copy_(rv)
            m.copy_(rm)
    return PruneResult(values[0], masks[0], threshold) if single else ListPruneResult(values, masks, threshold)


def topk_prune_reference(x: Sequence[Tensor], kappa: int) -> ListPruneResult:
    """The definition in plain torch: a stable sort of all magnitudes; its first kappa entries survive."""
    flat = torch.cat([t.reshape(-1) for t in x])
    order = flat.abs().sort(descending=True, stable=True).indices[:kappa]
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[order] = True
    threshold = flat[order[-1]].abs().float() if kappa else torch.tensor(torch.inf, device=flat.device)
    masks = [m.view(t.shape) for m, t in zip(mask.split([t.numel() for t in x]), x, strict=True)]
    return ListPruneResult([t.where(m, t.new_zeros(())) for t, m in zip(x, masks, strict=True)], masks, threshold)


def _kappa(keep: int | float, n: int) -> int:
    if isinstance(keep, float):
        if not 0 <= keep <= 1:
            raise ValueError(f"keep must be an int, or a fraction between 0.0 and 1.0, got {keep}")
        return round(keep * n)
    return _check.integer(keep, "keep", 0, n)


def _check_out(values: Sequence[Tensor], masks: Sequence[Tensor], x: Sequence[Tensor]) -> None:
    if len(values) != len(x) or len(masks) != len(x):
        raise ValueError(f"out must hold {len(x)} values and masks, got {len(values)} and {len(masks)}")
    for v, m, t in zip(values, masks, x, strict=True):
        if v.shape != t.shape or v.dtype != t.dtype or not v.is_contiguous() or v.device != t.device:
            raise ValueError(f"out.values must be contiguous {t.dtype} of shape {tuple(t.shape)} on {t.device}")
        if m.shape != t.shape or m.dtype != torch.bool or not m.is_contiguous() or m.device != t.device:
            raise ValueError(f"out.mask must be contiguous bool of shape {tuple(t.shape)} on {t.device}")
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in [*values, *masks, *x])
    written = {t.data_ptr() for t in [*values, *masks]}
    for (start, end), (after, _) in itertools.pairwise(span for span in spans if span[0] != span[1]):
        if after < end and (start in written or after in written):
            raise ValueError("out must not share memory with x or within itself")
