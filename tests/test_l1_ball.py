"""l1_ball and l1_penalty against float64 references and the conditions of optimality."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops

EPS = 2.0**-23


def check(xs, radius, weights=None):
    got = ops.l1_ball(xs, radius, weights=weights)
    want, tau = ops.l1_ball_reference(xs, radius, weights)
    if tau < 0:
        assert got.threshold == 0 and all(torch.equal(g, x) for g, x in zip(got.values, xs, strict=True))
        return
    assert got.threshold.item() == pytest.approx(tau, rel=1e-12 + 1e-15 * sum(x.numel() for x in xs), abs=0)
    for g, w, x in zip(got.values, want, xs, strict=True):
        # A last bit of tau moves a value by that bit of |x|.
        torch.testing.assert_close(g, w, rtol=EPS, atol=1e-12 * float(x.abs().max()) if x.numel() else 0)
    total = sum(float(v.double().abs().sum()) for v in got.values)
    assert total <= radius * (1 + 2 * EPS) + 1e-44 * sum(x.numel() for x in xs)


SIZES = [0, 1, 3, 15, 16, 17, 100, 1000, 65_537, 300_001]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_sorted_reference(isa, rng, n, part, weighted):
    x = torch.randn(n, generator=rng)
    h = torch.rand(n, generator=rng) + 0.1 if weighted else None
    check([x], part * float(x.double().abs().sum()), None if h is None else [h])


def test_joint_over_a_list(isa, rng):
    xs = [
        torch.randn(s, generator=rng) * a for s, a in [((300, 784), 1.0), ((7,), 10.0), ((0,), 1.0), ((99, 101), 0.1)]
    ]
    total = sum(float(x.double().abs().sum()) for x in xs)
    for part in (0.01, 0.5, 0.97):
        check(xs, part * total)
        check(xs, part * total, [torch.rand(x.shape, generator=rng) + 0.5 for x in xs])


@pytest.mark.parametrize("weighted", [False, True])
def test_large(isa, rng, weighted):
    """A sampled start; values written past the caches."""
    x = torch.randn(3_000_003, generator=rng)
    h = [torch.rand(x.shape, generator=rng) + 0.1] if weighted else None
    if isa in ("scalar", "wide"):
        x, h = x[:400_000], h and [h[0][:400_000]]
    check([x], 0.2 * float(x.double().abs().sum()), h)


def test_few_values_and_outliers(isa, rng):
    check([torch.ones(200_000)], 1000.0)
    check([(torch.randn(300_000, generator=rng) * 2).round()], 5000.0)
    x = torch.randn(300_000, generator=rng) * 1e-3
    x[12_345], x[99] = 1e6, -3e5
    for radius in (1e-30, 1.0, 1e5, 1.29e6, 1.3e6 + 100):
        check([x], radius)
    check([torch.tensor([3e38, -3e38, 1.0])], 1e38)
    check([torch.tensor([1e-45, -1e-40, 3e-39])], 1e-41)


def test_weights_of_zero_are_given_up_first(isa):
    x, h = torch.tensor([3.0, -2.0, 1.0, -5.0]), torch.tensor([1.0, 0.0, 2.0, -0.0])
    assert torch.equal(ops.l1_ball(x, 11.0, weights=h).values, x)
    assert ops.l1_ball(x, 10.0, weights=h).values.tolist() == [3.0, 0.0, 1.0, 0.0]
    assert ops.l1_ball(x, 10.0, weights=h).threshold == 0
    assert ops.l1_ball(x, 2.5, weights=h).values.tolist() == [2.0, 0.0, 0.5, 0.0]
    assert ops.l1_penalty(x, 1.0, h).tolist() == [2.0, 0.0, 0.5, 0.0]


def test_inside_zero_radius_and_zeros(isa, rng):
    x = torch.randn(50, generator=rng)
    assert torch.equal(ops.l1_ball(x, float(x.double().abs().sum())).values, x)
    none = ops.l1_ball(x, 0.0)
    assert not none.values.any() and none.threshold == torch.inf
    assert not ops.l1_ball(torch.zeros(9), 0.0).values.any()
    assert ops.l1_ball(torch.zeros(9), 2.0).threshold == 0


finite = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(finite, st.floats(2.0**-10, 2.0**10, width=32)), min_size=1, max_size=12), st.floats(0.01, 1.2)
)
def test_conditions_of_optimality(pairs, part):
    """theta = soft(x, tau / h) with sum |theta| = radius is necessary and sufficient, in float64."""
    x, h = (torch.tensor(v) for v in zip(*pairs, strict=True))
    size, weight = x.double().abs(), h.double()
    radius = part * float(size.sum())
    got = ops.l1_ball(x, radius, weights=h)
    tau, values = got.threshold.item(), got.values.double()
    if part >= 1 or radius == 0:
        return
    assert bool((values * x.double() >= 0).all())
    want = (size - tau / weight).clamp(min=0)
    torch.testing.assert_close(values.abs(), want, rtol=EPS, atol=EPS * float((tau / weight).max()))
    slack = EPS * float((tau / weight)[size > tau / weight].sum()) + EPS * radius
    assert float(values.abs().sum()) == pytest.approx(radius, abs=slack)


def test_least_squares_by_brute_force(rng):
    """Against the best point for every set of entries that may be left."""
    for _ in range(30):
        x, h = (
            torch.randn(6, generator=rng, dtype=torch.float64),
            torch.rand(6, generator=rng, dtype=torch.float64) + 0.2,
        )
        x, h = x.float().double(), h.float().double()
        radius, best = 0.4 * float(x.abs().sum()), math.inf
        for size in range(1, 7):
            for kept in map(list, itertools.combinations(range(6), size)):
                tau = (x[kept].abs().sum() - radius) / (1 / h[kept]).sum()
                part = x[kept].abs() - tau / h[kept]
                if bool((part >= 0).all()):
                    theta = torch.zeros(6, dtype=torch.float64)
                    theta[kept] = part * x[kept].sign()
                    best = min(best, float((h * (x - theta) ** 2).sum()))
        got = ops.l1_ball(x.float(), radius, weights=h.float()).values.double()
        assert float((h * (x - got) ** 2).sum()) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_penalty_matches_its_reference(isa, rng, n):
    x, h = torch.randn(n, generator=rng), torch.rand(n, generator=rng)
    for weights in (None, [h]):
        got, want = ops.l1_penalty([x], 0.4, weights), ops.l1_penalty_reference([x], 0.4, weights)
        assert torch.equal(got[0], want[0]) and not torch.signbit(got[0][got[0] == 0]).any()
    assert torch.equal(ops.l1_penalty(x, 0.0, h), x)


def test_same_for_any_number_of_threads_and_instruction_set(rng):
    from conftest import ISAS, forced_isa

    x, h = torch.randn(2, 700_000, generator=rng)
    h = h.abs()
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        for isa in ISAS:
            torch.set_num_threads(threads)
            with forced_isa(isa):
                results.append([ops.l1_ball(x, 9000.0), ops.l1_ball(x, 9000.0, weights=h)])
    torch.set_num_threads(before)
    for r in results:
        for a, b in zip(r, results[0], strict=True):
            assert a.threshold == b.threshold and torch.equal(a.values, b.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_strides_and_reused_output(rng, dtype):
    x = torch.randn(50, 40, generator=rng).to(dtype)
    got = ops.l1_ball(x.t(), 100.0)
    assert got.values.dtype == dtype
    assert torch.equal(got.values, ops.l1_ball(x, 100.0).values.t())
    assert ops.l1_ball(x.t(), 50.0, out=got).values is got.values
    first = ops.l1_penalty([x], 0.1)
    assert ops.l1_penalty([x], 0.2, out=first)[0] is first[0]


@pytest.mark.parametrize("n", [5, 16, 400_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(isa, n, bad):
    x, h = torch.ones(n), torch.ones(n)
    x[-1] = bad
    for radius in (0.0, 2.0, 1e9):
        with pytest.raises(ValueError, match="x contains NaN or Inf"):
            ops.l1_ball(x, radius)
        with pytest.raises(ValueError, match="weights contains NaN or Inf"):
            ops.l1_ball(h, radius, weights=x)
    for alpha in (0.0, 0.5):
        with pytest.raises(ValueError, match="x contains NaN or Inf"):
            ops.l1_penalty(x, alpha)
        with pytest.raises(ValueError, match="weights must not be negative"):
            ops.l1_penalty(h, alpha, -h)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda x: ops.l1_ball(x, -1.0), ValueError, "radius must be finite"),
        (lambda x: ops.l1_ball(x, math.inf), ValueError, "radius must be finite"),
        (lambda x: ops.l1_ball(x, True), TypeError, "radius"),
        (lambda x: ops.l1_ball(x, 1.0, weights=x[:2]), ValueError, "weights must have the shape"),
        (lambda x: ops.l1_ball([x], 1.0, weights=[x, x]), ValueError, "weights must hold 1 tensors"),
        (lambda x: ops.l1_ball([], 1.0), ValueError, "x must hold"),
        (lambda x: ops.l1_ball(x, 1.0, out=x), TypeError, "out must be"),
        (lambda x: ops.l1_ball(x, 1.0, out=ops.BallResult(x, x)), ValueError, "share memory"),
        (lambda x: ops.l1_penalty(x, -1.0), ValueError, "alpha_over_mu"),
        (lambda x: ops.l1_penalty(x, 1.0, out=[x]), TypeError, "out must be"),
        (lambda x: ops.l1_penalty(x, 1.0, out=x[:2]), ValueError, r"out\.values"),
        (lambda x: ops.l1_penalty(x.double(), 1.0), TypeError, "x must be"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call(torch.ones(4))
