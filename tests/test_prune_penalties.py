"""l0_penalty, l2_penalty and l2_ball against their definitions in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops

EPS = 2.0**-23


def check_l0(xs, alpha_over_mu, weights=None):
    got, want = ops.l0_penalty(xs, alpha_over_mu, weights), ops.l0_penalty_reference(xs, alpha_over_mu, weights)
    bits = ops.l0_penalty(xs, alpha_over_mu, weights, mask="bits")
    for i, x in enumerate(xs):
        assert torch.equal(got.mask[i], want.mask[i]) and torch.equal(got.values[i], want.values[i])
        unpacked = ops.unpack_codes(bits.mask[i][None], 1, x.numel())[0].bool().view(x.shape)
        assert torch.equal(unpacked, want.mask[i]) and torch.equal(bits.values[i], want.values[i])


@pytest.mark.parametrize("n", [0, 1, 31, 33, 1000, 100_003])
def test_l0_matches_its_reference(isa, rng, n):
    x, h = torch.randn(n, generator=rng), torch.rand(n, generator=rng)
    for alpha in (0.0, 0.1, 3.0, 1e30):
        check_l0([x, x[: n // 2]], alpha)
        check_l0([x], alpha, [h])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20),
    st.floats(0, 1e70),
    st.booleans(),
)
def test_l0_of_any_floats(values, alpha, at_the_edge):
    """Exact also where the square of an entry is the bound itself, or next to it."""
    x = torch.tensor(values)
    check_l0([x], float(x[0].double() ** 2 / 2) if at_the_edge else alpha)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-100, 100, width=32, allow_subnormal=False),
    st.floats(0.125, 8, width=32),
    st.floats(0.01, 50),
)
def test_penalties_beat_every_other_point(x, h, alpha):
    """Each is the minimiser of its own objective, entry by entry."""
    t, w = torch.tensor([x]), torch.tensor([h])
    grid = torch.linspace(-120, 120, 2401, dtype=torch.float64)
    candidates = torch.cat([grid, torch.tensor([0.0, x], dtype=torch.float64)])
    fit = 0.5 * h * (candidates - x) ** 2
    for got, cost in [
        (ops.l0_penalty(t, alpha, w).values, lambda v: alpha * (v != 0)),
        (ops.l1_penalty(t, alpha, w), lambda v: alpha * v.abs()),
        (ops.l2_penalty(t, alpha, w), lambda v: alpha * v**2),
    ]:
        v = got.double()
        ours = float((cost(v) + 0.5 * h * (v - x) ** 2).sum())
        assert ours <= float((cost(candidates) + fit).min()) * (1 + 4 * EPS) + 1e-12


def test_l2_penalty(rng):
    x, h = torch.randn(500, generator=rng), torch.rand(500, generator=rng)
    torch.testing.assert_close(ops.l2_penalty(x, 0.5), x / 2)
    torch.testing.assert_close(ops.l2_penalty([x], 0.3, [h])[0], x * h / (h + 0.6))
    assert torch.equal(ops.l2_penalty(x, 0.0, torch.zeros_like(x)), x)


@pytest.mark.parametrize("part", [1e-6, 0.3, 0.999])
@pytest.mark.parametrize("weighted", [False, True])
def test_l2_ball(rng, part, weighted):
    xs = [torch.randn(300, 40, generator=rng), torch.randn(7, generator=rng) * 50]
    hs = [torch.rand(x.shape, generator=rng) for x in xs] if weighted else None
    radius = part * math.sqrt(sum(float((x.double() ** 2).sum()) for x in xs))
    got = ops.l2_ball(xs, radius, weights=hs)
    norm = math.sqrt(sum(float((v.double() ** 2).sum()) for v in got.values))
    assert norm == pytest.approx(radius, rel=4 * EPS)
    for i, x in enumerate(xs):  # stationary: h (x - theta) = lambda theta
        h = hs[i].double() if hs else torch.ones_like(x).double()
        torch.testing.assert_close(got.values[i].double(), x.double() * h / (h + got.threshold), rtol=4 * EPS, atol=0)


def test_l2_ball_inside_zero_and_weights_of_zero(rng):
    x = torch.randn(40, generator=rng)
    inside = ops.l2_ball(x, 100.0, weights=torch.zeros_like(x))
    assert torch.equal(inside.values, x) and inside.threshold == 0
    assert not ops.l2_ball(x, 0.0).values.any()
    h = torch.tensor([1.0, 0.0])
    assert ops.l2_ball(torch.tensor([3.0, 4.0]), 4.0, weights=h).values.tolist() == [3.0, 0.0]
    torch.testing.assert_close(ops.l2_ball(torch.tensor([3.0, 4.0]), 1.5, weights=h).values, torch.tensor([1.5, 0.0]))
    assert not ops.l2_ball(torch.tensor([3.0, 4.0]), 1.0, weights=torch.zeros(2)).values.any()


def test_half_precision_and_reused_output(rng):
    x = torch.randn(30, 20, generator=rng).half()
    got = ops.l0_penalty(x.t(), 0.5)
    assert got.values.dtype == torch.float16 and torch.equal(got.values.t(), ops.l0_penalty(x, 0.5).values)
    assert ops.l0_penalty(x.t(), 0.1, out=got).mask is got.mask
    assert ops.l2_ball(x, 1.0).values.dtype == ops.l2_penalty(x, 1.0).dtype == torch.float16


def test_parameters_are_detached(rng):
    x = torch.nn.Parameter(torch.randn(8, 8, generator=rng))
    for got in (
        ops.topk_prune(x, 9).values,
        ops.nm_prune(x, 2, 4).values,
        ops.l0_penalty(x, 0.1).values,
        *(ops.l1_penalty(x, alpha) for alpha in (0.0, 0.1)),
        *(ops.l2_penalty(x, alpha) for alpha in (0.0, 0.1)),
        *(ball(x, radius).values for ball in (ops.l1_ball, ops.l2_ball) for radius in (0.0, 1.0, 1e6)),
        ops.group_prune(x, 3).values,
        ops.group_lasso(x, 0.1),
    ):
        assert not got.requires_grad and got.shape == x.shape


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda x: ops.l0_penalty(x, -1.0), ValueError, "alpha_over_mu"),
        (lambda x: ops.l0_penalty(x, math.nan), ValueError, "alpha_over_mu"),
        (lambda x: ops.l0_penalty(x, 1.0, -x), ValueError, "weights must not be negative"),
        (lambda x: ops.l0_penalty(x / 0, 1.0), ValueError, "x contains NaN"),
        (lambda x: ops.l0_penalty(x, 1.0, mask="x"), ValueError, "mask"),
        (lambda x: ops.l0_penalty(x, 1.0, out=x), TypeError, "out"),
        (lambda x: ops.l2_penalty(x / 0, 1.0), ValueError, "x contains NaN"),
        (lambda x: ops.l2_penalty(x, 1.0, x[:2]), ValueError, "weights must have the shape"),
        (lambda x: ops.l2_ball(x, -1.0), ValueError, "radius"),
        (lambda x: ops.l2_ball(x, 1.0, weights=-x), ValueError, "weights must not be negative"),
        (lambda x: ops.l2_ball(x.int(), 1.0), TypeError, "x must be"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call(torch.ones(4))
