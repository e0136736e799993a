"""Sparsity and a codebook chosen together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lc_ext import ops
from lc_ext.nn import PackedLinear, SparseLinear

from .base import Compression
from .prune import Prune, Sparse

__all__ = ["SparseCodebook"]


class SparseCodebook(Sparse):
    """At most ``keep`` nonzeros that share a codebook of ``k`` values: support and codebook are chosen together.

    Parameters
    ----------
    k : nonzero codewords, 1 to 255.
    keep : int, the number of nonzeros; or float in [0, 1], a fraction, rounded.
    init : where the codebook of the first C step starts. "kmeans": from the optimum on a histogram. "linear": evenly
        spaced from the least to the greatest survivor, which leaves more codewords to the large weights (Han et al.
        2016). Later C steps start from the codebook before.
    per : None: one codebook for the whole group. "tensor": one for each tensor. Then ``keep``, which is of the whole
        group still, is shared out by magnitude, and each tensor is fitted with its share.

    Examples
    --------
    >>> lc.SparseCodebook(1, 2).fit([torch.tensor([[-2.0, -1.0, 0.5, 2.0]])])
    [tensor([[-1.5000, -1.5000,  0.0000,  0.0000]])]
    >>> lc.SparseCodebook(2, 3, per="tensor").fit([torch.tensor([-2.0, 2.0]), torch.tensor([0.0, 3.0])])
    [tensor([-2.,  2.]), tensor([0., 3.])]
    """

    weighted = True
    trainable = ("codebook_",)
    codebook_: Tensor  # zero first; with codebooks per tensor, a row for each
    codes_: list[Tensor]
    support_: list[tuple[Tensor, Tensor]]  # while finetuning: where a tensor is not zero, and the codewords there

    def __init__(
        self,
        k: int,
        keep: int | float,
        *,
        init: Literal["kmeans", "linear"] = "kmeans",
        per: Literal["tensor"] | None = None,
    ) -> None:
        if isinstance(k, bool) or not 1 <= k <= 255:
            raise ValueError(f"k must be an int from 1 to 255, got {k!r}")
        if init not in ("kmeans", "linear"):
            raise ValueError(f"init must be 'kmeans' or 'linear', got {init!r}")
        if per not in (None, "tensor"):
            raise ValueError(f"per must be None or 'tensor', got {per!r}")
        self.k = int(k)
        self.keep = Prune(keep).keep
        self.init = init
        self.per = per

    def fit(self, v: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The C step: k-means with a pinned zero under a count constraint, warm-started."""
        h = None if weights is None else list(weights)
        kappa = Prune(self.keep).count(sum(t.numel() for t in v))
        if self.per is None:
            self.codebook_, self.codes_, _ = self._group(list(v), kappa, h, 0)
            return self.decompress()
        shares = [int(t.count_nonzero()) for t in ops.topk_prune(list(v), kappa, weights=h).values]
        fitted = self._each(v, shares, h)
        if self.learned:
            before = self._distortion(v, h)
            if sum(distortion for *_, distortion in fitted) > before:  # the shares of before are no worse than before
                fitted = self._each(v, [int(codes.count_nonzero()) for codes in self.codes_], h)
        self.codebook_ = torch.stack([book for book, _, _ in fitted])
        self.codes_ = [codes[0] for _, codes, _ in fitted]
        return self.decompress()

    def _each(
        self, v: Sequence[Tensor], shares: Sequence[int], h: list[Tensor] | None
    ) -> list[tuple[Tensor, list[Tensor], float]]:
        hs = [None] * len(v) if h is None else [[t] for t in h]
        return [self._group([t], n, hs[i], i) for i, (t, n) in enumerate(zip(v, shares, strict=True))]

    def _distortion(self, v: Sequence[Tensor], h: list[Tensor] | None) -> float:
        squares = [(t.double() - d).square() for t, d in zip(v, self.decompress(), strict=True)]
        return sum(float((s if h is None else s * h[i]).sum()) for i, s in enumerate(squares))

    def _group(self, v: list[Tensor], kappa: int, h: list[Tensor] | None, i: int) -> tuple[Tensor, list[Tensor], float]:
        """Codebook, zero first, codes and distortion of tensors that share a codebook, number i."""
        start = None
        if self.learned:
            start = self._codebook(i)[1:].to(v[0].device)
        elif self.init == "linear":
            kept = torch.cat([t.flatten() for t in ops.topk_prune(v, kappa, weights=h).values])
            kept = kept[kept != 0]
            if kept.numel():
                start = torch.linspace(float(kept.min()), float(kept.max()), self.k, device=kept.device)
        result = ops.sparse_codebook(v, self.k, kappa, weights=h, init=start)
        return torch.cat([result.codebook.new_zeros(1), result.codebook]), list(result.codes), result.distortion

    def _codebook(self, i: int) -> Tensor:
        return self.codebook_ if self.codebook_.dim() == 1 else self.codebook_[i]

    @property
    def values_(self) -> list[Tensor]:  # type: ignore[override]
        """The weights, with the zeros in place."""
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        if hasattr(self, "support_"):
            return [self._spread(i, *support) for i, support in enumerate(self.support_)]
        return [self._codebook(i)[codes.long()] for i, codes in enumerate(self.codes_)]

    def _spread(self, i: int, places: Tensor, codes: Tensor) -> Tensor:
        """Tensor i; its gradient with respect to a codeword is the sum of those of the codeword's weights."""
        book = self._codebook(i)
        flat = book.new_zeros(self.codes_[i].numel()).index_put((places,), book.index_select(0, codes))
        return flat.view(self.codes_[i].shape)

    def start_finetuning(self) -> list[nn.Parameter]:
        """The codes are the mask."""
        places = [codes.flatten().nonzero().flatten() for codes in self.codes_]
        self.support_ = [(at, codes.flatten()[at].long()) for at, codes in zip(places, self.codes_, strict=True)]
        return Compression.start_finetuning(self)

    def finish_finetuning(self) -> None:
        """Also sort the codebooks again."""
        Compression.finish_finetuning(self)
        del self.support_
        nonzero, order = self.codebook_[..., 1:].sort(-1)
        self.codebook_ = torch.cat([torch.zeros_like(nonzero[..., :1]), nonzero], -1)
        ranks = 1 + order.argsort(-1)
        ranks = torch.cat([torch.zeros_like(ranks[..., :1]), ranks], -1).to(torch.uint8).view(-1, self.k + 1)
        self.codes_ = [ranks[i if len(ranks) > 1 else 0][codes.long()] for i, codes in enumerate(self.codes_)]

    def weight_bits(self) -> int:
        return math.ceil(math.log2(max(self.k, 2))) * sum(int(c.count_nonzero()) for c in self.codes_)

    def bits(self) -> int:
        return super().bits() + 32 * (self.codebook_.numel() - self.codebook_.numel() // (self.k + 1))

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        """Codes of the codewords that this tensor uses."""
        matrix = self.codes_[i].flatten(1)
        values, columns, row_starts = ops.dense_to_csr(matrix.float())
        used, codes = values.long().unique(return_inverse=True)
        codebook = self._codebook(i)[used] if used.numel() else self.codebook_.new_zeros(1)
        return SparseLinear.from_csr(
            codes.to(torch.uint8), columns, row_starts, matrix.shape[1], bias, codebook.contiguous()
        )
