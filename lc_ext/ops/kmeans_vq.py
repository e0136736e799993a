"""Vector k-means: codewords of 2, 4 or 8 values, the C step of product quantization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from . import _check

__all__ = ["VQResult", "kmeans_vq", "kmeans_vq_reference"]


class VQResult(NamedTuple):
    """Result of :func:`kmeans_vq`."""

    codebook: Tensor
    codes: Tensor
    distortion: Tensor
    iterations: Tensor


def kmeans_vq(
    x: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    init: Tensor | None = None,
    max_iter: int = 100,
    tol: float = 1e-4,
    generator: torch.Generator | None = None,
    out: VQResult | None = None,
) -> VQResult:
    """Codebook of ``k`` vectors and codes that minimise sum_i h_i |x_i - codebook[codes_i]|^2, locally.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of shape (n, d) or (batch, n, d), finite, n >= 1, d in (2, 4, 8). The
        problems of a batch are independent.
    k : number of codewords, 1 to 256.
    weights : the h_i, of shape (n,) or (batch, n): finite, not negative, not all zero. Default: all one.
    init : warm start, of shape (k, d) or (batch, k, d), finite. Default: k-means++.
    max_iter : bound on the iterations.
    tol : they end when one lowers the distortion by no more than this part of it.
    generator : for the cold start, on the CPU; default: one with a fixed seed.
    out : a previous result for such arguments, whose memory is used again.

    Returns
    -------
    codebook : float32, (k, d) or (batch, k, d). With fewer than k distinct vectors some codewords are repeated.
    codes : uint8, (n,) or (batch, n): the nearest codeword, the lowest index in a tie.
    distortion : float64, () or (batch,): the sum above.
    iterations : int64, () or (batch,): how often the codebook was moved.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Lloyd's iterations from k-means++ (Arthur and Vassilvitskii 2007), which looks at 2**16 evenly spaced vectors where
    there are more. A codeword that has lost its vectors moves to the vector that is worst off. The distortion never
    rises, nor above that of a warm start. Distances are compared in float32 around the mean of ``x``.

    O(n k d) an iteration, n d floats of scratch. The same result for every instruction set and number of threads.
    Devices with no kernel take the plain-torch path.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    >>> found = ops.kmeans_vq(x, 2, init=x[1:])
    >>> found.codebook, found.codes
    (tensor([[0., 1.],
            [9., 9.]]), tensor([0, 0, 1], dtype=torch.uint8))
    """
    x32 = _check.float32(x, "x")
    k = _check.integer(k, "k", 1, 256)
    max_iter = _check.integer(max_iter, "max_iter", 0, 2**31 - 1)
    if not isinstance(tol, (int, float)) or isinstance(tol, bool) or not 0 <= tol < math.inf:
        raise ValueError(f"tol must be a number of at least 0, got {tol!r}")
    if x32.dim() not in (2, 3) or x32.shape[-1] not in (2, 4, 8) or x32.shape[-2] == 0:
        raise ValueError(f"x must have shape (n, d) or (batch, n, d), n >= 1, d in (2, 4, 8), got {tuple(x32.shape)}")
    *batch, n, d = x32.shape
    problems = math.prod(batch)
    h = None if weights is None else _check.float32(weights, "weights", x32)
    if h is not None and h.shape != x32.shape[:-1]:
        raise ValueError(f"weights must have shape {tuple(x32.shape[:-1])}, got {tuple(h.shape)}")
    start = None if init is None else _check.float32(init, "init", x32)
    if start is not None:
        if start.shape != (*batch, k, d):
            raise ValueError(f"init must have shape {(*batch, k, d)}, got {tuple(start.shape)}")
        _check.finite(start, "init")
    if out is not None and not isinstance(out, VQResult):
        raise TypeError(f"out must be a previous result of kmeans_vq, got {type(out).__name__}")
    codebook, codes, distortion, iterations = (
        _check.out(None if out is None else out[i], f"out.{VQResult._fields[i]}", shape, dtype, x32)
        for i, (shape, dtype) in enumerate(
            [
                ((*batch, k, d), torch.float32),
                ((*batch, n), torch.uint8),
                (tuple(batch), torch.float64),
                (tuple(batch), torch.int64),
            ]
        )
    )
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    random = torch.rand(problems, k, generator=generator, dtype=torch.float64, device="cpu")
    if _native.has_kernel("kmeans_vq", x32):
        if start is not None and start.data_ptr() != codebook.data_ptr():
            codebook.copy_(start)
        status = _native.call(
            "kmeans_vq",
            x32,
            h,
            problems,
            n,
            d,
            random,
            k,
            start is not None,
            max_iter,
            float(tol),
            codes,
            codebook,
            distortion,
            iterations,
        )
        for b, s in enumerate(status):
            if s:
                name = f"x[{b}]" if batch else "x"
                raise ValueError(f"{name} contains NaN or Inf" if s == 1 else _BAD_WEIGHTS.format(name))
        return VQResult(codebook, codes, distortion, iterations)
    _check.finite(x32, "x")
    if h is not None and not bool((h.isfinite() & (h >= 0)).all() and (h > 0).any(-1).all()):
        raise ValueError(_BAD_WEIGHTS.format("x"))
    for b in range(problems):
        result = kmeans_vq_reference(
            x32.view(-1, n, d)[b],
            k,
            weights=None if h is None else h.view(-1, n)[b],
            init=None if start is None else start.view(-1, k, d)[b],
            max_iter=max_iter,
            tol=tol,
            random=random[b],
        )
        for target, value in zip((codebook.view(-1, k, d), codes.view(-1, n)), result[:2], strict=True):
            target[b] = value
        distortion.view(-1)[b], iterations.view(-1)[b] = result.distortion, result.iterations
    return VQResult(codebook, codes, distortion, iterations)


_BAD_WEIGHTS = "weights of {} must be finite, not negative and not all zero"


def kmeans_vq_reference(
    x: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    init: Tensor | None = None,
    max_iter: int = 100,
    tol: float = 1e-4,
    random: Tensor | None = None,
) -> VQResult:
    """The same for one problem in plain torch and float64, with a matrix of all distances.

    The meaning the kernels are tested against, and the path of other devices. ``random``: k numbers in [0, 1) for the
    cold start.
    """
    v = x.double()
    h = torch.ones_like(v[:, 0]) if weights is None else weights.double()
    codebook = (_seeds(v, h, k, random) if init is None else init).float()

    def assign(c: Tensor) -> tuple[Tensor, Tensor]:
        nearest, codes = (v[:, None] - c.double()).square().sum(-1).min(1)
        return codes, nearest

    codes, nearest = assign(codebook)
    iterations = 0
    while iterations < max_iter:
        mass = torch.zeros_like(h[:1]).expand(k).clone().index_add_(0, codes, h)
        sums = v.new_zeros(k, v.shape[1]).index_add_(0, codes, h[:, None] * v)
        moved = torch.where(mass[:, None] > 0, (sums / mass[:, None].clamp_min(1e-300)).float(), codebook)
        if bool((mass == 0).any()):
            left = (v[:, None] - moved[mass > 0].double()).square().sum(-1).min(1).values
            for c in (mass == 0).nonzero().flatten().tolist():
                worst = (h * left).argmax()
                if not bool((h * left)[worst] > 0):
                    break
                moved[c] = x[worst].float()
                left = torch.minimum(left, (v - v[worst]).square().sum(-1))
        codes_now, nearest_now = assign(moved)
        before, now = (h * nearest).sum(), (h * nearest_now).sum()
        if torch.equal(moved, codebook) or not bool(now < before):
            break
        codebook, codes, nearest, iterations = moved, codes_now, nearest_now, iterations + 1
        if bool(before - now <= tol * before):
            break
    distortion = (h * nearest).sum()
    return VQResult(codebook, codes.to(torch.uint8), distortion, torch.tensor(iterations))


def _seeds(v: Tensor, h: Tensor, k: int, random: Tensor | None) -> Tensor:
    """k-means++."""
    u = torch.full((k,), 0.5, dtype=torch.float64) if random is None else random
    chosen, nearest = [], torch.ones_like(h)
    for c in range(k):
        shares = (h * nearest).cumsum(0)
        i = int(torch.searchsorted(shares, u[c].to(shares) * shares[-1], right=True).clamp_max(len(h) - 1))
        chosen.append(i)
        distance = (v - v[i]).square().sum(-1)
        nearest = distance if c == 0 else torch.minimum(nearest, distance)
    return v[chosen]
