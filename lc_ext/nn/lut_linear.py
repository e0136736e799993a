"""Linear layer of codes and a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import _check
from ..ops.lut_linear import MODES, check_codebook, lut_plan, run_lut_linear
from ..ops.pack_codes import check_words, words_per_row
from . import _ops
from ._activations import linear_of
from .one_row import NativeCall
from .packed import PackedLinear

__all__ = ["LUTLinear"]


class LUTLinear(PackedLinear):
    """``y = activation(x @ W.T + bias)`` with ``W[o, i] = codebook[code[o, i]]``.

    Parameters
    ----------
    in_features, out_features : as for ``nn.Linear``.
    bits : bits per code, 1 to 8.
    codebook_size : number of codewords, 1 to ``2**bits``; ``2**bits`` by default.
    bias : whether there is a bias.
    groups : None, for one codebook; or the number of codebooks of each row, for as many groups of consecutive columns;
        it divides ``in_features``.
    mode : arithmetic on the CPU, "exact", "fast" or "int8": see :func:`~lc_ext.ops.lut_linear`. It may be set.
    activation : None, "relu", "gelu", "gelu_tanh" or "silu": see :func:`~lc_ext.ops.activation`. It may be set.

    Attributes
    ----------
    words : int32 buffer of shape (out_features, ceil(in_features * bits / 32)), see :func:`~lc_ext.ops.pack_codes`.
    codebook : float buffer of shape (codebook_size,), or (out_features, codebook_size) for one group, or
        (out_features, groups, codebook_size).
    bias : float buffer of shape (out_features,), or None.

    Raises
    ------
    TypeError, ValueError : for an argument out of range.
    """

    words: Tensor
    codebook: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        codebook_size: int | None = None,
        bias: bool = True,
        groups: int | None = None,
        mode: str = "exact",
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.mode = mode
        self.bits = _check.integer(bits, "bits", 1, 8)
        size = 2**bits if codebook_size is None else _check.integer(codebook_size, "codebook_size", 1, 2**bits)
        shape = (self.out_features, words_per_row(self.in_features, self.bits))
        self.register_buffer("words", torch.zeros(shape, dtype=torch.int32))
        books: tuple[int, ...] = ()
        if groups is not None:
            groups = _check.integer(groups, "groups", 1)
            if self.in_features % groups:
                raise ValueError(f"groups must divide in_features, {self.in_features}, got {groups}")
            books = (self.out_features,) if groups == 1 else (self.out_features, groups)
        self.register_buffer("codebook", torch.zeros(*books, size, dtype=torch.float32))
        self._new_bias(bias)

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self._mode = mode

    @property
    def groups(self) -> int | None:
        """Codebooks of a row, or None: one for all rows."""
        return _groups(self.codebook)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        codebook: Tensor,
        bias: Tensor | None = None,
        bits: int | None = None,
        mode: str = "exact",
    ) -> LUTLinear:
        """A layer with these codes.

        Parameters
        ----------
        codes : uint8 tensor of shape (out_features, in_features), each below the size of the codebook.
        codebook : finite float tensor of shape (k,), (out_features, k) or (out_features, groups, k), 1 <= k <= 256, in
            any order.
        bias : float tensor of shape (out_features,), or None.
        bits : bits per code; by default the fewest that can number the codewords.
        mode : as in the constructor.

        Raises
        ------
        TypeError, ValueError : for another dtype, shape or device, or a code of k or more.
        """
        k = _codebook(codebook)
        bits = max(1, (k - 1).bit_length()) if bits is None else _check.integer(bits, "bits", 1, 8)
        if k > 2**bits:
            raise ValueError(f"codebook must hold at most {2**bits} codewords for {bits} bits, got {k}")
        words = ops.pack_codes(codes, bits)
        check_codebook(codebook, codes.shape[0], bits, codes.shape[1], codes)
        if codes.numel() and int(codes.max()) >= k:
            raise ValueError(f"codes must be below the size of the codebook, {k}, got {int(codes.max())}")
        for name, t in (("codebook", codebook), ("bias", bias)):
            if t is not None and t.device != codes.device:
                raise ValueError(f"{name} must be on {codes.device} like the codes, got {t.device}")
        with torch.device("meta"):
            layer = cls(codes.shape[1], codes.shape[0], bits, k, bias is not None, _groups(codebook), mode)
        layer.words, layer.codebook = words, codebook.detach().clone()
        layer._set_bias(bias)
        return layer

    @classmethod
    def from_dense(cls, linear: nn.Linear | nn.Sequential) -> LUTLinear:
        """A layer with the weight of an ``nn.Linear``, exactly: it must have at most 256 distinct values.

        Parameters
        ----------
        linear : an ``nn.Linear``, or an ``nn.Sequential`` of one and its activation.

        Raises
        ------
        ValueError : for more distinct values, an empty weight, NaN or Inf.
        """
        linear, activation = linear_of(linear)
        weight = linear.weight.detach()
        codebook, codes = torch.unique(weight, return_inverse=True)
        if not 1 <= codebook.numel() <= 256:
            raise ValueError(f"linear.weight must have 1 to 256 distinct values, got {codebook.numel()}")
        layer = cls.from_codes(codes.to(torch.uint8), codebook, linear.bias).train(linear.training)
        layer.activation = activation
        return layer

    def codes(self) -> Tensor:
        """The codes, as a uint8 tensor of shape (out_features, in_features)."""
        return ops.unpack_codes(self.words, self.bits, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor | None = self.straight(x)
        if y is None:
            args = (self.words, self.codebook, self.bits, self.in_features, self.bias, self._mode, self._activation)
            y = _ops.lut_linear(x, *args)
        return y

    def write(self, y: Tensor, x: Tensor, bias: Tensor | None, accumulate: bool, activation: int = 0) -> bool:
        of: dict[str, Any] = self._buffers  # directly: each attribute of a module that is a tensor costs 0.7 us
        if accumulate or not _ops.are_plain(of["codebook"], bias):
            return False
        run_lut_linear(x, of["words"], of["codebook"], self.bits, self.in_features, self._mode, bias, activation, y)
        return True

    def calls(self, bias: Tensor | None, accumulate: bool, activation: int = 0) -> list[NativeCall] | None:
        if accumulate or not _ops.are_plain(self.codebook, bias):
            return None
        plan = lut_plan(self.words, self.codebook, self.bits, self.in_features, self._mode)
        ends = (0 if bias is None else bias.data_ptr(), activation)
        return [NativeCall("lut_linear", (1, *plan.addresses, *ends), plan)]

    def rests_on(self) -> list[tuple[dict[str, Any], str]]:
        return [*super().rests_on(), (self.__dict__, "_mode")]

    def dense_weight(self) -> Tensor:
        weight: Tensor = _ops.lut_decode(self.words, self.codebook, self.bits, self.in_features)
        return weight.to(self.codebook.dtype)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "codebook_size": self.codebook.shape[-1],
            "bias": self.bias is not None,
        }
        if self.groups is not None:
            config["groups"] = self.groups
        if self.mode != "exact":
            config["mode"] = self.mode
        return {**config, **self.activation_config()}

    def check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        super().check_buffers(buffers)
        k = _codebook(buffers["codebook"])
        words = check_words(buffers["words"], self.bits, self.in_features)
        if k < 2**self.bits and words.numel():
            high = int(ops.unpack_codes(words, self.bits, self.in_features).max())
            if high >= k:
                raise ValueError(f"words must hold codes below the size of the codebook, {k}, got {high}")


def _groups(codebook: Tensor) -> int | None:
    return None if codebook.dim() == 1 else 1 if codebook.dim() == 2 else int(codebook.shape[1])


def _codebook(codebook: Tensor) -> int:
    """The size of a valid codebook."""
    _check.float32(codebook, "codebook")
    if not 1 <= codebook.dim() <= 3 or not 1 <= codebook.shape[-1] <= 256:
        raise ValueError(f"codebook must be vectors of 1 to 256 codewords, got shape {tuple(codebook.shape)}")
    _check.finite(codebook, "codebook")
    return codebook.shape[-1]
