"""sparse_codebook: the best of all supports and codebooks on small cases, exact for its codebook on all."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def check_exact_for_its_codebook(x, got, kappa, hs=None):
    """The kappa entries with the largest positive benefit are in the support, the lowest indices in a tie."""
    flat, codes = x.flatten().double(), got.codes.flatten().long()
    nearest = ops.assign_reference(flat.float(), got.codebook).long()
    c = got.codebook.double()[nearest]
    h = torch.ones_like(flat) if hs is None else hs.flatten().double()
    benefit = h * (c * (2 * flat - c))
    order = benefit.sort(descending=True, stable=True).indices[:kappa]
    order = order[benefit[order] > 0]
    want = torch.zeros_like(codes)
    want[order] = nearest[order] + 1
    assert torch.equal(codes, want)
    assert got.nonzeros == order.numel() <= kappa
    left = h * (flat - torch.where(want > 0, c, 0.0)).square()
    assert got.distortion == pytest.approx(float(left.sum()), rel=1e-11, abs=1e-300)
    assert torch.equal(got.decompress().flatten(), torch.where(want > 0, c, 0.0).float())


def best_of_all(x, k, kappa):
    """Least distortion over all supports, all contiguous partitions of their values."""
    values = sorted(x)
    best = sum(v * v for v in values)
    for size in range(1, kappa + 1):
        for support in itertools.combinations(range(len(values)), size):
            zeros = sum(v * v for i, v in enumerate(values) if i not in support)
            kept = [values[i] for i in support]
            for cells in range(1, min(k, size) + 1):
                for cuts in itertools.combinations(range(1, size), cells - 1):
                    total = zeros
                    for a, b in itertools.pairwise([0, *cuts, size]):
                        mean = sum(kept[a:b]) / (b - a)
                        total += sum((v - mean) ** 2 for v in kept[a:b])
                    best = min(best, total)
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-8, 8, width=32), st.integers(-3, 3).map(float)), min_size=1, max_size=7),
    st.integers(1, 3),
    st.data(),
)
def test_best_of_all_supports_and_codebooks(values, k, data):
    kappa = data.draw(st.integers(0, len(values)))
    x = torch.tensor(values)
    got = ops.sparse_codebook(x, k, kappa)
    check_exact_for_its_codebook(x, got, kappa)
    scale = sum(v * v for v in values)
    assert got.distortion <= best_of_all(x.double().tolist(), k, kappa) + 1e-5 * scale


@pytest.mark.parametrize("n", [1, 8, 9, 1000, 16_383, 16_384, 70_001])
@pytest.mark.parametrize("k", [1, 2, 3, 16, 17, 255])
def test_exact_for_its_codebook(isa, rng, n, k):
    x = torch.randn(n, generator=rng)
    for part in (0.0, 0.05, 0.5, 1.0):
        kappa = round(part * n)
        check_exact_for_its_codebook(x, ops.sparse_codebook(x, k, kappa), kappa)


@pytest.mark.parametrize("k", [1, 2, 4, 16])
@pytest.mark.parametrize("part", [0.02, 0.2, 0.7])
def test_better_than_pruning_first_and_clustering_then(rng, k, part):
    x = torch.randn(60_000, generator=rng) ** 3
    kappa = round(part * x.numel())
    pruned = ops.topk_prune(x, kappa)
    then = ops.kmeans1d(x[pruned.mask], k)
    sequential = then.distortion + float(x[~pruned.mask].double().square().sum())
    got = ops.sparse_codebook(x, k, kappa)
    assert got.distortion <= sequential * (1 + 1e-6)
    turns = ops.sparse_codebook_reference([x], k, kappa)
    assert got.distortion <= turns.distortion * (1 + 1e-4)
    if k <= 4 and part == 0.2:
        assert got.distortion < 0.9995 * sequential


def test_one_sign_and_too_many_nonzeros(rng):
    """One codeword is best spent on one sign; what would not gain from it stays zero."""
    x = torch.cat([torch.full((60,), 2.0), torch.full((40,), -2.0)])
    got = ops.sparse_codebook(x, 1, 100)
    assert got.codebook.tolist() == [2.0] and got.nonzeros == 60 and got.distortion == 160
    both = ops.sparse_codebook(x, 2, 100)
    assert both.codebook.tolist() == [-2.0, 2.0] and both.distortion == 0 and both.nonzeros == 100


@pytest.mark.parametrize("levels", [1, 3, 40])
def test_ties_go_to_the_lowest_index(isa, rng, levels):
    x = torch.randint(-levels, levels + 1, (40_000,), generator=rng) / levels
    for kappa in (1, 777, 20_000):
        check_exact_for_its_codebook(x, ops.sparse_codebook(x, 3, kappa), kappa)


def test_warm_start_is_never_above_its_start(isa, rng):
    x = torch.randn(30_000, generator=rng) ** 3
    for k in (1, 3, 20):
        init = torch.randn(k, generator=rng).sort().values
        previous = float("inf")
        for iterations in (0, 1, 100, 100):
            got = ops.sparse_codebook(x, k, 3000, init=init, max_iter=iterations)
            check_exact_for_its_codebook(x, got, 3000)
            assert got.distortion <= previous
            if iterations == 0:
                assert torch.equal(got.codebook, init)
            previous, init = got.distortion, got.codebook


def test_warm_start_reaches_what_a_cold_one_does(rng):
    x = torch.randn(50_000, generator=rng)
    cold = ops.sparse_codebook(x, 4, 5000)
    warm = ops.sparse_codebook(x + 1e-3 * torch.randn(50_000, generator=rng), 4, 5000, init=cold.codebook)
    assert warm.distortion == pytest.approx(cold.distortion, rel=1e-3)


def test_weights(rng):
    x, h = torch.randn(20_000, generator=rng), torch.rand(20_000, generator=rng) ** 4
    got = ops.sparse_codebook(x, 4, 2000, weights=h)
    check_exact_for_its_codebook(x, got, 2000, h)
    want = ops.sparse_codebook_reference([x], 4, 2000, weights=[h])
    assert got.distortion <= want.distortion * (1 + 1e-4)
    again = ops.sparse_codebook(x, 4, 2000, weights=h, init=got.codebook)
    assert again.distortion <= got.distortion
    with pytest.raises(ValueError, match="weights must be finite"):
        ops.sparse_codebook(x, 4, 2000, weights=-h)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e37])
def test_any_scale(rng, scale):
    x = torch.randn(20_000, generator=rng).clamp(-3, 3)
    got = ops.sparse_codebook(x * scale, 4, 2000)
    assert got.distortion / scale**2 == pytest.approx(ops.sparse_codebook(x, 4, 2000).distortion, rel=1e-3)


def test_joint_over_tensors_and_same_for_any_threads_and_isa(isa, rng):
    xs = [torch.randn(300, 200, generator=rng), torch.empty(0), torch.randn(77, generator=rng) * 5]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.sparse_codebook(xs, 5, 9999))
    torch.set_num_threads(before)
    whole = ops.sparse_codebook(torch.cat([x.flatten() for x in xs]), 5, 9999)
    assert torch.equal(torch.cat([c.flatten() for c in results[0].codes]), whole.codes)
    for r in results[1:]:
        assert torch.equal(r.codebook, results[0].codebook) and r.distortion == results[0].distortion
        assert all(map(torch.equal, r.codes, results[0].codes))


def test_half_precision_and_reused_output(rng):
    x = torch.randn(50, 60, generator=rng).to(torch.float16)
    first = ops.sparse_codebook(x, 3, 100)
    assert torch.equal(first.codes, ops.sparse_codebook(x.float(), 3, 100).codes)
    again = ops.sparse_codebook(2 * x, 3, 100, out=first)
    assert again.codes is first.codes


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"x": torch.empty(0)}, ValueError, "x"),
        ({"x": torch.tensor([1.0, torch.nan, 1.0, 1.0])}, ValueError, "x contains NaN"),
        ({"k": 0}, ValueError, "k"),
        ({"k": 256}, ValueError, "k"),
        ({"kappa": 5}, ValueError, "kappa"),
        ({"kappa": 0.5}, TypeError, "kappa"),
        ({"init": torch.zeros(3)}, ValueError, "init"),
        ({"max_iter": -1}, ValueError, "max_iter"),
        ({"weights": torch.zeros(3)}, ValueError, "weights"),
        ({"out": ()}, TypeError, "out"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    given = {"x": torch.arange(4.0), "k": 2, "kappa": 1} | arguments
    x, k, kappa = (given.pop(name) for name in ("x", "k", "kappa"))
    with pytest.raises(error, match=named):
        ops.sparse_codebook(x, k, kappa, **given)
