"""binary_plus_sparse is the best of all windows, and so of all corrections."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def check(xs, kappa):
    got, want = ops.binary_plus_sparse(xs, kappa), ops.binary_plus_sparse_reference(xs, kappa)
    scale = sum(float(x.double().square().sum()) for x in xs)
    # c is rounded to float32, which costs at most N (c eps)^2 of the sum of squares.
    assert got.distortion <= want.distortion + 1e-13 * scale
    assert want.distortion <= got.distortion + 1e-13 * scale
    assert got.codebook[0] == -got.codebook[1] and got.codebook[1] >= 0
    return got


@pytest.mark.parametrize("n", [1, 2, 8, 9, 100, 16384, 50_001])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("shape", ["normal", "heavy", "levels", "two scales", "uniform"])
def test_is_the_best_window(rng, n, part, shape):
    x = torch.randn(n, generator=rng)
    if shape == "heavy":
        x = x**3
    elif shape == "levels":
        x = (4 * x).round() / 4
    elif shape == "two scales":  # two minima that are all but equal
        x = torch.where(torch.arange(n) % 2 == 0, x * 0.01 + 1, x * 0.01 + 3)
    elif shape == "uniform":
        x = torch.rand(n, generator=rng)
    check([x], round(part * n))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9), st.data())
def test_no_other_corrections_are_better(values, data):
    x = torch.tensor(values)
    kappa = data.draw(st.integers(0, len(values)))
    magnitude = x.abs().double()
    kept = [magnitude[list(rest)] for rest in itertools.combinations(range(len(values)), len(values) - kappa)]
    best = min(float((m - m.mean()).square().sum()) if m.numel() else 0.0 for m in kept)
    got = ops.binary_plus_sparse(x, kappa).distortion
    assert got == pytest.approx(best, rel=1e-6, abs=1e-11 * float(magnitude.square().sum()))


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e37])
def test_any_scale(rng, scale):
    check([torch.randn(20_000, generator=rng).clamp(-3, 3) * scale], 300)


def test_outlier_far_beyond_the_sample(rng):
    x = torch.randn(30_000, generator=rng)
    x[17_123] = 1e30
    got = check([x], 1)
    assert got.indices.tolist() == [17_123]


def test_joint_over_tensors_and_same_for_any_threads_and_isa(isa, rng):
    xs = [torch.randn(300, 400, generator=rng), torch.randn(7, generator=rng), torch.empty(0)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(check(xs, 1234))
    torch.set_num_threads(before)
    assert torch.equal(results[0].codebook, results[1].codebook)
    assert torch.equal(results[0].indices, results[1].indices)
    assert results[0].codebook[1].item() == pytest.approx(0.7799, abs=0.01)


@pytest.mark.parametrize(
    ("x", "kappa", "error", "named"),
    [
        (torch.empty(0), 0, ValueError, "x"),
        (torch.tensor([1.0, torch.nan]), 0, ValueError, "x contains NaN"),
        (torch.ones(2).int(), 0, TypeError, "x"),
        (torch.ones(2), 3, ValueError, "kappa"),
        (torch.ones(2), True, TypeError, "kappa"),
    ],
)
def test_bad_arguments_are_named(x, kappa, error, named):
    with pytest.raises(error, match=named):
        ops.binary_plus_sparse(x, kappa)
