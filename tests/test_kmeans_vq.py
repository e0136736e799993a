"""kmeans_vq against its float64 reference, and what Lloyd's iterations promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import _native, ops


def distortion(x, codebook, codes, h=None):
    error = (x.double() - codebook.double()[codes.long()]).square().sum(-1)
    return float((error if h is None else h.double() * error).sum())


def check(x, result, h=None):
    """Codes are nearest but for float rounding, and the distortion is that of what is returned."""
    assert float(result.distortion) == pytest.approx(distortion(x, result.codebook, result.codes, h), rel=1e-12)
    away = x.double() - x.double().mean(0)
    book = result.codebook.double() - x.double().mean(0)
    squares = (away[:, None] - book).square().sum(-1)
    size = away.square().sum(-1).max() + book.square().sum(-1).max()
    assert bool((squares.gather(1, result.codes.long()[:, None])[:, 0] <= squares.min(1).values + 2e-6 * size).all())


@pytest.mark.parametrize("d", [2, 4, 8])
@pytest.mark.parametrize("n", [1, 2, 7, 31, 32, 33, 64, 500])
def test_matches_the_reference(isa, rng, n, d):
    x, h = torch.randn(n, d, generator=rng), torch.rand(n, generator=rng)
    for k in (1, 2, 7, 64):
        init = x[:k].clone() if k <= n else torch.randn(k, d, generator=rng)
        for weights in (None, h):
            got = ops.kmeans_vq(x, k, weights=weights, init=init, max_iter=5, tol=0)
            check(x, got, weights)
            if k > n:
                assert float(got.distortion) == 0
                continue
            want = ops.kmeans_vq_reference(x, k, weights=weights, init=init, max_iter=5, tol=0)
            assert float(got.distortion) == pytest.approx(float(want.distortion), rel=1e-5, abs=1e-9)
            torch.testing.assert_close(got.codebook, want.codebook, rtol=1e-4, atol=1e-5)


def test_distortion_never_rises(isa, rng):
    x = torch.randn(3000, 4, generator=rng)
    init = torch.randn(40, 4, generator=rng) + 3  # some codewords start with nothing
    before = math.inf
    for max_iter in range(12):
        now = ops.kmeans_vq(x, 40, init=init, max_iter=max_iter, tol=0)
        assert float(now.distortion) <= before and int(now.iterations) <= max_iter
        before = float(now.distortion)
    done = ops.kmeans_vq(x, 40, init=init, max_iter=1000, tol=0)
    again = ops.kmeans_vq(x, 40, init=done.codebook, max_iter=1000, tol=0)
    assert float(again.distortion) <= float(done.distortion)
    assert done.codes.unique().numel() == 40  # nobody is left without vectors


def test_cold_start_is_good_and_reproducible(rng):
    """Clusters far apart are all found, which a random start would rarely do."""
    centers = 100 * torch.randn(16, 8, generator=rng)
    x = (centers[:, None] + torch.randn(16, 50, 8, generator=rng)).reshape(-1, 8)
    found = [ops.kmeans_vq(x, 16, generator=torch.Generator().manual_seed(s)).distortion for s in range(10)]
    assert sum(float(f) < 1.2 * x.numel() for f in found) >= 8
    assert torch.equal(ops.kmeans_vq(x, 16).codebook, ops.kmeans_vq(x, 16).codebook)
    seeded = [ops.kmeans_vq(x, 20, generator=torch.Generator().manual_seed(s), max_iter=0).codebook for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    assert all(bool((x == c).all(1).any()) for c in seeded[0])  # vectors of x


def test_a_sample_seeds_large_inputs(rng):
    x = torch.randn(70_000, 2, generator=rng)
    result = ops.kmeans_vq(x, 16)
    check(x, result)
    assert float(result.distortion) < 1.05 * float(ops.kmeans_vq(x, 16, init=x[:16].clone(), max_iter=300).distortion)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 12),
    d=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([2.0**-100, 1.0, 2.0**60, 2.0**120]),
    distinct=st.integers(1, 6),
)
def test_ties_extreme_scales_and_few_distinct_vectors(n, k, d, seed, scale, distinct):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(distinct, d, generator=rng)[torch.randint(0, distinct, (n,), generator=rng)] * scale
    result = ops.kmeans_vq(x, k, tol=0)
    check(x / scale, result._replace(codebook=result.codebook / scale, distortion=result.distortion / scale**2))
    if k >= distinct:
        assert float(result.distortion) <= 1e-12 * float(x.double().square().sum())
    assert result.codebook.isfinite().all()


def test_lowest_codeword_in_a_tie(isa):
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    init = torch.tensor([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert ops.kmeans_vq(x, 4, init=init, max_iter=0).codes.tolist() == [1, 1, 3]


def test_zero_weights_and_large_offsets(rng):
    x, h = torch.randn(400, 4, generator=rng), (torch.rand(400, generator=rng) < 0.5).float()
    got = ops.kmeans_vq(x, 8, weights=h, init=x[:8].clone(), tol=0)
    alone = ops.kmeans_vq(x[h > 0], 8, init=x[:8].clone(), tol=0)
    assert float(got.distortion) == pytest.approx(float(alone.distortion), rel=1e-5)
    moved = ops.kmeans_vq(x + 1000, 8, init=x[:8] + 1000, tol=0)
    plain = ops.kmeans_vq(x, 8, init=x[:8].clone(), tol=0)
    assert float(moved.distortion) == pytest.approx(float(plain.distortion), rel=1e-3)


def test_batches_are_problems_of_their_own(isa, rng):
    x, h = torch.randn(3, 100, 4, generator=rng), torch.rand(3, 100, generator=rng)
    start = torch.randn(3, 9, 4, generator=rng)
    for weights in (None, h):
        got = ops.kmeans_vq(x, 9, weights=weights, init=start)
        assert got.codebook.shape == (3, 9, 4) and got.codes.shape == (3, 100) and got.distortion.shape == (3,)
        for b in range(3):
            alone = ops.kmeans_vq(x[b], 9, weights=None if weights is None else weights[b], init=start[b])
            assert all(torch.equal(a[b], v) for a, v in zip(got, alone, strict=True))
    assert ops.kmeans_vq(x[:0], 9).codes.shape == (0, 100)


def test_threads_isas_and_out_agree(rng):
    x = torch.randn(50_000, 4, generator=rng)
    before, isa = torch.get_num_threads(), _native.active_isa()
    first = ops.kmeans_vq(x, 32, max_iter=4)
    out = ops.kmeans_vq(x, 32, max_iter=0)
    try:
        for name in _native.supported_isas():
            _native.set_isa(name)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                again = ops.kmeans_vq(x, 32, max_iter=4, out=out)
                assert all(a is b for a, b in zip(again, out, strict=True))
                assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    finally:
        torch.set_num_threads(before)
        _native.set_isa(isa)


def test_plain_torch_path_and_half_precision(monkeypatch, rng):
    x, h = torch.randn(2, 60, 2, generator=rng), torch.rand(2, 60, generator=rng)
    native = ops.kmeans_vq(x.half(), 5, weights=h, init=x[:, :5])
    cold = ops.kmeans_vq(x, 5)
    monkeypatch.setattr(_native, "has_kernel", lambda *_: False)
    plain = ops.kmeans_vq(x.half(), 5, weights=h, init=x[:, :5])
    torch.testing.assert_close(plain.distortion, native.distortion, rtol=1e-5, atol=0)
    torch.testing.assert_close(ops.kmeans_vq(x, 5).distortion, cold.distortion, rtol=0.3, atol=0)
    with pytest.raises(ValueError, match="weights"):
        ops.kmeans_vq(x, 5, weights=-h)


X = torch.ones(5, 2)


@pytest.mark.parametrize(
    ("x", "k", "kwargs", "error", "named"),
    [
        ([1.0], 2, {}, TypeError, "x"),
        (X.int(), 2, {}, TypeError, "x"),
        (X[0], 2, {}, ValueError, "x"),
        (X[:0], 2, {}, ValueError, "x"),
        (torch.ones(5, 3), 2, {}, ValueError, "x"),
        (X * math.nan, 2, {}, ValueError, "x contains NaN"),
        (torch.stack([X, X * math.inf]), 2, {}, ValueError, r"x\[1\] contains NaN"),
        (X, 0, {}, ValueError, "k"),
        (X, 257, {}, ValueError, "k"),
        (X, 2, {"weights": torch.ones(4)}, ValueError, "weights"),
        (X, 2, {"weights": -torch.ones(5)}, ValueError, "weights"),
        (X, 2, {"weights": torch.zeros(5)}, ValueError, "weights"),
        (X, 2, {"init": torch.ones(3, 2)}, ValueError, "init"),
        (X, 2, {"init": torch.full((2, 2), math.inf)}, ValueError, "init"),
        (X, 2, {"max_iter": -1}, ValueError, "max_iter"),
        (X, 2, {"tol": -1.0}, ValueError, "tol"),
        (X, 2, {"tol": math.nan}, ValueError, "tol"),
        (X, 2, {"out": 3}, TypeError, "out"),
    ],
)
def test_bad_arguments_are_named(x, k, kwargs, error, named):
    with pytest.raises(error, match=named):
        ops.kmeans_vq(x, k, **kwargs)
