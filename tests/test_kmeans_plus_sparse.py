"""kmeans_plus_sparse: exact for its codebook, as good as turns on the data, monotone."""

import pytest
import torch

from lc_ext import ops

METHODS = ["trimmed", "alternate"]


def sample(rng, n, kind):
    x = torch.randn(n, generator=rng)
    if kind == "heavy":
        return x / (torch.rand(n, generator=rng) + 0.05)
    if kind == "offset":
        return x * 0.01 + 5
    return (x * 8).round() / 8 if kind == "levels" else x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "offset", "levels"])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_as_good_as_turns_on_the_data(rng, k, kind, method):
    x = sample(rng, 40_000, kind)
    got = ops.kmeans_plus_sparse(x, k, 400, method=method)
    want = ops.kmeans_plus_sparse_reference([x], k, 400, alternate=method == "alternate", tol=1e-6)
    # Heavy tails and few levels have many fixed points; alternation stops early.
    tol = 2e-3 if method == "trimmed" and kind in ("normal", "offset") else 2e-2
    assert got.distortion <= want.distortion * (1 + tol)
    exact = ops.codebook_plus_sparse(x, got.codebook, 400)
    assert torch.equal(got.codes, exact.codes) and torch.equal(got.indices, exact.indices)
    assert got.distortion == exact.distortion


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "levels"])
def test_warm_start_is_never_above_its_start(isa, rng, kind, method):
    x = sample(rng, 30_000, kind)
    for k in (2, 7, 40):
        init = torch.randn(k, generator=rng).sort().values
        for _ in range(3):
            before = ops.codebook_plus_sparse(x, init, 300).distortion
            got = ops.kmeans_plus_sparse(x, k, 300, init=init, method=method)
            assert got.distortion <= before
            init = got.codebook


@pytest.mark.parametrize("method", METHODS)
def test_planted_outliers_are_recovered(rng, method):
    """A two-valued matrix with a few large spikes is two codewords and as many corrections, exactly."""
    x = torch.where(torch.rand(60, 500, generator=rng) < 0.5, -1.0, 1.0)
    spikes = torch.arange(0, 30_000, 100)
    x.view(-1)[spikes] += 50
    got = ops.kmeans_plus_sparse(x, 2, 300, method=method)
    assert got.codebook.tolist() == pytest.approx([-1, 1])
    assert torch.equal(got.indices, spikes) and got.distortion < 1e-6


def test_trimmed_beats_plain_kmeans_and_its_corrections(rng):
    x = sample(rng, 50_000, "heavy")
    plain = ops.codebook_plus_sparse(x, ops.kmeans1d(x, 4).codebook, 500).distortion
    assert ops.kmeans_plus_sparse(x, 4, 500).distortion < 0.9 * plain


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "kappa"), [(1, 0), (1, 1), (5, 5), (9, 2), (16_384, 0), (16_384, 16_384)])
def test_small_and_degenerate(isa, rng, n, kappa, method):
    x = torch.randn(n, generator=rng)
    for k in (1, 3, 256):
        got = ops.kmeans_plus_sparse(x, k, kappa, method=method)
        assert got.codebook.shape == (k,) and got.indices.numel() == kappa
        assert bool((got.codebook.diff() >= 0).all())
        if kappa == n or k >= n - kappa:
            assert got.distortion <= 1e-10 * float(x.square().sum())
    same = ops.kmeans_plus_sparse(torch.full((n,), 3.0), 2, kappa, method=method)
    assert same.distortion == 0


@pytest.mark.parametrize("method", METHODS)
def test_weights(rng, method):
    x, h = torch.randn(20_000, generator=rng), torch.rand(20_000, generator=rng) ** 4
    got = ops.kmeans_plus_sparse(x, 4, 200, weights=h, method=method)
    want = ops.kmeans_plus_sparse_reference([x], 4, 200, weights=[h], alternate=method == "alternate", tol=1e-4)
    assert got.distortion <= want.distortion * 1.01
    blind = ops.kmeans_plus_sparse(x, 4, 200, method=method)
    assert got.distortion < ops.codebook_plus_sparse(x, blind.codebook, 200, weights=h).distortion
    again = ops.kmeans_plus_sparse(x, 4, 200, weights=h, init=got.codebook, method=method)
    assert again.distortion <= got.distortion


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e37])
def test_any_scale(rng, scale):
    x = torch.randn(20_000, generator=rng).clamp(-3, 3)
    got = ops.kmeans_plus_sparse(x * scale, 4, 200)
    assert got.distortion / scale**2 == pytest.approx(ops.kmeans_plus_sparse(x, 4, 200).distortion, rel=1e-2)


def test_outliers_far_beyond_the_sample(rng):
    x = torch.randn(30_000, generator=rng)
    x[17_123], x[5] = 1e30, -1e25
    got = ops.kmeans_plus_sparse(x, 4, 2)
    assert got.indices.tolist() == [5, 17_123]


def test_same_for_any_number_of_threads_and_isa(isa, rng):
    xs = [torch.randn(300, 400, generator=rng), torch.randn(77, generator=rng)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results += [ops.kmeans_plus_sparse(xs, 5, 999, method=m) for m in METHODS]
    torch.set_num_threads(before)
    for a, b in zip(results[:-2], results[2:], strict=True):
        assert torch.equal(a.codebook, b.codebook) and torch.equal(a.indices, b.indices)
        assert a.distortion == b.distortion and all(map(torch.equal, a.codes, b.codes))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"x": torch.empty(0)}, ValueError, "x"),
        ({"x": torch.tensor([1.0, torch.inf, 1.0, 1.0])}, ValueError, "x contains NaN"),
        ({"k": 0}, ValueError, "k"),
        ({"k": 257}, ValueError, "k"),
        ({"kappa": 5}, ValueError, "kappa"),
        ({"init": torch.zeros(3)}, ValueError, "init"),
        ({"init": torch.tensor([1.0, 0.0])}, ValueError, "init"),
        ({"method": "both"}, ValueError, "method"),
        ({"tol": 1.0}, ValueError, "tol"),
        ({"max_iter": -1}, ValueError, "max_iter"),
        ({"weights": torch.zeros(4)}, ValueError, "weights"),
        ({"out": ()}, TypeError, "out"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    given = {"x": torch.arange(4.0), "k": 2, "kappa": 1} | arguments
    x, k, kappa = (given.pop(name) for name in ("x", "k", "kappa"))
    with pytest.raises(error, match=named):
        ops.kmeans_plus_sparse(x, k, kappa, **given)
