"""A C step of second order: the layer's outputs are fitted, so that the rest makes up for what goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lc_ext import ops
from lc_ext.nn import PackedLinear

from ..compensation import compensate
from ..compressions import Compression
from ..compressions.prune import Sparse

__all__ = ["SecondOrder"]


class SecondOrder(Compression):
    """A compression of one layer whose C step lowers the error of the layer's outputs, tr (v - Delta) M (v - Delta)^T.

    Parameters
    ----------
    compression : what the layer gets.
    moment : M = E[x x^T] of the layer's inputs, (n, n): see :func:`lc.criteria.input_moments`.
    update : "sweep": after the compression's own fit, codes or survivors are chosen again, one input after the other,
        by :func:`lc.compensate`: GPTQ, SparseGPT. "values": the survivors that the fit chose, by whatever criterion is
        the metric, stay, and take the values that are best for the outputs: Optimal Brain Surgeon for all at once. For
        ``Prune``, ``NMPrune``, ``GroupPrune``.
    damping : this part of the mean of M's diagonal is added to its diagonal.

    Raises
    ------
    TypeError, ValueError : for another compression or moment, or an option out of range; in ``fit``, for more than one
        tensor, or one of another width.

    Notes
    -----
    The result is kept only if its error, damping included, is below that of the fit alone and that of the solution of
    the C step before, so a C step never undoes what another has reached. Without a metric, the fit has the diagonal of
    M as one. "values" solves a system for each row, of as many unknowns as it keeps.

    Examples
    --------
    >>> moments = lc.criteria.input_moments(model, batches)
    >>> half = [lc.Task(name, lc.criteria.SecondOrder(lc.Prune(0.5), m)) for name, m in moments.items()]
    >>> algorithm = lc.LCAlgorithm(model, half, mu=[1e-2], metric=lc.criteria.wanda(model, batches))
    """

    def __init__(
        self,
        compression: Compression,
        moment: Tensor,
        *,
        update: Literal["sweep", "values"] = "sweep",
        damping: float = 0.01,
    ) -> None:
        if not isinstance(compression, Compression):
            raise TypeError(f"compression must be an lc.Compression, got {type(compression).__name__}")
        if not isinstance(moment, Tensor) or not moment.is_floating_point():
            raise TypeError(f"moment must be a float tensor, got {getattr(moment, 'dtype', type(moment).__name__)}")
        if moment.dim() != 2 or moment.shape[0] != moment.shape[1]:
            raise ValueError(f"moment must be of shape (n, n), got {tuple(moment.shape)}")
        if update not in ("sweep", "values"):
            raise ValueError(f"update must be 'sweep' or 'values', got {update!r}")
        if update == "values" and not isinstance(compression, Sparse):
            raise TypeError(f"update 'values' is for compressions that prune, got {compression!r}")
        if not 0 < damping < float("inf"):
            raise ValueError(f"damping must be positive and finite, got {damping!r}")
        self.compression, self.moment, self.update, self.damping = compression, moment, update, float(damping)

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None, mu: float = 0.0) -> list[Tensor]:
        """The C step, of one tensor: that of the compression, then the update, then whatever is best so far."""
        if len(v) != 1 or v[0].dim() < 2 or v[0][0].numel() != len(self.moment):
            raise ValueError(
                f"a moment of {len(self.moment)} inputs takes one tensor of as many columns, "
                f"got shapes {[tuple(t.shape) for t in v]}"
            )
        inner, matrix = self.compression, v[0].flatten(1).contiguous()
        given = matrix if self.update == "sweep" else v[0]  # filters and channels are those of the whole kernel
        moment = self.moment.to(matrix.device, torch.float64)
        mean = moment.diagonal().mean()
        floor = self.damping * mean if mean > 0 else torch.ones_like(mean)
        damped = moment + floor * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        tried: list[tuple[float, dict[str, Any]]] = []

        def note() -> None:
            delta = inner.decompress()[0].to(matrix.device).view_as(matrix)
            tried.append((ops.weighted_error(matrix - delta, moment=damped), inner.state_dict()))

        if inner.learned:
            note()
        options: dict[str, Any] = {"mu": mu} if inner.penalised else {}
        if inner.weighted:
            h = damped.diagonal().float().expand_as(matrix) if weights is None else weights[0]
            options["weights"] = [h.reshape(given.shape).contiguous()]
        inner.fit([given], **options)
        note()
        if self.update == "sweep":
            compensate(inner, matrix, moment, damping=self.damping)
        elif isinstance(inner, Sparse):
            mask = inner.values_[0].view_as(matrix) != 0
            inner.values_ = [_best_values(matrix, mask, damped).view_as(given)]
        note()
        inner.load_state_dict(min(tried, key=lambda pair: pair[0])[1])
        self.shape_ = v[0].shape
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        return [self.compression.decompress()[0].view(self.shape_)]

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        """As the compression."""
        return self.compression.weighted

    @property
    def penalised(self) -> bool:  # type: ignore[override]
        """As the compression."""
        return self.compression.penalised

    @property
    def sparse(self) -> bool:  # type: ignore[override]
        """As the compression."""
        return self.compression.sparse

    @property
    def learned(self) -> bool:
        return self.compression.learned

    def bits(self) -> int:
        return self.compression.bits()

    def weight_bits(self) -> int:
        return self.compression.weight_bits()

    def summary(self) -> dict[str, float]:
        return self.compression.summary()

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        return self.compression.linear(i, bias)

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return self.compression.cost(shapes) + len(self.moment) ** 3

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "compression": self.compression.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.compression.load_state_dict(state["compression"])
        super().load_state_dict({name: value for name, value in state.items() if name != "compression"})

    def start_finetuning(self) -> list[nn.Parameter]:
        return self.compression.start_finetuning()

    def finish_finetuning(self) -> None:
        self.compression.finish_finetuning()

    def fresh(self) -> Compression:
        return SecondOrder(self.compression.fresh(), self.moment, update=self.update, damping=self.damping)

    def __repr__(self) -> str:
        return f"SecondOrder({self.compression!r}, update={self.update!r}, damping={self.damping})"


def _best_values(matrix: Tensor, mask: Tensor, moment: Tensor) -> Tensor:
    """The values at the mask with the least error in the metric of the moment, row by row."""
    wanted = matrix.double() @ moment
    best = torch.zeros_like(matrix)
    for row, kept in enumerate(mask):
        at = kept.nonzero().flatten()
        half = torch.linalg.cholesky(moment[at][:, at])
        best[row, at] = torch.cholesky_solve(wanted[row, at, None], half)[:, 0].to(matrix.dtype)
    return best
