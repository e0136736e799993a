"""Low rank: a product of two factors, of a rank that is given or learned."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from torch import Tensor, nn

from lc_ext import ops
from lc_ext.nn import LowRankConv1d, LowRankConv2d, LowRankLinear, PackedLayer, PackedLinear

from .base import Compression

__all__ = ["LowRank", "RankSelection", "Tucker2"]


class _Factors(Compression):
    """u_ @ v_, as the tensor whose matrix it is."""

    trainable = ("u_", "v_")
    u_: Tensor
    v_: Tensor
    shape_: tuple[int, ...]
    scheme: int

    def _matrix(self, v: Sequence[Tensor]) -> Tensor:
        if len(v) != 1 or v[0].dim() < 2:
            shapes = [tuple(t.shape) for t in v]
            raise ValueError(
                f"{type(self).__name__} takes one tensor of two dimensions or more, not joint=True; got {shapes}"
            )
        self.shape_ = tuple(v[0].shape)
        if v[0].dim() == 4:
            return ops.conv_as_matrix(v[0], self.scheme)
        return v[0].reshape(v[0].shape[0], -1)

    def _keep(self, svd: ops.SVDResult) -> None:
        root = svd.s.sqrt()
        self.u_, self.v_ = svd.u * root, root[:, None] * svd.vh

    def decompress(self) -> list[Tensor]:
        matrix = self.u_ @ self.v_
        return [
            ops.matrix_as_conv(matrix, self.shape_, self.scheme) if len(self.shape_) == 4 else matrix.view(self.shape_)
        ]

    def weight_bits(self) -> int:
        return 32 * (self.u_.numel() + self.v_.numel())

    def bits(self) -> int:
        return self.weight_bits()

    def summary(self) -> dict[str, float]:
        return {"rank": self.u_.shape[1]}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        if len(self.shape_) == 4 and self.scheme == 2:
            return None  # their product is another matrix
        return LowRankLinear.from_factors(self.u_, self.v_, bias)

    def conv(self, i: int, dense: nn.Module, bias: Tensor | None) -> PackedLayer | None:
        cls = LowRankConv1d if len(self.shape_) == 3 else LowRankConv2d
        return cls.from_factors(self.u_, self.v_, dense, 1 if len(self.shape_) == 3 else self.scheme, bias)


class LowRank(_Factors):
    """A product of two factors of ``rank`` columns and rows.

    Parameters
    ----------
    rank : at least 1 and below both sides of the matrix.
    scheme : how the kernel of a 2-d convolution becomes a matrix: 1, (outputs, inputs * height * width), or 2,
        (outputs * height, inputs * width); see :func:`lc_ext.ops.conv_as_matrix`. Other tensors are the matrix of their
        first dimension against the rest.

    Examples
    --------
    >>> (low,) = lc.LowRank(2).fit([torch.randn(20, 10)])
    >>> int(torch.linalg.matrix_rank(low))
    2
    """

    def __init__(self, rank: int, *, scheme: int = 1) -> None:
        if isinstance(rank, bool) or not isinstance(rank, SupportsIndex) or operator.index(rank) < 1:
            raise ValueError(f"rank must be an int of at least 1, got {rank!r}")
        if scheme not in (1, 2):
            raise ValueError(f"scheme must be 1 or 2, got {scheme!r}")
        self.rank = operator.index(rank)
        self.scheme = scheme

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: truncated SVD, warm-started from the previous right factor.

        A few block steps from there; the next C step goes on from where they ended.
        """
        warm = self.v_.to(v[0].device) if self.learned else None
        matrix = self._matrix(v)
        if self.rank >= min(matrix.shape):
            raise ValueError(f"rank must be below {min(matrix.shape)} for shape {tuple(v[0].shape)}, got {self.rank}")
        self._keep(ops.truncated_svd(matrix, self.rank, warm=warm, tol=1e-4, max_steps=2))
        return self.decompress()

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return super().cost(shapes) * (1 + self.rank)


class RankSelection(_Factors):
    """The rank too is learned: it minimises alpha C(r) + (mu/2) ||v - theta||^2 (Idelbayev and Carreira-Perpinan 2020).

    Parameters
    ----------
    alpha : price of a unit of cost.
    cost : "storage", "flops", or a cost for each rank: see :func:`lc_ext.ops.rank_select`.
    normalize : divide the distance by ||v||^2.
    scheme : as for :class:`LowRank`.

    Notes
    -----
    Where no factorisation pays, the tensor stays dense; at direct compression (mu = 0) every cost outweighs the
    distance, and the rank is zero.

    Examples
    --------
    >>> lc.RankSelection(1e-6, cost="flops")
    RankSelection(alpha=1e-06, criterion='flops', normalize=False, scheme=1)
    """

    penalised = True
    dense_: list[Tensor]  # the tensor itself, where it stays dense
    known_: Tensor  # right singular vectors, some more than the rank: the next choice can only rest on those beyond

    def __init__(
        self,
        alpha: float,
        *,
        cost: str | ops.RankCost | Tensor | Mapping[int, float] = "storage",
        normalize: bool = False,
        scheme: int = 1,
    ) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha, self.criterion, self.normalize, self.scheme = float(alpha), cost, normalize, scheme

    def fit(self, v: Sequence[Tensor], mu: float = 0.0) -> list[Tensor]:
        """The C step for penalty parameter ``mu``."""
        known = vars(self).get("known_", vars(self).get("v_"))
        warm = known.to(v[0].device) if known is not None and known.shape[0] else None
        matrix = self._matrix(v)
        self.dense_ = []
        if mu == 0:
            self.u_, self.v_, self.known_ = matrix[:, :0].clone(), matrix[:0].clone(), matrix[:0].clone()
            return self.decompress()
        chosen = ops.rank_select(
            matrix, self.alpha / mu, cost=self.criterion, normalize=self.normalize, warm=warm, tol=1e-4, max_steps=2
        )
        self.known_ = chosen.computed.vh[: chosen.rank + 6].clone()
        if chosen.dense:
            self.dense_ = [v[0].clone()]
            self.u_, self.v_ = matrix[:, :0].clone(), matrix[:0].clone()
        else:
            self._keep(chosen.svd)
        return self.decompress()

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        return super().cost(shapes) * (1 + min(shapes[0][0], math.prod(shapes[0][1:])) / 4)

    def decompress(self) -> list[Tensor]:
        return [self.dense_[0].clone()] if self.dense_ else super().decompress()

    def weight_bits(self) -> int:
        return 32 * self.dense_[0].numel() if self.dense_ else super().weight_bits()

    def summary(self) -> dict[str, float]:
        return {"rank": min(self.shape_[0], self.dense_[0][0].numel()) if self.dense_ else self.u_.shape[1]}

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        return None if self.dense_ or not self.u_.shape[1] else super().linear(i, bias)

    def conv(self, i: int, dense: nn.Module, bias: Tensor | None) -> PackedLayer | None:
        return None if self.dense_ or not self.u_.shape[1] else super().conv(i, dense, bias)


class Tucker2(Compression):
    """A smaller kernel between two changes of channels: the Tucker-2 decomposition of a convolution.

    Parameters
    ----------
    ranks : output and input channels of the smaller kernel.

    Examples
    --------
    >>> (kernel,) = lc.Tucker2((4, 3)).fit([torch.randn(16, 8, 3, 3)])
    >>> kernel.shape
    torch.Size([16, 8, 3, 3])
    """

    trainable = ("core_", "output_", "input_")
    core_: Tensor
    output_: Tensor
    input_: Tensor

    def __init__(self, ranks: tuple[int, int]) -> None:
        if len(ranks) != 2 or any(isinstance(r, bool) or r < 1 for r in ranks):
            raise ValueError(f"ranks must be two ints of at least 1, got {ranks!r}")
        self.ranks = (int(ranks[0]), int(ranks[1]))

    def fit(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The C step: alternating least squares, warm-started."""
        if len(v) != 1 or v[0].dim() < 3:
            raise ValueError(f"Tucker2 takes the kernel of one convolution, got {[tuple(t.shape) for t in v]}")
        warm: Any = ops.Tucker2Result(self.core_, self.output_, self.input_, 0.0) if self.learned else None
        result = ops.tucker2(v[0], self.ranks, warm=warm)
        self.core_, self.output_, self.input_ = result.core, result.output, result.input
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        return [ops.tucker2_weight(self.core_, self.output_, self.input_)]

    def weight_bits(self) -> int:
        return 32 * (self.core_.numel() + self.output_.numel() + self.input_.numel())

    def bits(self) -> int:
        return self.weight_bits()

    def summary(self) -> dict[str, float]:
        return {"output rank": self.ranks[0], "input rank": self.ranks[1]}
