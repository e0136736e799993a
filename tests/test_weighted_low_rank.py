"""weighted_low_rank: optimal in its metric, also where the metric is singular."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def moment(n, samples, rng):
    x = torch.randn(samples, n, generator=rng) * torch.linspace(0.1, 3, n)
    return x.t() @ x / samples


def optimum(w, rank, rows=None, metric=None):
    """Squared singular values beyond the rank of the matrix in which the metric is the plain one."""
    w = w.double()
    if rows is not None:
        w = rows.double().sqrt()[:, None] * w
    if metric is not None:
        values, vectors = torch.linalg.eigh(metric.double())
        w = w @ (vectors * values.clamp_min(0).sqrt())
    return float(torch.linalg.svdvals(w)[rank:].square().sum())


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 25),
    n=st.integers(1, 25),
    rank=st.integers(1, 8),
    rows=st.booleans(),
    kind=st.sampled_from(["none", "columns", "moment", "singular"]),
    seed=st.integers(0, 1000),
)
def test_optimal_and_never_worse_than_the_unweighted_solution(m, n, rank, rows, kind, seed):
    rng = torch.Generator().manual_seed(seed)
    rank = min(rank, m, n)
    w = torch.randn(m, n, generator=rng)
    options, metric = {}, None
    if rows:
        options["row_weights"] = torch.rand(m, generator=rng) * (torch.rand(m, generator=rng) > 0.2)
    if kind == "columns":
        options["col_weights"] = torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) > 0.2)
        metric = options["col_weights"].diag()
    elif kind != "none":
        metric = options["moment"] = moment(n, 3 * n if kind == "moment" else max(1, n // 2), rng)
    left, right = ops.weighted_low_rank(w, rank, **options)
    assert left.shape == (m, rank) and right.shape == (rank, n)
    assert left.isfinite().all() and right.isfinite().all()
    got = ops.weighted_error(w.double() - left.double() @ right.double(), **options)
    slack = 1e-9 * ops.weighted_error(w, **options)
    assert got <= optimum(w, rank, options.get("row_weights"), metric) * (1 + 1e-4) + slack
    plain = ops.truncated_svd(w, rank)
    other = w.double() - (plain.u.double() * plain.s.double()) @ plain.vh.double()
    assert got <= ops.weighted_error(other, **options) * (1 + 1e-6) + slack


def test_the_moment_is_the_error_of_the_outputs(rng):
    w, x = torch.randn(30, 40, generator=rng), torch.randn(500, 40, generator=rng) * torch.linspace(0, 2, 40)
    left, right = ops.weighted_low_rank(w, 5, moment=x.t() @ x / len(x))
    error = (x @ (w - left @ right).t()).square().sum(1).mean()
    assert float(error) == pytest.approx(ops.weighted_error(w - left @ right, moment=x.t() @ x / len(x)), rel=1e-4)


def test_a_row_of_no_weight_is_still_projected(rng):
    w = torch.randn(10, 3, generator=rng) @ torch.randn(3, 12, generator=rng)
    rows = torch.ones(10)
    rows[4] = 0
    left, right = ops.weighted_low_rank(w, 3, row_weights=rows)
    torch.testing.assert_close(left @ right, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_moment_does_not_matter(rng, scale):
    w, m = torch.randn(20, 30, generator=rng), moment(30, 60, rng)
    left, right = ops.weighted_low_rank(w, 4, moment=m * scale)
    got = ops.weighted_error(w - left @ right, moment=m)
    assert got <= optimum(w, 4, metric=m) * (1 + 1e-4)


def test_no_weight_at_all(rng):
    w = torch.randn(6, 5, generator=rng)
    for options in ({"moment": torch.zeros(5, 5)}, {"col_weights": torch.zeros(5)}, {"row_weights": torch.zeros(6)}):
        left, right = ops.weighted_low_rank(w, 2, **options)
        assert left.shape == (6, 2) and left.isfinite().all() and right.isfinite().all()


def test_damping_fills_the_directions_that_the_sample_missed(rng):
    w = torch.randn(20, 30, generator=rng)
    m = moment(30, 4, rng)
    left, right = ops.weighted_low_rank(w, 6, moment=m, damping=0.01)
    full = m.double() + 0.01 * m.diagonal().double().mean() * torch.eye(30, dtype=torch.float64)
    assert ops.weighted_error(w - left @ right, moment=full) <= optimum(w, 6, metric=full) * (1 + 1e-4)
    columns = torch.zeros(30)
    columns[:10] = 1
    left, right = ops.weighted_low_rank(w, 20, col_weights=columns, damping=1e-3)
    torch.testing.assert_close(left @ right, w, rtol=1e-3, atol=1e-3)


W = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("w", "rank", "options", "error", "named"),
    [
        (torch.ones(3), 1, {}, ValueError, "w"),
        (W * float("nan"), 1, {}, ValueError, "w"),
        (W, 4, {}, ValueError, "rank"),
        (W, 1, {"row_weights": torch.ones(4)}, ValueError, "row_weights"),
        (W, 1, {"row_weights": -torch.ones(3)}, ValueError, "row_weights"),
        (W, 1, {"col_weights": torch.full((4,), float("inf"))}, ValueError, "col_weights"),
        (W, 1, {"moment": torch.eye(3)}, ValueError, "moment"),
        (W, 1, {"moment": -torch.eye(4)}, ValueError, "moment"),
        (W, 1, {"moment": torch.ones(4, 4).triu()}, ValueError, "moment"),
        (W, 1, {"moment": torch.eye(4), "col_weights": torch.ones(4)}, ValueError, "moment"),
        (W, 1, {"damping": -1.0}, ValueError, "damping"),
    ],
)
def test_bad_arguments_are_named(w, rank, options, error, named):
    with pytest.raises(error, match=named):
        ops.weighted_low_rank(w, rank, **options)
