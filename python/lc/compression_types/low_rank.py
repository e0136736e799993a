"""The older toolkit's low-rank compressions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lc_ext import ops
from lc_ext.nn import PackedLinear

from .. import compressions as new
from .base_types import Array, Native, State, array, bits_of, settle, tensor

__all__ = ["LowRank", "RankSelection"]

SCHEMES = {None: 1, "scheme_1": 1, "scheme_2": 2}


class AnyRank(new.LowRank):
    """Of any rank, the full one included, where the matrix stays as it is; its factors in half precision if asked."""

    def __init__(self, rank: int, scheme: int, half: bool = False) -> None:
        super().__init__(rank, scheme=scheme)
        self.half = half

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step."""
        if self.rank >= min(as_matrix(v[0], self.scheme).shape):
            self.u_, self.v_ = trivial_factors(self._matrix(v))
        else:
            super().fit(v)
        if self.half:
            self.u_, self.v_ = self.u_.half().float(), self.v_.half().float()
        return self.decompress()

    @property
    def full(self) -> bool:
        """Whether one of the factors is an identity."""
        return self.u_.shape[1] == min(self.u_.shape[0], self.v_.shape[1])

    def weight_bits(self) -> int:
        return 32 * math.prod(self.shape_) if self.full else super().weight_bits()

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        return None if self.full else super().linear(i, bias)


class LowRank(Native):
    """Two factors of ``target_rank``; the matrix as it is from its full rank on.

    ``conv_scheme``: "scheme_1", also None, or "scheme_2". ``precision`` of the factors: "float", or 16.
    """

    def __init__(self, target_rank: int, conv_scheme: str | None = None, precision: str | int = "float") -> None:
        super().__init__()
        self.target_rank = target_rank
        self.conv_scheme = conv_scheme
        self.precision = bits_of(precision, [16, 32])
        self.inner = AnyRank(target_rank, scheme_number(conv_scheme), half=self.precision == 16)

    def prepare(self, v: Sequence[Tensor]) -> None:
        inner: Any = self.inner
        if inner.learned and (tuple(inner.shape_) != tuple(v[0].shape) or inner.rank != self.target_rank):
            del inner.u_, inner.v_, inner.shape_  # no warm start
        inner.rank = self.target_rank
        super().prepare(v)

    def record(self) -> None:
        values = self.learned.u_.square().sum(0)  # of the factors, each with the roots of the singular values
        self.info[self.step_number] = {"selected_rank": self._rank(), "singular_values": array(values)}

    def _rank(self) -> int | None:
        return None

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self.learned.u_, self.learned.v_

    def _read(self) -> State:
        u, v = (array(t.half() if self.precision == 16 else t) for t in self._factors())
        return {"U": u, "V": v, "selected_rank": self._rank(), "init_shape": tuple(self.learned.shape_)}

    def _write(self, state: State) -> State:
        u, v = tensor(state["U"]), tensor(state["V"])
        return {"u_": u, "v_": v, "shape_": tuple(state["init_shape"])}

    def uncompress_state(self) -> Array:
        """The projection, in its own shape."""
        return array(self.learned.decompress()[0])

    def count_params(self) -> int:
        """The elements of the factors, or of the matrix where it is kept as it is."""
        return int(self.learned.weight_bits()) // 32

    def count_param_bits(self) -> int:
        return self.count_params() * self.precision


class RankSelection(LowRank):
    """The rank is learned: ``alpha`` times storage or multiply-adds of the factors against the distance.

    ``criterion``: "storage", or "flops", for which ``module.multiplier`` is the number of output positions, as the
    toolkit's FLOPs counter leaves it. ``normalize``: divide the distance by the squared norm.
    """

    def __init__(
        self,
        conv_scheme: str | None,
        alpha: float,
        criterion: str = "storage",
        normalize: bool = False,
        module: Any = None,
    ) -> None:
        super().__init__(1, conv_scheme)
        self.alpha, self.criterion, self.normalize_matrix, self.module = alpha, criterion, normalize, module
        self.inner = new.RankSelection(alpha, normalize=normalize, scheme=scheme_number(conv_scheme))

    def prepare(self, v: Sequence[Tensor]) -> None:
        settle(self.inner, v)
        inner: Any = self.inner
        inner.alpha = float(self.alpha)
        inner.cost = "storage" if self.criterion == "storage" else multiply_adds(v[0], inner.scheme, self.module)

    @property
    def selected_rank(self) -> int:
        """The rank of the last C step; 0 before the first."""
        return int(self.inner.summary()["rank"]) if self.inner.learned else 0

    def _rank(self) -> int | None:
        return self.selected_rank

    def _factors(self) -> tuple[Tensor, Tensor]:
        if self.learned.dense_:
            return trivial_factors(as_matrix(self.learned.dense_[0], self.learned.scheme))
        return super()._factors()

    def _write(self, state: State) -> State:
        learned = super()._write(state) | {"dense_": []}
        whole = AnyRank(1, self.inner.scheme)  # type: ignore[attr-defined]
        whole.load_state_dict(learned)
        if whole.full:  # only the tensor itself is kept
            learned |= {"dense_": whole.decompress(), "u_": whole.u_[:, :0], "v_": whole.v_[:0]}
        return learned


def as_matrix(weight: Tensor, scheme: int) -> Tensor:
    """The matrix that is to be of low rank."""
    return ops.conv_as_matrix(weight, scheme) if weight.dim() == 4 else weight.flatten(1)


def trivial_factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix and an identity, in the order that makes the factors small."""
    rows, cols = matrix.shape
    eye = torch.eye(min(rows, cols), dtype=matrix.dtype, device=matrix.device)
    return (eye, matrix) if rows < cols else (matrix, eye)


def scheme_number(conv_scheme: str | None) -> int:
    """1 or 2."""
    if conv_scheme not in SCHEMES:
        raise ValueError(f'conv_scheme must be None, "scheme_1" or "scheme_2", got {conv_scheme!r}')
    return SCHEMES[conv_scheme]


def multiply_adds(weight: Tensor, scheme: int, module: Any) -> ops.RankCost:
    """Those of a layer with ``module.multiplier`` output positions, and of each rank of its factors.

    The first convolution of scheme 2 strides along the width alone: it has ``stride`` times as many rows of outputs.
    """
    rows, cols = as_matrix(weight, scheme).shape
    stride = getattr(module, "stride", 1)
    tall = (stride if isinstance(stride, int) else stride[0]) if weight.dim() == 4 and scheme == 2 else 1
    return ops.RankCost((rows + cols * tall) * module.multiplier, weight.numel() * module.multiplier)
