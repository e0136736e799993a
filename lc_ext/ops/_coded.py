"""Values that are floats, or codes of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check

__all__ = ["check_values", "decoded"]


def check_values(values: Tensor, codebook: Tensor | None) -> None:
    """Dtypes, and the shape of the codebook."""
    _check.tensor(values, "values")
    if codebook is None:
        if values.dtype not in _check.FLOATS:
            raise TypeError(f"values must be float32, float16 or bfloat16 without a codebook, got {values.dtype}")
        return
    _check.tensor(codebook, "codebook")
    if values.dtype != torch.uint8:
        raise TypeError(f"values must be uint8 codes with a codebook, got {values.dtype}")
    if codebook.dtype not in _check.FLOATS:
        raise TypeError(f"codebook must be float32, float16 or bfloat16, got {codebook.dtype}")
    if codebook.dim() != 1 or not 1 <= codebook.numel() <= 256:
        raise ValueError(f"codebook must be a vector of 1 to 256 codewords, got shape {tuple(codebook.shape)}")


def decoded(values: Tensor, codebook: Tensor | None, check_only: bool = False) -> Tensor:
    """The floats, of the dtype of the codebook if there is one; codes past its end and a codebook that is not finite
    are refused."""
    if codebook is None:
        return values
    _check.finite(codebook, "codebook")
    k = codebook.numel()
    if values.numel() and k < 256 and int(values.max()) >= k:
        raise ValueError(f"values must be codes below the size of the codebook, {k}, got {int(values.max())}")
    return values if check_only else codebook.detach()[values.long()]
