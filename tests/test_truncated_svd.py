"""truncated_svd: the error of the best approximation, cold and warm, for easy and hard spectra."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops
from lc_ext.ops.block_krylov import BlockKrylov, random_rows

module = importlib.import_module("lc_ext.ops.truncated_svd")
FLOOR = 5e-7  # of ||w||^2: differences that float32 bases do not resolve


def error(w, r):
    return float((w.double() - (r.u.double() * r.s.double()) @ r.vh.double()).square().sum())


def optimum(w, rank):
    return float(torch.linalg.svdvals(w.double())[rank:].square().sum())


def with_spectrum(m, n, s, rng):
    u, _ = torch.linalg.qr(torch.randn(m, len(s), generator=rng, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(n, len(s), generator=rng, dtype=torch.float64))
    return ((u * s.double()) @ v.t()).float()


def power_law(m, n, rng, decay=1.0):
    return with_spectrum(m, n, torch.arange(1, min(m, n) + 1).pow(-decay), rng)


def check(w, rank, got, tol=1e-6):
    assert got.u.shape == (w.shape[0], rank) and got.s.shape == (rank,) and got.vh.shape == (rank, w.shape[1])
    assert (
        error(w, got) ** 0.5 <= optimum(w, rank) ** 0.5 * (1 + tol) + (FLOOR * float(w.double().square().sum())) ** 0.5
    )
    assert error(w, got) <= optimum(w, rank) * (1 + 2.1 * tol) + FLOOR * float(w.double().square().sum())
    assert (got.s[1:] <= got.s[:-1] * (1 + 1e-5)).all() and (got.s >= 0).all()
    for factor in (got.u.t(), got.vh):
        torch.testing.assert_close(factor @ factor.t(), torch.eye(rank), rtol=0, atol=5e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (10, 100), (100, 10), (60, 60), (300, 200), (1000, 150)])
@pytest.mark.parametrize("kind", ["gaussian", "power law", "exact rank 1", "zero"])
def test_best_approximation(rng, shape, kind):
    m, n = shape
    w = {
        "gaussian": lambda: torch.randn(m, n, generator=rng),
        "power law": lambda: power_law(m, n, rng),
        "exact rank 1": lambda: torch.randn(m, 1, generator=rng) @ torch.randn(1, n, generator=rng),
        "zero": lambda: torch.zeros(m, n),
    }[kind]()
    for rank in sorted({1, min(10, *shape), (min(m, n) + 1) // 2, min(m, n)}):
        got, want = ops.truncated_svd(w, rank), ops.truncated_svd_reference(w, rank)
        check(w, rank, got)
        torch.testing.assert_close(got.s, want.s, rtol=1e-4, atol=1e-5 * float(want.s[0]) + 1e-12)


SPECTRA = {
    "flat": torch.ones(300),
    "gaussian": torch.linspace(0.1, 1, 300).flip(0),
    "slow": torch.arange(1, 301).pow(-0.3),
    "fast": torch.arange(1, 301).pow(-2.0),
    "exponential": 0.8 ** torch.arange(300),
    "rank 12": torch.cat([torch.arange(12, 0, -1), torch.zeros(288)]),
    "rank 50": torch.cat([torch.arange(50, 0, -1), torch.zeros(250)]),
    "20 equal, 100 at half": torch.cat([torch.ones(20), torch.full((100,), 0.5), torch.full((180,), 0.1)]),
    "20 nearly equal": torch.cat(
        [torch.linspace(1.001, 1, 20), torch.linspace(0.501, 0.5, 100), torch.full((180,), 0.1)]
    ),
    "60 equal and noise": torch.cat([torch.ones(60), torch.linspace(0.02, 0.01, 240)]),
    "signal and flat noise": torch.cat([torch.linspace(10, 5, 20), torch.ones(280)]),
}


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("rank", [6, 24])
def test_hard_spectra(rng, kind, rank):
    w = with_spectrum(400, 300, SPECTRA[kind], rng)
    check(w, rank, ops.truncated_svd(w, rank))
    check(w.t(), rank, ops.truncated_svd(w.t(), rank))


def test_matrices_with_few_entries(rng):
    """The subspace ran out of directions, and unit vectors that it already held took their place."""
    zero = torch.zeros(300, 400)
    one = zero.clone()
    one[3, 5] = -2
    rows = zero.clone()
    rows[torch.randperm(300, generator=rng)[:20]] = torch.randn(20, 400, generator=rng)
    for w in (zero, one, rows, torch.eye(300), torch.diag(torch.arange(300.0))):
        for rank in (5, 24):
            check(w, rank, ops.truncated_svd(w, rank))


@pytest.mark.parametrize("scale", [1e-42, 1e-35, 1e-18, 1e18, 1e37])
def test_scales_whose_squares_overflow_or_vanish(rng, scale):
    w = power_law(300, 250, rng)
    got, plain = ops.truncated_svd(w * scale, 8), ops.truncated_svd(w, 8)
    assert got.s.isfinite().all()
    torch.testing.assert_close(got.s.double() / scale, plain.s.double(), rtol=1e-2 if scale < 1e-38 else 1e-5, atol=0)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("decay", [0.4, 0.7, 1.0])
def test_excess_is_at_most_the_tolerance(rng, tol, decay):
    w = power_law(500, 400, rng, decay)
    for rank in (4, 20, 35):
        check(w, rank, ops.truncated_svd(w, rank, tol=tol), tol)
        near = ops.truncated_svd(w + 0.01 * w.std() * torch.randn(w.shape, generator=rng), rank)
        check(w, rank, ops.truncated_svd(w, rank, warm=near, tol=tol), tol)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 90), n=st.integers(1, 90), decay=st.floats(0, 2), start=st.integers(0, 9), seed=st.integers(0, 999)
)
def test_any_shape_rank_and_start(m, n, decay, start, seed):
    rng = torch.Generator().manual_seed(seed)
    w = power_law(m, n, rng, decay)
    rank = 1 + seed % min(m, n)
    check(w, rank, ops.truncated_svd(w, rank, warm=torch.randn(start, n, generator=rng) if start else None))


def test_zero_tolerance_is_the_exact_solver(rng):
    w = power_law(300, 200, rng)
    assert error(w, ops.truncated_svd(w, 5, tol=0)) <= optimum(w, 5) * (1 + 1e-10)


@pytest.mark.parametrize("decay", [0.3, 1.0])
@pytest.mark.parametrize("factors", [lambda r: r, lambda r: r.vh, lambda r: r.s.sqrt()[:, None] * r.vh])
def test_warm_start_follows_a_drifting_matrix(rng, decay, factors):
    w = power_law(200, 300, rng, decay)
    warm = factors(ops.truncated_svd(w, 10))
    for _ in range(3):
        w = w + 0.02 * w.std() * torch.randn(w.shape, generator=rng)
        got = ops.truncated_svd(w, 10, warm=warm)
        check(w, 10, got)
        warm = factors(got)


@pytest.mark.parametrize("warm", [torch.zeros(5, 280), torch.eye(280)[:5], torch.ones(5, 280), torch.eye(280)])
def test_useless_warm_start_costs_no_accuracy(rng, warm):
    w = power_law(250, 280, rng)
    check(w, 5, ops.truncated_svd(w, 5, warm=warm))


def test_a_warm_start_that_is_invariant_but_no_longer_the_largest(rng):
    """Its directions are singular vectors still, so nothing but the random rows beside them can show the way."""
    w = with_spectrum(300, 280, torch.linspace(2, 1, 280), rng)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    swapped = (
        u * s[torch.cat([torch.arange(100, 110), torch.arange(10, 100), torch.arange(10), torch.arange(110, 280)])]
    ) @ vh
    check(swapped, 10, ops.truncated_svd(swapped, 10, warm=vh[:10]))


def test_a_few_steps_are_never_worse_than_the_product_with_the_warm_factor(rng):
    w, other = power_law(200, 300, rng, 0.5), power_law(200, 300, rng, 0.5)
    vh = ops.truncated_svd(other, 8).vh
    before = float((w - w @ vh.t() @ vh).double().square().sum())
    errors = [error(w, ops.truncated_svd(w, 8, warm=vh, max_steps=k)) for k in (1, 2, 3)]
    assert errors[0] <= before and errors[1] <= errors[0] * (1 + 1e-6) and errors[2] <= errors[1] * (1 + 1e-6)
    check(w, 8, ops.truncated_svd(w, 8, warm=vh))


def test_batches_and_lists(rng):
    batch = torch.randn(5, 30, 40, generator=rng)
    got = ops.truncated_svd(batch, 6)
    assert got.u.shape == (5, 30, 6) and got.s.shape == (5, 6) and got.vh.shape == (5, 6, 40)
    large = power_law(300, 200, rng)
    found = ops.truncated_svd([*batch, large, large.t()], [6, 6, 6, 6, 2, 5, 9])
    for i, w in enumerate(batch):
        check(w, 6, ops.SVDResult(got.u[i], got.s[i], got.vh[i]))
        check(w, 6 if i < 4 else 2, found[i])
    check(large, 5, found[5])
    check(large.t(), 9, found[6])
    again = ops.truncated_svd(batch, 6, warm=got)
    torch.testing.assert_close(again.s, got.s, rtol=1e-5, atol=1e-5)
    warm = ops.truncated_svd([large, large], 5, warm=[found[5], None])
    check(large, 5, warm[0])
    check(large, 5, warm[1])
    assert ops.truncated_svd([], 3) == []


def test_other_types_and_layouts(rng):
    w = power_law(200, 150, rng)
    for other in (w.bfloat16(), w.half(), w.t().contiguous().t(), torch.stack([w, w], 2)[:, :, 0]):
        got = ops.truncated_svd(other, 7)
        assert got.u.dtype == torch.float32
        check(other.float(), 7, got)


def test_repeatable_and_the_same_up_to_rounding_on_any_number_of_threads_and_isa(isa, rng):
    w = power_law(400, 300, rng)
    want = ops.truncated_svd(w, 20)
    assert all(map(torch.equal, want, ops.truncated_svd(w, 20)))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            got = ops.truncated_svd(w, 20)
            torch.testing.assert_close(got.s, want.s, rtol=1e-5, atol=1e-6)
            check(w, 20, got)
    finally:
        torch.set_num_threads(before)


def test_the_exact_solver_is_taken_where_the_subspace_would_get_large(rng, monkeypatch):
    taken = []
    exact = module._exact
    monkeypatch.setattr(module, "_exact", lambda a, rank: taken.append(rank) or exact(a, rank))
    for shape, rank in (((40, 60), 3), ((300, 300), 100)):
        ops.truncated_svd(torch.randn(shape, generator=rng), rank)
    assert 3 in taken and 100 in taken
    taken.clear()
    ops.truncated_svd(power_law(300, 400, rng), 10)
    assert not taken
    slow = with_spectrum(300, 300, torch.linspace(1.01, 1, 300), rng)  # the subspace gets too large
    check(slow, 24, ops.truncated_svd(slow, 24))
    assert taken


@pytest.mark.parametrize("shape", [(700, 601), (40, 333), (301, 18)])
@pytest.mark.parametrize("width", [1, 3, 4, 14, 45])
@pytest.mark.parametrize("native", [True, False])
def test_bases_stay_orthonormal_and_the_core_is_the_projection(rng, isa, shape, width, native):
    m, n = shape
    w = torch.randn(m, n, generator=rng) / n**0.5
    space = BlockKrylov(w, random_rows(min(width, n // 3), n, w))
    space._native = native
    while space.size + 3 * space.fresh <= min(n, 240):
        space.steps(1 + space.size % 2)
    check_space(space, w)
    space.keep(torch.linalg.qr(torch.randn(space.fresh, max(1, space.fresh // 2), generator=rng).double())[0])
    space.extend(torch.cat([random_rows(1, n, w, seed=5), space._v[:1]])[: n - space.size - space.fresh])
    if space.size + 2 * space.fresh <= n:
        space.steps()
    check_space(space, w, kept=False)


def check_space(space, w, kept=True):
    v = space._v[: space.size + space.fresh].double()
    torch.testing.assert_close(v @ v.t(), torch.eye(len(v), dtype=torch.float64), rtol=0, atol=5e-6)
    torch.testing.assert_close(
        space._images[: space.size].double(), v[: space.size] @ w.double().t(), rtol=0, atol=1e-5
    )
    gram = v @ w.double().t() @ w.double() @ v[: space.size].t()
    torch.testing.assert_close(space.core().triu(), gram[: space.size].triu(), rtol=0, atol=2e-5)
    if kept:  # of a residual that was left out in part, later rows have components too
        torch.testing.assert_close(space.coupling(), gram[space.size :], rtol=0, atol=2e-5)


@pytest.mark.parametrize("native", [True, False])
def test_directions_that_a_subspace_already_has_are_replaced(isa, native):
    """Nothing is left of the products of an invariant subspace."""
    space = BlockKrylov(torch.eye(40), torch.zeros(5, 40))
    space._native = native
    space.steps(4)
    check_space(space, torch.eye(40))
    assert float(space.coupling().abs().max()) < 1e-5


def test_bases_are_the_same_for_any_number_of_threads(rng, isa):
    w = torch.randn(700, 300, generator=rng)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            space = BlockKrylov(w, random_rows(37, 300, w))
            space.steps(2)
            found.append((space._v[:111].clone(), space._images[:74].clone(), space.core().clone()))
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, found[0], other)) for other in found[1:])


@pytest.mark.parametrize(
    ("w", "rank", "options", "error", "named"),
    [
        (torch.ones(3), 1, {}, ValueError, "w"),
        (torch.ones(3, 4), 0, {}, ValueError, "rank"),
        (torch.ones(3, 4), 4, {}, ValueError, "rank"),
        (torch.ones(3, 4), 1.5, {}, TypeError, "rank"),
        (torch.ones(3, 4).double(), 1, {}, TypeError, "w"),
        (torch.full((3, 4), float("nan")), 1, {}, ValueError, "w"),
        (torch.full((3, 4), float("-inf")), 1, {}, ValueError, "w"),
        (torch.ones(3, 4), 1, {"warm": torch.ones(1, 3)}, ValueError, "warm"),
        (torch.ones(3, 4), 1, {"warm": torch.full((1, 4), float("nan"))}, ValueError, "warm"),
        (torch.ones(3, 4), 1, {"tol": -1.0}, ValueError, "tol"),
        (torch.ones(3, 4), 1, {"tol": float("nan")}, ValueError, "tol"),
        (torch.ones(3, 4), 1, {"max_steps": 0}, ValueError, "max_steps"),
        (torch.ones(2, 3, 4), 1, {"warm": torch.ones(1, 1, 4)}, ValueError, "warm"),
        (torch.ones(2, 3, 4), 1, {"warm": 3}, TypeError, "warm"),
        ([torch.ones(3, 4), torch.ones(3)], 1, {}, ValueError, r"w\[1\]"),
        ([torch.ones(3, 4)], [1, 1], {}, ValueError, "rank"),
        ("abc", 1, {}, TypeError, "w"),
        (torch.ones(0, 3, 4), 1, {}, ValueError, "w"),
    ],
)
def test_bad_arguments_are_named(w, rank, options, error, named):
    with pytest.raises(error, match=named):
        ops.truncated_svd(w, rank, **options)
