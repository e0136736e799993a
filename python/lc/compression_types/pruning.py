"""The older toolkit's prunings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lc_ext import ops

from ..compressions import Compression, L0Penalty, L1Ball, L1Penalty, Prune
from ..compressions.base import flat, split
from .base_types import Native, PruningTypeBase, State, array, bits_of, settle, tensor
from .quantization import AdaptiveQuantization

__all__ = ["ConstraintL0Pruning", "ConstraintL1Pruning", "PenaltyL0Pruning", "PenaltyL1Pruning"]

HALF_MAX = 65504.0


class PreciseSurvivors(Prune):
    """Survivors with a codebook of their own, or in half precision."""

    kept_: Tensor  # positions, ascending: a codeword may be zero

    def __init__(self, keep: int, quantize: Compression | None) -> None:
        super().__init__(keep)
        self.quantize = quantize

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: first which, then in what precision."""
        whole = flat(super().fit(v, weights))
        self.kept_ = whole.nonzero().flatten()
        if self.quantize is None:
            whole = whole.clamp(-HALF_MAX, HALF_MAX).half().float()
        elif len(self.kept_):
            whole = whole.index_copy(0, self.kept_, self.quantize.fit([whole[self.kept_]])[0])
        self.values_ = split(whole, v)
        return self.decompress()


class _Pruning(Native, PruningTypeBase):
    precision = 32  # bits of a value

    def prune(self, data: Any) -> Any:
        """The same as ``compress``."""
        return self.compress(data)

    def _values(self) -> Tensor:
        return flat(self.learned.values_)

    def _kept(self) -> Tensor:
        return self._values().nonzero().flatten()

    def _read(self) -> State:
        values, kept = self._values(), self._kept()
        return {"remaining_indx": array(kept), "remaining_values": array(values[kept]), "len": len(values)}

    def _write(self, state: State) -> State:
        values = torch.zeros(int(state["len"]))
        kept = torch.as_tensor(np.asarray(state["remaining_indx"]).reshape(-1)).long()
        values[kept] = tensor(state["remaining_values"]).reshape(-1)
        return {"values_": [values]}

    def count_params(self) -> int:
        """The values that remain."""
        return len(self._kept())

    def count_param_bits(self) -> int:
        """The values that remain, and their positions: each as the distance from the one before, the first from -1."""
        kept = self._kept()
        # gap_bits codes what lies between two positions, the toolkit the distance, which is one more
        apart = kept + torch.arange(1, len(kept) + 1, device=kept.device)
        return self.precision * len(kept) + ops.gap_bits(apart).bits


class ConstraintL0Pruning(_Pruning):
    """The ``kappa`` largest magnitudes. ``precision`` of what remains: "float", 16, or b <= 8: 2**b learned values."""

    def __init__(self, kappa: int, precision: str | int = "float") -> None:
        super().__init__()
        self.kappa = kappa
        self.precision = bits_of(precision, [*range(1, 9), 16, 32])
        if self.precision < 16:
            self.quantizer = AdaptiveQuantization(2**self.precision)
            self.inner: Prune = PreciseSurvivors(kappa, self.quantizer.inner)
        else:
            self.inner = Prune(kappa) if self.precision == 32 else PreciseSurvivors(kappa, None)

    def prepare(self, v: Sequence[Tensor]) -> None:
        super().prepare(v)
        self.inner.keep = min(Prune(self.kappa).keep, sum(t.numel() for t in v))
        if self.precision < 16:
            self.quantizer.step_number = self.step_number
            settle(self.quantizer.inner, v)

    def record(self) -> None:
        found = {"ratio": len(self._values()) - len(self._kept()), "quantizer_info": None}  # the number of zeros
        if self.precision < 16 and self.quantizer.inner.learned:
            self.quantizer.record()
            found["quantizer_info"] = self.quantizer.info[self.step_number][-1]
        self.info.setdefault(self.step_number, []).append(found)

    def _kept(self) -> Tensor:
        return self.learned.kept_ if self.precision < 32 else super()._kept()

    def _read(self) -> State:
        return super()._read() | {"quantizer_state": self.quantizer.state_dict if self.precision < 16 else None}

    def _write(self, state: State) -> State:
        if self.precision < 16 and state["quantizer_state"] is not None:
            self.quantizer.load_state_dict(state["quantizer_state"])
        kept = torch.as_tensor(np.asarray(state["remaining_indx"]).reshape(-1)).long().sort().values
        return super()._write(state) | ({"kept_": kept} if self.precision < 32 else {})

    def count_params(self) -> int:
        """The values that remain, or their codes, and the codebook if they have one."""
        return super().count_params() + (2**self.precision if self.precision < 16 else 0)

    def count_param_bits(self) -> int:
        """Values or codes, the gaps between their positions, and the codebook."""
        return super().count_param_bits() + (32 * 2**self.precision if self.precision < 16 else 0)


class ConstraintL1Pruning(_Pruning):
    """The nearest point with an l1 norm of at most ``kappa``."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa
        self.inner = L1Ball(kappa)

    def prepare(self, v: Sequence[Tensor]) -> None:
        super().prepare(v)
        self.inner.radius = float(self.kappa)  # type: ignore[attr-defined]


class PenaltyL0Pruning(_Pruning):
    """``alpha`` times the number of weights that remain; all are zero where mu is."""

    make: Callable[[float], Compression] = L0Penalty

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.inner = type(self).make(alpha)

    def prepare(self, v: Sequence[Tensor]) -> None:
        super().prepare(v)
        self.inner.alpha = float(self.alpha)  # type: ignore[attr-defined]


class PenaltyL1Pruning(PenaltyL0Pruning):
    """``alpha`` times the l1 norm; all are zero where mu is."""

    make = L1Penalty
