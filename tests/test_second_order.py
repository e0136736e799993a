"""second_order_quantize and second_order_prune: the sweep as it is defined, and never above plain rounding."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def problem(m, n, k, seed, samples=None):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=rng)
    x = torch.randn(samples or 4 * n, n, generator=rng) @ mix
    w = torch.randn(m, n, generator=rng)
    book = torch.randn(m, k, generator=rng).sort(1).values
    return w, x.t() @ x / len(x), book, torch.rand(m, n, generator=rng) < 0.1


def damped(moment, damping):
    h = moment.double()
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def loss(w, values, h):
    e = w.double() - values.double()
    return float((e @ h * e).sum())


def sweep(w, h, order, fix):
    """By definition: fix a column, then move all free ones to the minimum of the error, each time anew."""
    q, free = w.double().clone(), list(order)
    while free:
        j = free.pop(0)
        q[:, j] = fix(j, q[:, j])
        if free:
            fixed = [c for c in order if c not in free]
            pull = (w.double() - q)[:, fixed] @ h[fixed][:, free]
            q[:, free] = w.double()[:, free] + torch.linalg.solve(h[free][:, free], pull.t()).t()
    return q


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 20),
    k=st.integers(1, 5),
    block=st.sampled_from([1, 3, 64]),
    own=st.booleans(),
    held=st.booleans(),
    seed=st.integers(0, 500),
)
def test_quantize_is_the_sweep_by_definition_and_never_worse_than_nearest(m, n, k, block, own, held, seed):
    w, moment, book, exact = problem(m, n, k, seed)
    book = book if own else book[:1].expand(m, k)
    exact = exact if held else torch.zeros_like(exact)
    h = damped(moment, 0.05)

    def fix(j, column):
        nearest = book.double().gather(1, (column[:, None] - book.double()).abs().argmin(1, keepdim=True))[:, 0]
        return torch.where(exact[:, j], column, nearest)

    expected = sweep(w, h, h.diagonal().argsort(descending=True, stable=True).tolist(), fix)
    nearest = book.gather(1, (w[..., None] - book[:, None]).abs().argmin(-1))
    plain = torch.where(exact, w, nearest)
    got = ops.second_order_quantize(
        w, moment, book if own else book[0], exact=exact if held else None, damping=0.05, block=block
    )
    assert got.values.shape == w.shape and got.codes.dtype == torch.uint8
    assert got.error == pytest.approx(loss(w, got.values, h), rel=1e-6, abs=1e-9)
    assert got.error <= got.plain_error * (1 + 1e-9)
    assert got.plain_error == pytest.approx(loss(w, plain, h), rel=1e-6, abs=1e-9)
    assert torch.equal(got.values[~exact], book.gather(1, got.codes.long())[~exact])
    # a float32 sweep may take the other of two codewords that are almost equally near: no more than that
    if loss(w, expected, h) < got.plain_error:
        assert got.error <= max(1.05 * loss(w, expected, h), 1e-4 * got.plain_error) or m * n * k > 60


def test_the_sweep_matches_its_definition_on_well_separated_codewords():
    w, moment, _, exact = problem(5, 16, 2, 3)
    book, h = torch.tensor([-1.0, 1.0]), damped(moment, 0.05)

    def fix(j, column):
        return torch.where(exact[:, j], column, torch.where(column > 0, 1.0, -1.0).double())

    expected = sweep(w, h, h.diagonal().argsort(descending=True).tolist(), fix)
    got = ops.second_order_quantize(w, moment, book, exact=exact, damping=0.05, block=5)
    torch.testing.assert_close(got.values.double(), expected, rtol=1e-4, atol=1e-4)


def test_close_to_the_optimum_of_all_codes():
    better = []
    for seed in range(20):
        w, moment, _, _ = problem(1, 8, 2, seed)
        book, h = torch.tensor([-0.8, 0.8]), damped(moment, 0.01)
        best = min(loss(w, torch.tensor([q]) * 0.8, h) for q in itertools.product([-1.0, 1.0], repeat=8))
        got = ops.second_order_quantize(w, moment, book)
        assert best * (1 - 1e-6) <= got.error <= got.plain_error
        better.append(got.error / best < got.plain_error / best)
    assert sum(better) > 10


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 6),
    groups=st.integers(1, 6),
    block=st.sampled_from([1, 4, 7, 128]),
    pattern=st.sampled_from([None, (2, 4), (1, 4), (4, 4)]),
    keep=st.sampled_from([0.0, 0.3, 0.5, 1.0, 3]),
    seed=st.integers(0, 500),
)
def test_prune_counts_survivors_and_is_never_worse_than_the_largest(m, groups, block, pattern, keep, seed):
    w, moment, _, _ = problem(m, 4 * groups, 1, seed)
    h = damped(moment, 0.01)
    options = {"pattern": pattern} if pattern else {"keep": keep}
    got = ops.second_order_prune(w, moment, block=block, **options)
    assert not got.values[~got.mask].any()
    if pattern:
        assert (got.mask.view(m, groups, 4).sum(-1) == pattern[0]).all()
    else:
        assert int(got.mask.sum()) == (round(keep * w.numel()) if isinstance(keep, float) else keep)
    assert got.error == pytest.approx(loss(w, got.values, h), rel=1e-5, abs=1e-6)
    assert got.error <= got.plain_error * (1 + 1e-9)


def test_prune_is_the_sweep_by_definition():
    w, moment, _, _ = problem(40, 12, 1, 2)
    h = damped(moment, 0.01)
    got = ops.second_order_prune(w, moment, pattern=(2, 4), block=5)
    assert got.error < got.plain_error
    expected = sweep(w, h, range(12), lambda j, column: column * got.mask[:, j])
    torch.testing.assert_close(got.values.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_survivors_make_up_for_the_rest():
    """Two equal inputs: half of the weights can go, and nothing is lost; the largest magnitudes alone lose."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 1)
    w = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    got = ops.second_order_prune(w, x.t() @ x / 200, pattern=(1, 2), damping=1e-6)
    torch.testing.assert_close(x @ got.values.t(), x @ w.t(), rtol=1e-3, atol=1e-3)
    assert got.plain_error > 100 * got.error


def test_half_precision_layouts_dead_inputs_and_singular_moments(rng):
    w, moment, book, exact = problem(4, 10, 3, 0, samples=3)  # rank 3
    moment[:, 2] = moment[2] = 0.0
    wide = ops.second_order_quantize(w.bfloat16().float(), moment, book, exact=exact)
    half = ops.second_order_quantize(w.bfloat16().t().contiguous().t(), moment, book, exact=exact)
    assert torch.equal(wide.values, half.values) and wide.values.isfinite().all()
    nothing = ops.second_order_quantize(w, torch.zeros(10, 10), book)
    assert torch.equal(nothing.values, book.gather(1, (w[..., None] - book[:, None]).abs().argmin(-1)))
    assert ops.second_order_prune(w, torch.zeros(10, 10), 0.5).values.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"w": torch.zeros(3)}, ValueError, "w must be a matrix"),
        ({"w": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "w must be float32"),
        ({"w": torch.full((3, 4), float("nan"))}, ValueError, "w contains NaN"),
        ({"moment": torch.eye(3)}, ValueError, "moment must have shape"),
        ({"moment": torch.randn(4, 4)}, ValueError, "symmetric"),
        ({"moment": -torch.eye(4)}, ValueError, "positive semidefinite"),
        ({"moment": torch.tensor([[0.0, 9], [9, 0]]).repeat(2, 2)}, ValueError, "positive semidefinite"),
        ({"moment": torch.full((4, 4), float("inf"))}, ValueError, "moment contains NaN or Inf"),
        ({"damping": 0.0}, ValueError, "damping"),
        ({"damping": "a"}, ValueError, "damping"),
        ({"block": 0}, ValueError, "block"),
        ({"codebook": torch.zeros(2, 3)}, ValueError, "codebook must have shape"),
        ({"codebook": torch.tensor([1.0, 0.0])}, ValueError, "ascend"),
        ({"codebook": torch.tensor([0.0, float("inf")])}, ValueError, "codebook contains"),
        ({"exact": torch.zeros(3, 4)}, TypeError, "exact must be a bool"),
        ({"exact": torch.zeros(4, dtype=torch.bool)}, ValueError, "exact must have shape"),
    ],
)
def test_quantize_names_what_is_wrong(change, error, match):
    good = {"w": torch.randn(3, 4), "moment": torch.eye(4), "codebook": torch.tensor([-1.0, 1.0])}
    ops.second_order_quantize(**good)
    with pytest.raises(error, match=match):
        ops.second_order_quantize(**{**good, **change})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, ValueError, "exactly one"),
        ({"keep": 0.5, "pattern": (2, 4)}, ValueError, "exactly one"),
        ({"keep": 1.5}, ValueError, "keep"),
        ({"keep": -1}, ValueError, "keep"),
        ({"pattern": (2, 3)}, ValueError, "divide"),
        ({"pattern": (5, 4)}, ValueError, "pattern"),
    ],
)
def test_prune_names_what_is_wrong(options, error, match):
    with pytest.raises(error, match=match):
        ops.second_order_prune(torch.randn(3, 4), torch.eye(4), **options)
