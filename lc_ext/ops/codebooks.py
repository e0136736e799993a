"""Fixed codebooks: ascending float32 vectors of levels, for :func:`~lc_ext.ops.quantize_fixed` and
:func:`~lc_ext.ops.quantize_scaled`. Any other ascending vector of 1 to 256 floats serves as well."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check

__all__ = ["binary", "int_symmetric", "nf4", "powers_of_two", "ternary"]


def binary() -> Tensor:
    """{-1, 1}."""
    return _levels([-1.0, 1.0])


def ternary() -> Tensor:
    """{-1, 0, 1}."""
    return _levels([-1.0, 0.0, 1.0])


def powers_of_two(c: int) -> Tensor:
    """{0, +-1, +-1/2, ..., +-2**-c}: 2 c + 3 levels.

    Parameters
    ----------
    c : 0 to 126.
    """
    c = _check.integer(c, "c", 0, 126)
    positive = [2.0**-i for i in range(c, -1, -1)]
    return _levels([-p for p in reversed(positive)] + [0.0] + positive)


def int_symmetric(b: int) -> Tensor:
    """The integers from -(2**(b-1) - 1) to 2**(b-1) - 1: 2**b - 1 levels.

    Parameters
    ----------
    b : bits, 2 to 8.
    """
    most = 2 ** (_check.integer(b, "b", 2, 8) - 1) - 1
    return _levels([float(i) for i in range(-most, most + 1)])


def nf4() -> Tensor:
    """The 16 levels of NormalFloat 4 from -1 to 1 (Dettmers et al. 2023, QLoRA), as bitsandbytes has them."""
    return _levels(
        [
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0,
        ]
    )


def _levels(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")
