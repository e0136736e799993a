"""A second-order C step for one layer: what is rounded or pruned is made up for by the rest, in the layer's outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_ext import ops

from .compressions import Compression, NMPrune, Prune, Quantize, leaves
from .compressions.quantize import Codes

__all__ = ["compensate"]


@torch.no_grad()
def compensate(
    compression: Compression, v: Tensor, moment: Tensor, *, damping: float = 0.01, rounds: int = 3
) -> Tensor:
    """A second-order C step after ``fit``: choose codes or survivors again, in the metric of the layer's inputs.

    Parameters
    ----------
    compression : fitted to the one matrix ``v``. A codebook or levels for the tensor or per row: new codes by
        :func:`lc_ext.ops.second_order_quantize`, and new codewords for them, unless they are levels or pinned, by
        :func:`lc_ext.ops.second_order_refine`. ``Prune``, ``NMPrune``: new survivors by
        :func:`lc_ext.ops.second_order_prune`, and their values anew. The sum of such a codebook and ``Prune``: also as
        many corrections, where they save most (:func:`lc_ext.ops.second_order_exact`). All others stay as they are.
    v : (outputs, inputs).
    moment, damping : as for :func:`lc_ext.ops.second_order_quantize`.
    rounds : of refinement; 0: the sweep alone.

    Returns
    -------
    the projection, with an error in this metric that is never above that of ``fit`` for those named.
    """
    parts = leaves(compression)
    codes = [p for p in parts if isinstance(p, Codes) and (p.codebook_.dim() == 1 or p.per == "row")]
    pruned = [p for p in parts if isinstance(p, Prune)]
    if len(parts) == 1 and pruned:
        pruned[0].values_ = [_survivors(v, moment, damping, rounds, keep=pruned[0].keep)]
    elif len(parts) == 1 and isinstance(parts[0], NMPrune) and parts[0].dim in (-1, 1):
        parts[0].values_ = [_survivors(v, moment, damping, rounds, pattern=(parts[0].n, parts[0].m))]
    elif len(codes) == 1 and len(parts) == 1 + len(pruned) <= 2:
        _code(codes[0], pruned[0] if pruned else None, v, moment, damping, rounds)
    return compression.decompress()[0]


def _survivors(v: Tensor, moment: Tensor, damping: float, rounds: int, **which: Any) -> Tensor:
    values, mask, *_ = ops.second_order_prune(v, moment, damping=damping, **which)
    if rounds:  # zero is a codebook of one word, and the survivors are the entries beside it
        zero, codes = v.new_zeros(1, dtype=torch.float32), torch.zeros_like(mask, dtype=torch.uint8)
        options: dict[str, Any] = {"exact": mask, "damping": damping, "rounds": rounds, "fit_codebook": False}
        values = ops.second_order_refine(v, moment, zero, codes, values=values, **options).values
    return values


def _code(codes: Codes, pruned: Prune | None, v: Tensor, moment: Tensor, damping: float, rounds: int) -> None:
    free = isinstance(codes, Quantize) and codes.pinned is None
    book, exact = codes.codebook_, torch.zeros_like(v, dtype=torch.bool)
    tried = [exact]
    if pruned is not None:
        tried = [pruned.values_[0] != 0]  # where the corrections are: as they were fitted, and anew
        if rounds:
            tried.append(ops.second_order_exact(v, moment, book, int(tried[0].sum()), damping=damping))
    swept = [ops.second_order_quantize(v, moment, book, exact=e, damping=damping) for e in tried]
    values, found, error, _ = min(swept, key=lambda result: result.error)
    exact = next(e for e, result in zip(tried, swept, strict=True) if result.error == error)
    if rounds:
        options: dict[str, Any] = {"exact": exact, "damping": damping, "rounds": rounds, "fit_codebook": free}
        values, found, book, _ = ops.second_order_refine(v, moment, book, found, values=values, **options)
    codes.codes_ = [found]
    if free:
        codes.codebook_ = book
    if pruned is not None:
        pruned.values_ = [torch.where(exact, values - codes.decompress()[0], 0)]
