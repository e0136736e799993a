"""tucker2: errors, monotone sweeps, and three convolutions for one."""

import itertools

import pytest
import torch
from torch.nn.functional import conv2d

from lc_ext import ops


def error(weight, result):
    return float((weight.double() - ops.tucker2_weight(*(t.double() for t in result[:3]))).square().sum())


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (40, 30, 3, 3), (8, 3, 1, 1), (5, 4, 2), (7, 6)])
def test_error_and_orthonormal_factors(rng, shape):
    weight = torch.randn(shape, generator=rng)
    for ranks in ((1, 1), (3, 2), (shape[0], shape[1])):
        got = ops.tucker2(weight, ranks)
        assert got.core.shape == (*ranks, *shape[2:])
        assert got.error == pytest.approx(error(weight, got), rel=1e-4, abs=1e-5 * float(weight.square().sum()))
        for factor in (got.output, got.input):
            torch.testing.assert_close(factor.t() @ factor, torch.eye(factor.shape[1]), rtol=0, atol=1e-5)
    assert got.error <= 1e-5 * float(weight.square().sum())


def test_recovers_an_exact_decomposition(rng):
    core = torch.randn(4, 3, 3, 3, generator=rng)
    weight = ops.tucker2_weight(core, torch.randn(20, 4, generator=rng), torch.randn(15, 3, generator=rng))
    assert error(weight, ops.tucker2(weight, (4, 3))) <= 1e-10 * float(weight.double().square().sum())


def test_sweeps_and_warm_starts_are_monotone(rng):
    weight = torch.randn(20, 16, 3, 3, generator=rng)
    errors = [error(weight, ops.tucker2(weight, (6, 5), sweeps=k, tol=0)) for k in (1, 2, 4, 8)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))
    cold = ops.tucker2(weight, (6, 5))
    drifted = weight + 0.01 * torch.randn(weight.shape, generator=rng)
    core = torch.einsum("nmhw,na,mb->abhw", drifted, cold.output, cold.input)  # the old bases, the best core
    before = error(drifted, (core, cold.output, cold.input))
    warm = ops.tucker2(drifted, (6, 5), warm=cold, sweeps=1)
    assert error(drifted, warm) <= before * (1 + 1e-6)


def test_a_matrix_gets_its_truncated_svd(rng):
    w = torch.randn(30, 20, generator=rng)
    best = float(torch.linalg.svdvals(w.double())[4:].square().sum())
    assert error(w, ops.tucker2(w, (4, 4), sweeps=50, tol=1e-9)) <= best * (1 + 1e-4)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), ((1, 2), (2, 0), (2, 1))])
def test_three_convolutions_equal_the_one_with_the_projected_kernel(rng, stride, padding, dilation):
    weight, bias = torch.randn(6, 5, 3, 2, generator=rng), torch.randn(6, generator=rng)
    got = ops.tucker2(weight, (4, 3))
    x = torch.randn(2, 5, 9, 8, generator=rng)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    first, core, last = got.convs()
    y = conv2d(conv2d(conv2d(x, first), core, **options), last, bias)
    torch.testing.assert_close(y, conv2d(x, ops.tucker2_weight(*got[:3]), bias, **options), rtol=1e-4, atol=1e-4)


W = torch.ones(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("weight", "ranks", "options", "error", "named"),
    [
        (torch.ones(3), (1, 1), {}, ValueError, "weight"),
        (W.double(), (1, 1), {}, TypeError, "weight"),
        (W * float("nan"), (1, 1), {}, ValueError, "weight"),
        (W, (5, 1), {}, ValueError, "ranks"),
        (W, (1, 0), {}, ValueError, "ranks"),
        (W, 2, {}, ValueError, "ranks"),
        (W, (1, 1), {"sweeps": 0}, ValueError, "sweeps"),
        (W, (1, 1), {"warm": ops.tucker2(W, (2, 1))}, ValueError, "warm"),
    ],
)
def test_bad_arguments_are_named(weight, ranks, options, error, named):
    with pytest.raises(error, match=named):
        ops.tucker2(weight, ranks, **options)
