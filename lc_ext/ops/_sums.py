"""What the ops on sums of a codebook and corrections share: their result, their inputs and outputs, their refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _check


class CodebookPlusSparseResult(NamedTuple):
    """A codebook and corrections: ``x`` is about ``codebook[codes]``, plus ``values`` at ``indices``."""

    codebook: Tensor
    codes: Tensor | list[Tensor]
    indices: Tensor
    values: Tensor
    distortion: float
    iterations: int = 0

    def decompress(self) -> Tensor | list[Tensor]:
        """The sum, float32, in the shapes of the codes."""
        flat = torch.cat([c.reshape(-1) for c in as_list(self.codes)])
        return self._shaped(self.codebook[flat.long()].index_add_(0, self.indices, self.values))

    def corrections(self) -> Tensor | list[Tensor]:
        """The corrections alone as dense float32 tensors in the shapes of the codes."""
        dense = self.values.new_zeros(sum(c.numel() for c in as_list(self.codes)))
        dense[self.indices] = self.values
        return self._shaped(dense)

    def _shaped(self, flat: Tensor) -> Tensor | list[Tensor]:
        parts = as_list(self.codes)
        shaped = [t.view(c.shape) for t, c in zip(flat.split([c.numel() for c in parts]), parts, strict=True)]
        return shaped[0] if isinstance(self.codes, Tensor) else shaped


def as_list(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One tensor as a list of one."""
    return [x] if isinstance(x, Tensor) else list(x)


def inputs(
    x: Tensor | Sequence[Tensor], weights: Tensor | Sequence[Tensor] | None
) -> tuple[list[Tensor], list[Tensor] | None]:
    """The tensors and their weights as contiguous float32; at least one element."""
    single = isinstance(x, Tensor)
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    if sum(t.numel() for t in xs) == 0:
        raise ValueError("x must not be empty")
    if weights is None:
        return xs, None
    given = [weights] if isinstance(weights, Tensor) else list(weights)
    if single != isinstance(weights, Tensor) or len(given) != len(xs):
        raise ValueError("weights must be like x: one tensor, or as many as x has")
    hs = [_check.float32(h, "weights", t) for h, t in zip(given, xs, strict=True)]
    for h, t in zip(hs, xs, strict=True):
        if h.shape != t.shape:
            raise ValueError(f"weights must have the shape of x, {tuple(t.shape)}, got {tuple(h.shape)}")
    return xs, hs


def codes_like(xs: Sequence[Tensor], given: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    """Memory for the codes: that of a previous result, if ``given``."""
    if given is None:
        return [torch.empty(t.shape, dtype=torch.uint8, device=t.device) for t in xs]
    codes = as_list(given)
    if len(codes) != len(xs):
        raise ValueError(f"out must hold {len(xs)} tensors of codes, got {len(codes)}")
    for c, t in zip(codes, xs, strict=True):
        if c.dtype != torch.uint8 or c.shape != t.shape or c.device != t.device or not c.is_contiguous():
            raise ValueError(f"out.codes must be contiguous uint8 of shape {tuple(t.shape)} on {t.device}")
    if len({c.data_ptr() for c in codes if c.numel()}) < sum(c.numel() > 0 for c in codes):
        raise ValueError("out must not share memory within itself")
    return codes


def outputs(
    xs: Sequence[Tensor], kappa: int, out: CodebookPlusSparseResult | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Memory for codes, indices and values: that of ``out``, if given."""
    if out is not None and not isinstance(out, CodebookPlusSparseResult):
        raise TypeError(f"out must be a previous result for such an x, got {type(out).__name__}")
    codes = codes_like(xs, None if out is None else out.codes)
    if out is not None and out.indices.numel() == kappa:
        return codes, out.indices, out.values
    device = xs[0].device
    indices = torch.empty(kappa, dtype=torch.int64, device=device)
    return codes, indices, torch.empty(kappa, dtype=torch.float32, device=device)


def start(init: Tensor | None, k: int, like: Tensor) -> Tensor | None:
    """A warm start: ``k`` ascending codewords."""
    if init is None:
        return None
    book = _check.sorted_codebook(init, "init", like)
    if book.numel() != k:
        raise ValueError(f"init must have shape ({k},), got {tuple(book.shape)}")
    return book


def refuse(status: int) -> None:
    """What the native code found wrong with the values."""
    if status:
        raise ValueError("x contains NaN or Inf" if status == 1 else "weights must be finite and not negative")


def refuse_bad(xs: Sequence[Tensor], hs: Sequence[Tensor] | None) -> None:
    """The same checks in torch."""
    for t in xs:
        _check.finite(t, "x")
    if hs is not None and not all(bool((h.isfinite() & (h >= 0)).all()) for h in hs):
        refuse(2)


def flat(xs: Sequence[Tensor]) -> Tensor:
    """All elements in order."""
    return xs[0].reshape(-1) if len(xs) == 1 else torch.cat([t.reshape(-1) for t in xs])


def split(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flat`."""
    return [part.view(t.shape) for part, t in zip(values.split([t.numel() for t in like]), like, strict=True)]
