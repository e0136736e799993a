"""The older toolkit's quantizations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..compressions import Binary, Quantize, Ternary
from ..compressions.base import flat
from .base_types import Native, State, array, tensor

__all__ = [
    "AdaptiveQuantization",
    "BinaryQuantization",
    "OptimalAdaptiveQuantization",
    "ScaledBinaryQuantization",
    "ScaledTernaryQuantization",
]


class AdaptiveQuantization(Native):
    """A codebook of ``k`` values, 2 to 256, learned by k-means; warm-started."""

    method = "auto"

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k_ = k
        self.inner = Quantize(k, method=self.method)  # type: ignore[arg-type]

    def record(self) -> None:
        self.info.setdefault(self.step_number, []).append({"cluster_centers": array(self.learned.codebook_)})

    def _read(self) -> State:
        codes = array(flat(self.learned.codes_))
        return {
            "cluster_centers": array(self.learned.codebook_)[:, None],
            "assignments": np.packbits(codes) if self.k_ == 2 else codes,
            "data_shape": codes.shape,
        }

    def _write(self, state: State) -> State:
        codes = np.asarray(state["assignments"])
        codes = np.unpackbits(codes)[: math.prod(state["data_shape"])] if self.k_ == 2 else codes
        codebook, order = tensor(state["cluster_centers"]).reshape(-1).sort()
        rank = order.argsort().to(torch.uint8)
        return {"codebook_": codebook, "codes_": [rank[torch.as_tensor(codes).long()]]}

    def count_params(self) -> int:
        """A code for each weight, and the codebook."""
        return flat(self.learned.codes_).numel() + self.k_

    def count_param_bits(self) -> int:
        return int(self.learned.bits())


class OptimalAdaptiveQuantization(AdaptiveQuantization):
    """The same, by the exact solution of k-means in one dimension."""

    method = "optimal"


class _Levels(Native):
    def _codes(self) -> Tensor:
        return flat(self.learned.codes_)

    def count_params(self) -> int:
        """A code for each weight, and the scale if there is one."""
        return self._codes().numel() + int(self.learned.scaled)

    def count_param_bits(self) -> int:
        return int(self.learned.bits())


class ScaledBinaryQuantization(_Levels):
    """{-a, a}, with a learned."""

    scaled = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = Binary(scaled=self.scaled)

    def _read(self) -> State:
        codes = array(self._codes())
        centers = array(self.learned.codebook_)
        return {"assignments_packed": np.packbits(codes), "centers": centers, "data_shape": codes.shape}

    def _write(self, state: State) -> State:
        codes = np.unpackbits(state["assignments_packed"])[: math.prod(state["data_shape"])]
        return {"scale_": tensor(state["centers"])[1], "codes_": [torch.as_tensor(codes)]}


class BinaryQuantization(ScaledBinaryQuantization):
    """{-1, 1}."""

    scaled = False


class ScaledTernaryQuantization(_Levels):
    """{-a, 0, a}, with a learned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Ternary()

    def _read(self) -> State:
        return {"assignments": array(self._codes().float() - 1), "scale": float(self.learned.scale_)}

    def _write(self, state: State) -> State:
        codes = torch.as_tensor(np.asarray(state["assignments"]).reshape(-1) + 1).to(torch.uint8)
        return {"scale_": torch.tensor(float(state["scale"])), "codes_": [codes]}
