"""Keep the largest entries of a tensor, or of a list of tensors jointly: the l0-constraint C step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _native
from . import _check, _prune
from ._prune import ListPruneResult, MaskKind, PruneResult

__all__ = [
    "IndexedListPruneResult",
    "IndexedPruneResult",
    "ListPruneResult",
    "PruneResult",
    "topk_prune",
    "topk_prune_reference",
]


class IndexedPruneResult(NamedTuple):
    """Result of :func:`topk_prune` on one tensor with ``indices=True``."""

    values: Tensor
    mask: Any
    threshold: Tensor
    indices: Tensor


class IndexedListPruneResult(NamedTuple):
    """Result of :func:`topk_prune` on a list of tensors with ``indices=True``."""

    values: list[Tensor]
    mask: Any
    threshold: Tensor
    indices: list[Tensor]


Result = PruneResult | ListPruneResult | IndexedPruneResult | IndexedListPruneResult
_SINGLE, _LISTS = (PruneResult, IndexedPruneResult), (ListPruneResult, IndexedListPruneResult)


@overload
def topk_prune(
    x: Tensor,
    keep: int | float,
    *,
    weights: Tensor | None = None,
    scores: Tensor | None = None,
    mask: MaskKind = "bool",
    indices: Literal[False] = False,
    out: PruneResult | IndexedPruneResult | None = None,
) -> PruneResult: ...
@overload
def topk_prune(
    x: Tensor,
    keep: int | float,
    *,
    weights: Tensor | None = None,
    scores: Tensor | None = None,
    mask: MaskKind = "bool",
    indices: Literal[True],
    out: PruneResult | IndexedPruneResult | None = None,
) -> IndexedPruneResult: ...
@overload
def topk_prune(
    x: Sequence[Tensor],
    keep: int | float,
    *,
    weights: Sequence[Tensor] | None = None,
    scores: Sequence[Tensor] | None = None,
    mask: MaskKind = "bool",
    indices: Literal[False] = False,
    out: ListPruneResult | IndexedListPruneResult | None = None,
) -> ListPruneResult: ...
@overload
def topk_prune(
    x: Sequence[Tensor],
    keep: int | float,
    *,
    weights: Sequence[Tensor] | None = None,
    scores: Sequence[Tensor] | None = None,
    mask: MaskKind = "bool",
    indices: Literal[True],
    out: ListPruneResult | IndexedListPruneResult | None = None,
) -> IndexedListPruneResult: ...
def topk_prune(
    x: Tensor | Sequence[Tensor],
    keep: int | float,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    scores: Tensor | Sequence[Tensor] | None = None,
    mask: MaskKind = "bool",
    indices: bool = False,
    out: Result | None = None,
) -> Any:
    """Keep the ``keep`` entries of the largest score in ``x`` and zero the rest.

    With magnitudes, or with weights h, this is the projection on {theta : ||theta||_0 <= kappa} in the norm
    sum h (x - theta)^2. For a list of tensors the threshold is shared, so the sparsity of each tensor is learned.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, or a list of them on one device. Finite.
    keep : int, the number kappa of survivors, 0 <= kappa <= N; or float in [0, 1], a fraction of N, rounded.
    weights : tensor like x (a list for a list), not negative: the score is h x^2, computed in float32 as (h |x|) |x|.
        A diagonal Fisher or Hessian, or second moments of the inputs.
    scores : tensor like x (a list for a list), not negative: the score itself, such as Wanda's |x| ||input|| or a
        Taylor term. At most one of weights and scores; without both, the score is |x|.
    mask : "bool", a byte for each entry; "bits", int32 words of 32 entries, lowest bit first, over the flattened
        tensor, the last word filled with zeros (``unpack_codes(words[None], 1, n)`` reads them); or None.
    indices : also return the positions of the survivors.
    out : a previous result for tensors of the same shapes and dtypes, whose values and mask are used again. Fresh
        outputs cost 3 to 7 times the kernel itself in page faults when they are large. Indices are always fresh.

    Returns
    -------
    values : like ``x``, survivors in place and zeros elsewhere.
    mask : true for exactly kappa entries. Among equal scores the lowest index survives, counted through the list in
        order.
    threshold : float32 scalar tensor, the smallest surviving score; inf if kappa is 0.
    indices : only with ``indices=True``: int64 positions in the flattened tensor, ascending.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range of an argument, for NaN or Inf in ``x``, for NaN,
        Inf or negative entries in weights or scores, and for weights h with h x^2 beyond float32.

    Notes
    -----
    O(N). On the CPU one streaming pass in the common case, exact always; the same result for every instruction set
    and number of threads. Other devices take the plain-torch path.

    Examples
    --------
    >>> values, mask, threshold = ops.topk_prune(torch.tensor([1.0, -4.0, 2.0, 3.0]), 2)
    >>> values, mask, float(threshold)
    (tensor([ 0., -4.,  0.,  3.]), tensor([False,  True, False,  True]), 3.0)
    >>> ops.topk_prune([torch.tensor([1.0, -4.0]), torch.tensor([2.0, 3.0])], 0.5).values  # jointly
    [tensor([ 0., -4.]), tensor([0., 3.])]
    """
    single = isinstance(x, Tensor)
    given = [x] if isinstance(x, Tensor) else x
    xs = [_check.float32(x, "x")] if isinstance(x, Tensor) else _check.float32_list(x, "x")
    sizes = [t.numel() for t in xs]
    kappa = kappa_of(keep, sum(sizes))
    score = _prune.scores_of(xs, single, weights, scores)
    kind = _prune.mask_kind(mask)
    if out is not None and not isinstance(out, _SINGLE if single else _LISTS):
        raise TypeError(f"out must be a previous result of topk_prune for such an x, got {type(out).__name__}")
    values, masks = _prune.outputs(given, kind, out, single)
    if out is not None:
        _prune.no_overlap([*values, *masks], [*given, *score.given])
    device = xs[0].device
    positions: list[Tensor] = []
    if _native.has_kernel("topk_prune", xs[0]):
        threshold = xs[0].new_empty(())
        flat = torch.empty(kappa, dtype=torch.int64, device=device) if indices else None
        kept = torch.empty(len(xs), dtype=torch.int64, device=device) if indices else None
        wide = _prune.float32_buffers(values)
        if kappa == 0 and indices:  # no memory to point at: an empty tensor has the address 0
            flat = torch.empty(1, dtype=torch.int64, device=device)
        if not _native.call(
            "topk_prune", xs, sizes, score.kind, score.given, kappa, wide, masks, kind, threshold, flat, kept
        ):
            score.check(xs)
        _prune.narrow(values, wide)
        if flat is not None and kept is not None:
            positions = list(flat[:kappa].split(kept.tolist()))
    else:
        score.check(xs)
        reference = topk_prune_reference(xs, kappa, score.tensors(xs))
        threshold = reference.threshold
        for v, r in zip(values, reference.values, strict=True):
            v.copy_(r)
        for m, r in zip(masks, reference.mask, strict=False):
            m.copy_(_prune.as_mask(r, kind))
        positions = [r.reshape(-1).nonzero().reshape(-1) for r in reference.mask] if indices else []
    if single:
        result = PruneResult(values[0], masks[0] if kind else None, threshold)
        return IndexedPruneResult(*result, positions[0]) if indices else result
    results = ListPruneResult(values, masks if kind else None, threshold)
    return IndexedListPruneResult(*results, positions) if indices else results


def topk_prune_reference(x: Sequence[Tensor], kappa: int, scores: Sequence[Tensor] | None = None) -> ListPruneResult:
    """The definition in plain torch: a stable sort of all scores, by default magnitudes; its first kappa survive."""
    score = torch.cat([t.abs().reshape(-1) for t in x] if scores is None else [s.reshape(-1) for s in scores])
    order = score.sort(descending=True, stable=True).indices[:kappa]
    mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    mask[order] = True
    threshold = score[order[-1]].float() if kappa else torch.tensor(torch.inf, device=score.device)
    masks = [m.view(t.shape) for m, t in zip(mask.split([t.numel() for t in x]), x, strict=True)]
    return ListPruneResult([t.where(m, t.new_zeros(())) for t, m in zip(x, masks, strict=True)], masks, threshold)


def kappa_of(keep: int | float, n: int, name: str = "keep") -> int:
    """The number of survivors among n."""
    if isinstance(keep, float):
        if not 0 <= keep <= 1:
            raise ValueError(f"{name} must be an int, or a fraction between 0.0 and 1.0, got {keep}")
        return round(keep * n)
    return _check.integer(keep, name, 0, n)
