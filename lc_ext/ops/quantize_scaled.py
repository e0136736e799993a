"""Fixed codebooks, as they are or times a free scale: the fixed-codebook C steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .. import _native
from . import _check
from .assign import assign_reference
from .pack_codes import pack_codes

__all__ = ["ScaledListResult", "ScaledResult", "quantize_fixed", "quantize_scaled", "quantize_scaled_reference"]


class ScaledResult(NamedTuple):
    """Result of :func:`quantize_scaled` on one tensor."""

    scale: Tensor
    codes: Tensor
    distortion: Tensor


class ScaledListResult(NamedTuple):
    """Result of :func:`quantize_scaled` on a list of tensors."""

    scale: Tensor
    codes: list[Tensor]
    distortion: Tensor


@overload
def quantize_scaled(
    x: Tensor,
    levels: Tensor,
    *,
    weights: Tensor | None = None,
    offsets: Tensor | None = None,
    joint: bool = False,
    packed: bool = False,
    out: ScaledResult | None = None,
) -> ScaledResult: ...
@overload
def quantize_scaled(
    x: Sequence[Tensor],
    levels: Tensor,
    *,
    weights: Sequence[Tensor] | None = None,
    offsets: None = None,
    joint: bool = False,
    packed: bool = False,
    out: ScaledListResult | None = None,
) -> ScaledListResult: ...
def quantize_scaled(
    x: Tensor | Sequence[Tensor],
    levels: Tensor,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    offsets: Tensor | None = None,
    joint: bool = False,
    packed: bool = False,
    out: ScaledResult | ScaledListResult | None = None,
) -> ScaledResult | ScaledListResult:
    """The scale s > 0 and the codes that minimise sum_i h_i (x_i - s * levels[codes_i])^2.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor of any shape, finite; or a list of them on one device, solved in one call.
    levels : float tensor of shape (k,), 1 <= k <= 256, ascending and finite: see :mod:`lc_ext.ops.codebooks`.
    weights : the h_i, like ``x``: finite, not negative. Default: all one.
    offsets : for one tensor, int64 vector of p + 1 ascending boundaries from 0 to its number of elements: a scale of
        its own for each of the p segments of the flattened tensor, such as its rows or groups of 64.
    joint : for a list, one scale for all of it.
    packed : return the codes as rows of packed words (:func:`~lc_ext.ops.pack_codes`) of ``ceil(log2 k)`` bits, at
        least 1, with the first dimension of ``x`` as the rows; a vector is one row.
    out : a previous result for such arguments, whose memory is used again. Fresh memory costs page faults.

    Returns
    -------
    scale : float32, of shape (), or (p,) with offsets, or (len(x),) for a list that is not joint. 0 where no positive
        scale is better than 0: for all zeros, and where no level has the sign of any value.
    codes : uint8, like ``x``: the codeword of ``scale * levels`` (in float32) nearest to x, the lower one in a tie.
    distortion : float64, like ``scale``: the sum above, for the scale returned.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Notes
    -----
    Branch and bound over the scale: the distortion as a function of it is a parabola less a convex function, which
    bounds it between any two scales. Globally optimal but for a relative excess of 1e-8 and the rounding of the
    codewords to float32.

    O(n log k). The same result for every instruction set and number of threads. Devices with no kernel take the
    plain-torch event sweep (Idelbayev et al. 2021), O(n k log n).

    Examples
    --------
    >>> found = ops.quantize_scaled(torch.tensor([-2.0, 0.25, 2.0]), torch.tensor([-1.0, 0.0, 1.0]))
    >>> found.scale, found.codes, float(found.distortion)
    (tensor(2.), tensor([0, 1, 2], dtype=torch.uint8), 0.0625)
    """
    return _quantize(x, levels, weights, offsets, joint, packed, out, None)


def quantize_fixed(
    x: Tensor | Sequence[Tensor],
    levels: Tensor,
    *,
    weights: Tensor | Sequence[Tensor] | None = None,
    packed: bool = False,
    out: ScaledResult | ScaledListResult | None = None,
) -> ScaledResult | ScaledListResult:
    """The nearest of fixed levels: :func:`quantize_scaled` with the scale 1.

    Parameters
    ----------
    x, levels, packed, out : as for :func:`quantize_scaled`.
    weights : the h_i, which change the distortion only.

    Returns
    -------
    scale, codes, distortion : as for :func:`quantize_scaled`; every scale is 1.

    Raises
    ------
    TypeError, ValueError : for another dtype, device, shape or range, or NaN or Inf, naming the argument.

    Examples
    --------
    >>> ops.quantize_fixed(torch.tensor([-0.8, 0.1, 2.0]), torch.tensor([-1.0, 0.0, 1.0])).codes
    tensor([0, 1, 2], dtype=torch.uint8)
    """
    return _quantize(x, levels, weights, None, False, packed, out, 1.0)


def _quantize(
    x: object,
    levels: object,
    weights: object,
    offsets: object,
    joint: bool,
    packed: bool,
    out: object,
    fixed: float | None,
) -> ScaledResult | ScaledListResult:
    single = isinstance(x, Tensor)
    xs = [_check.float32(x, "x")] if single else _check.float32_list(x, "x")
    book = _check.sorted_codebook(levels, "levels", xs[0])
    hs = _weights(weights, xs, single)
    bounds = None if offsets is None else _check.offsets(offsets, "offsets", xs[0], single)
    problems = len(bounds) - 1 if bounds is not None else 1 if joint else len(xs)
    shape = (problems,) if bounds is not None or not (single or joint) else ()
    like = xs[0]
    given, codes_out = _out(out, single, len(xs))
    scale = _check.out(given[0], "out.scale", shape, torch.float32, like)
    distortion = _check.out(given[1], "out.distortion", shape, torch.float64, like)
    bits = max(1, (book.numel() - 1).bit_length())
    codes = [
        _check.out(None if packed else o, "out.codes", t.shape, torch.uint8, t)
        for t, o in zip(xs, codes_out, strict=True)
    ]
    if fixed is not None:
        scale.fill_(fixed)
    if _native.has_kernel("quantize_scaled", like):
        bad, status = _native.call(
            "quantize_scaled",
            xs,
            [t.numel() for t in xs],
            hs or [],
            bounds,
            problems,
            joint and not single,
            book,
            book.numel(),
            fixed is not None,
            codes,
            scale,
            distortion,
        )
        if bad >= 0:
            name = "x" if single or joint else f"x[{bad}]"
            raise ValueError(f"{name} contains NaN or Inf" if status == 1 else _BAD_WEIGHTS.format(name))
    else:
        _by_reference(xs, book, hs, bounds, joint, fixed, codes, scale.view(-1), distortion.view(-1))
    if packed:
        codes = [pack_codes(c, bits, out=o) for c, o in zip([_rows(c, bits) for c in codes], codes_out, strict=True)]
    return ScaledResult(scale, codes[0], distortion) if single else ScaledListResult(scale, codes, distortion)


_BAD_WEIGHTS = "weights of {} must be finite and not negative"


def _rows(codes: Tensor, bits: int) -> Tensor:
    return codes.view(codes.shape[0], -1) if codes.dim() > 1 and codes.numel() else codes.view(1, -1)


def _weights(weights: object, xs: list[Tensor], single: bool) -> list[Tensor] | None:
    if weights is None:
        return None
    hs = [_check.float32(weights, "weights", xs[0])] if single else _check.float32_list(weights, "weights")
    if len(hs) != len(xs) or any(h.shape != t.shape or h.device != t.device for h, t in zip(hs, xs, strict=True)):
        raise ValueError(f"weights must match x in number, shape and device, got {[tuple(h.shape) for h in hs]}")
    return hs


def _out(out: object, single: bool, count: int) -> tuple[tuple[Tensor | None, Tensor | None], list[Tensor | None]]:
    """The scale, the distortion and the codes to use again."""
    if out is None:
        return (None, None), [None] * count
    if single and isinstance(out, ScaledResult):
        return (out.scale, out.distortion), [out.codes]
    if not single and isinstance(out, ScaledListResult) and len(out.codes) == count:
        return (out.scale, out.distortion), list(out.codes)
    raise TypeError(f"out must be a previous result for such an x, got {type(out).__name__}")


def _by_reference(
    xs: list[Tensor],
    book: Tensor,
    hs: list[Tensor] | None,
    bounds: Tensor | None,
    joint: bool,
    fixed: float | None,
    codes: list[Tensor],
    scale: Tensor,
    distortion: Tensor,
) -> None:
    for t in xs:
        _check.finite(t, "x")
    for h in hs or []:
        if not bool((h.isfinite() & (h >= 0)).all()):
            raise ValueError(_BAD_WEIGHTS.format("x"))
    flat = [t.reshape(-1) for t in xs]
    weights = [torch.ones_like(t) for t in flat] if hs is None else [h.reshape(-1) for h in hs]
    places = [c.view(-1) for c in codes]
    if bounds is not None:
        sizes = bounds.diff().tolist()
        flat, weights = list(flat[0].split(sizes)), list(weights[0].split(sizes))
        places = list(places[0].split(sizes))
    if joint:
        sizes = [t.numel() for t in flat]
        whole = torch.cat(places)
        results = [_solve(torch.cat(flat), book, torch.cat(weights), fixed)]
        whole = results[0].codes
        for place, part in zip(places, whole.split(sizes), strict=True):
            place.copy_(part)
    else:
        results = [_solve(t, book, h, fixed) for t, h in zip(flat, weights, strict=True)]
        for place, r in zip(places, results, strict=True):
            place.copy_(r.codes)
    for i, r in enumerate(results):
        scale[i], distortion[i] = r.scale, r.distortion


def _solve(x: Tensor, levels: Tensor, weights: Tensor, fixed: float | None) -> ScaledResult:
    if fixed is None:
        return quantize_scaled_reference(x, levels, weights=weights)
    return _result(x, levels, weights, x.new_tensor(fixed))


def quantize_scaled_reference(x: Tensor, levels: Tensor, *, weights: Tensor | None = None) -> ScaledResult:
    """The same in plain torch and float64: the sweep over all scales at which a value changes its level.

    The meaning the kernels are tested against, and the path of other devices. O(n k log(n k)), with about 100 bytes of
    scratch for each pair of value and level.
    """
    h = torch.ones_like(x) if weights is None else weights
    value, weight, level = x.double().reshape(-1), h.double().reshape(-1), levels.double()
    mids, jumps = (level[1:] + level[:-1]) / 2, level.diff()
    # As s rises from 0, x goes down from the top level, or up from the lowest, to that of zero.
    start = torch.where(value > 0, level[-1], torch.where(value < 0, level[0], level[level.abs().argmin()]))
    a, b = (weight * value * start).sum(), (weight * start.square()).sum()
    event = value[:, None] * mids > 0
    i, j = event.nonzero(as_tuple=True)
    scales, order = (value[i] / mids[j]).sort()
    i, j = i[order], j[order]
    a = torch.cat([a[None], a - (weight[i] * value[i].abs() * jumps[j]).cumsum(0)])
    b = torch.cat([b[None], b - (2 * weight[i] * jumps[j] * mids[j].abs()).cumsum(0)])
    final = torch.cat([scales.diff() > 0, scales.new_ones(1).bool()])[: scales.numel()]  # after all events of a scale
    final = torch.cat([final.new_ones(1), final])
    good = final & (a > 1e-12 * a.abs().max()) & (b > 1e-12 * b.abs().max())
    gain = torch.where(good, a * (a / torch.where(good, b, 1)), 0)
    best = gain.argmax()
    scale = a[best] / b[best] if bool(gain[best] > 0) else a.new_zeros(())
    return _result(x, levels, h, scale.float())


def _result(x: Tensor, levels: Tensor, weights: Tensor, scale: Tensor) -> ScaledResult:
    codebook = scale * levels.float()
    codes = assign_reference(x, codebook)
    error = (x.double() - codebook.double()[codes.long()]).square()
    return ScaledResult(scale, codes, (weights.double() * error).sum())
