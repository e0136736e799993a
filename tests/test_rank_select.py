"""rank_select: the same choice as the enumeration of all ranks with all singular values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def spectrum(m, n, s, rng):
    k = len(s)
    u, _ = torch.linalg.qr(torch.randn(m, k, generator=rng))
    v, _ = torch.linalg.qr(torch.randn(n, k, generator=rng))
    return (u * s) @ v.t()


def objective(w, rank, svd, cost, alpha, nu=1.0):
    error = (w.double() - (svd.u.double() * svd.s.double()) @ svd.vh.double()).square().sum()
    return alpha * cost + float(error) / (2 * nu)


def same_choice(w, alpha, **options):
    got = ops.rank_select(w, alpha, **options)
    rank, value, dense = ops.rank_select_reference(w, alpha, **options)
    assert got.objective == pytest.approx(value, rel=1e-5, abs=1e-6 * float(w.square().sum()))
    assert (got.rank, got.dense) == (rank, dense)
    return got


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    alpha=st.floats(0, 1),
    kind=st.sampled_from(["storage", "cost", "table", "dict"]),
    normalize=st.booleans(),
    most=st.none() | st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_equals_the_enumeration(m, n, alpha, kind, normalize, most, seed):
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(m, n, generator=rng)
    size = min(m, n)
    options = {"normalize": normalize, "max_rank": most}
    if kind == "cost":
        options["cost"] = ops.RankCost(2.0, 3.0 * size)
    elif kind == "table":  # measured latencies are not monotone
        options |= {"cost": torch.rand(size + 1, generator=rng) * 10, "dense_cost": 5.0}
    elif kind == "dict":
        options["cost"] = {0: 1.0, **{r: float(torch.rand((), generator=rng)) * r for r in range(2, size, 3)}}
    same_choice(w, alpha * 0.1, **options)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_large_matrices(rng, alpha, normalize):
    w = spectrum(400, 300, torch.arange(1, 301).pow(-0.7), rng)
    got = same_choice(w, alpha, normalize=normalize)
    if not got.dense:
        assert got.cost == got.rank * 700 and got.svd.u.shape == (400, got.rank) and got.svd.vh.shape == (got.rank, 300)
        nu = float(w.square().sum()) if normalize else 1.0
        assert objective(w, got.rank, got.svd, got.cost, alpha, nu) == pytest.approx(got.objective, rel=1e-4)


ALPHA = 0.5 * 0.105**2 / 1100  # keeps singular values above 0.105


def test_only_as_many_singular_values_as_the_choice_needs(rng):
    w = spectrum(600, 500, torch.arange(1, 501).pow(-1.0), rng)
    got = same_choice(w, ALPHA)
    assert got.rank == 9 and len(got.computed.s) < 50
    again = ops.rank_select(w, ALPHA, warm=got)
    assert again.rank == got.rank and len(again.computed.s) == len(got.computed.s)
    assert ops.rank_select(w, ALPHA, warm=got.svd).rank == got.rank
    assert ops.rank_select(w, ALPHA, warm=got.svd.vh).rank == got.rank


def test_dense_and_nothing_are_candidates(rng):
    w = torch.randn(20, 30, generator=rng)
    dense = ops.rank_select(w, 1e-6)
    assert dense.dense and dense.rank == 20 and dense.cost == 600 and dense.objective == pytest.approx(6e-4)
    assert not ops.rank_select(w, 1e-6, dense_cost=math.inf).dense
    none = ops.rank_select(w, 100.0)
    assert none.rank == 0 and none.cost == 0 and none.svd.u.shape == (20, 0)
    assert none.objective == pytest.approx(float(w.square().sum()) / 2)


def test_a_threshold_on_the_singular_values_when_the_cost_is_linear(rng):
    s = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    w = spectrum(40, 30, s, rng)
    for threshold, rank in ((4.5, 1), (2.5, 3), (0.5, 5)):
        assert ops.rank_select(w, threshold**2 / 2 / 70, dense_cost=math.inf).rank == rank


def test_the_cost_of_a_convolution(rng):
    weight = torch.randn(16, 8, 3, 3, generator=rng)
    for scheme in (1, 2):
        cost = ops.conv_macs(weight.shape, scheme, 32, stride=2, padding=1)
        same_choice(ops.conv_as_matrix(weight, scheme), 2e-5, cost=cost)


def test_zero_matrix(rng):
    assert ops.rank_select(torch.zeros(50, 60), 1.0, normalize=True)[:1] == (0,)


W = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("w", "alpha", "options", "error", "named"),
    [
        (torch.ones(3), 1.0, {}, ValueError, "w"),
        (torch.full((3, 3), float("inf")), 1.0, {}, ValueError, "w"),
        (W, -1.0, {}, ValueError, "alpha_over_mu"),
        (W, float("nan"), {}, ValueError, "alpha_over_mu"),
        (W, "1", {}, TypeError, "alpha_over_mu"),
        (W, 1.0, {"cost": "time"}, TypeError, "cost"),
        (W, 1.0, {"cost": torch.ones(2, 2)}, TypeError, "cost"),
        (W, 1.0, {"cost": torch.tensor([1.0, float("nan")])}, ValueError, "cost"),
        (W, 1.0, {"cost": {}}, ValueError, "cost"),
        (W, 1.0, {"cost": {-1: 2.0}}, ValueError, "cost"),
        (W, 1.0, {"cost": ops.RankCost(-1.0, 2.0)}, ValueError, "cost"),
        (W, 1.0, {"dense_cost": -1.0}, ValueError, "dense_cost"),
        (W, 1.0, {"max_rank": -1}, ValueError, "max_rank"),
        (W, 1.0, {"warm": torch.ones(1, 3)}, ValueError, "warm"),
    ],
)
def test_bad_arguments_are_named(w, alpha, options, error, named):
    with pytest.raises(error, match=named):
        ops.rank_select(w, alpha, **options)
