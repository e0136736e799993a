"""Tucker decomposition of a convolution kernel on its two channel modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from .truncated_svd import truncated_svd

__all__ = ["Tucker2Result", "tucker2", "tucker2_weight"]


class Tucker2Result(NamedTuple):
    """Result of :func:`tucker2`: weight[i, j] is about the sum over a, b of output[i, a] core[a, b] input[j, b]."""

    core: Tensor
    output: Tensor
    input: Tensor
    error: float

    def convs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Kernels of three convolutions, in the order in which they are applied: 1 x 1 from the input channels to
        r_in, d1 x d2 with the stride, padding and dilation of the original, 1 x 1 to the output channels, with its
        bias."""
        return self.input.t()[:, :, None, None], self.core, self.output[:, :, None, None]


def tucker2(
    weight: Tensor,
    ranks: Sequence[int],
    *,
    warm: Tucker2Result | None = None,
    sweeps: int = 10,
    tol: float = 1e-5,
) -> Tucker2Result:
    """Approximation of a kernel by a smaller kernel between two changes of channels, in the least-squares sense.

    Parameters
    ----------
    weight : float32, float16 or bfloat16 tensor of shape (n, m, d1, d2): n output and m input channels. Finite. More
        or fewer spatial dimensions will do.
    ranks : (r_out, r_in), 1 <= r_out <= n and 1 <= r_in <= m.
    warm : an earlier result, of a similar weight and the same ranks, to start from.
    sweeps : bound on the alternations, at least 1.
    tol : they end when one lowers the squared error by less than this part of it.

    Returns
    -------
    core : (r_out, r_in, d1, d2).
    output : (n, r_out), orthonormal columns.
    input : (m, r_in), orthonormal columns.
    error : squared error, as the alternation computes it: ||weight||^2 - ||core||^2.

    Raises
    ------
    TypeError, ValueError : for another dtype or shape, NaN or Inf, ranks out of range, a warm start of another shape.

    Notes
    -----
    Tucker-2 (Kim et al. 2016) by higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle 2000): each
    half of a sweep is a truncated SVD of the kernel projected on the other basis, so the error never rises. It starts
    from the singular vectors of the unfolding (HOSVD), or from ``warm``. A local optimum; the start alone is within
    a factor of two of the best squared error.

    Examples
    --------
    >>> found = ops.tucker2(torch.randn(16, 8, 3, 3), (4, 3))
    >>> found.core.shape, found.output.shape, found.input.shape
    (torch.Size([4, 3, 3, 3]), torch.Size([16, 4]), torch.Size([8, 3]))
    """
    w = _check.float32(weight, "weight")
    if w.dim() < 2 or not w.numel():
        raise ValueError(f"weight must have shape (n, m, ...), got {tuple(w.shape)}")
    _check.finite(w, "weight")
    if not isinstance(ranks, Sequence) or len(ranks) != 2:
        raise ValueError(f"ranks must be a pair (r_out, r_in), got {ranks!r}")
    n, m = w.shape[:2]
    r_out, r_in = (_check.integer(r, "ranks", 1, side) for r, side in zip(ranks, (n, m), strict=True))
    sweeps = _check.integer(sweeps, "sweeps", 1)
    cube = w.reshape(n, m, -1)
    if warm is not None:
        basis, other = _check.float32(warm.input, "warm", w), _check.float32(warm.output, "warm", w)
        if basis.shape != (m, r_in) or other.shape != (n, r_out):
            raise ValueError(
                f"warm must have factors {(n, r_out)} and {(m, r_in)}, got {tuple(other.shape)}, {tuple(basis.shape)}"
            )
        inner: Tensor = torch.linalg.qr(basis)[0]
        outer: Tensor | None = other
    else:
        inner, outer = _basis(cube.transpose(0, 1), r_in, None), None
    energy = float(torch.linalg.vector_norm(cube, dim=(1, 2)).double().square().sum())
    before = float("inf")
    for _ in range(sweeps):
        outer = _basis(torch.einsum("nms,mr->nrs", cube, inner), r_out, outer)
        half = torch.einsum("nms,nr->mrs", cube, outer)
        inner = _basis(half, r_in, inner)
        core = torch.einsum("mas,mb->abs", half, inner)
        error = max(energy - float(torch.linalg.vector_norm(core, dim=(1, 2)).double().square().sum()), 0.0)
        if before - error <= tol * error:
            break
        before = error
    assert outer is not None
    return Tucker2Result(core.reshape(r_out, r_in, *w.shape[2:]), outer, inner, error)


def tucker2_weight(core: Tensor, output: Tensor, input: Tensor) -> Tensor:
    """The kernel that a core and two factors stand for: shape (n, m, d1, d2).

    Examples
    --------
    >>> core, output, input, _ = ops.tucker2(torch.randn(16, 8, 3, 3), (4, 3))
    >>> ops.tucker2_weight(core, output, input).shape
    torch.Size([16, 8, 3, 3])
    """
    cube = core.reshape(*core.shape[:2], -1)
    return torch.einsum("na,abs,mb->nms", output, cube, input).reshape(len(output), len(input), *core.shape[2:])


def _basis(cube: Tensor, rank: int, warm: Tensor | None) -> Tensor:
    """Columns that span most of the rows' space: left singular vectors of (rows, all the rest)."""
    unfolded = cube.reshape(cube.shape[0], -1)
    if rank > unfolded.shape[1]:  # then all of it, and any columns besides
        identity = torch.eye(cube.shape[0], dtype=cube.dtype, device=cube.device)
        columns: Tensor = torch.linalg.qr(torch.cat([unfolded, identity], 1))[0]
        return columns[:, :rank]
    return truncated_svd(unfolded.t(), rank, warm=None if warm is None else warm.t()).vh.t()
