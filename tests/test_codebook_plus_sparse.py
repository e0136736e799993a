"""codebook_plus_sparse equals its definition exactly, and no other corrections are better."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops

FLOATS = st.floats(-1e4, 1e4, width=32)


def check(xs, codebook, kappa, hs=None):
    got = ops.codebook_plus_sparse(xs, codebook, kappa, weights=hs)
    want = ops.codebook_plus_sparse_reference(xs, codebook, kappa, weights=hs)
    assert all(torch.equal(a, b) for a, b in zip(got.codes, want.codes, strict=True))
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.values, want.values)
    assert got.distortion == pytest.approx(want.distortion, rel=1e-12, abs=1e-300)
    return got


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 17, 63, 65, 511, 513, 16383, 16384, 32768 + 5, 100_003])
@pytest.mark.parametrize("k", [1, 2, 3, 16, 17, 256])
def test_matches_stable_sort(isa, rng, n, k):
    x, codebook = torch.randn(n, generator=rng), torch.randn(k, generator=rng).sort().values
    for part in (0.0, 0.01, 0.6, 1.0):
        check([x], codebook, round(part * n))


def test_weights_choose_what_is_corrected(isa, rng):
    xs = [torch.randn(s, generator=rng) for s in [(200, 300), (7,), (0,), (50, 41)]]
    hs = [torch.rand(x.shape, generator=rng) * 10.0 ** torch.randint(-3, 4, x.shape, generator=rng) for x in xs]
    codebook = torch.tensor([-1.0, 0.25, 1.5])
    for kappa in (0, 1, 700, 40_000, sum(x.numel() for x in xs)):
        check(xs, codebook, kappa, hs)
        check(xs, codebook, kappa)


@pytest.mark.parametrize("levels", [1, 2, 30])
def test_ties_go_to_the_lowest_index(isa, rng, levels):
    x = torch.randint(-levels, levels + 1, (70_000,), generator=rng) / levels
    for kappa in (1, 999, 35_000, 69_999):
        check([x], torch.tensor([-0.5, 0.5]), kappa)


def test_misleading_sample(isa, rng):
    """All large residuals lie in one place that a sample may miss: the answer must not depend on luck."""
    x = torch.randint(0, 2, (200_000,), generator=rng) + torch.randn(200_000, generator=rng) * 1e-3
    x[123_456:123_500] += 100
    check([x], torch.tensor([0.0, 1.0]), 44)
    check([x], torch.tensor([0.0, 1.0]), 30)
    check([torch.arange(150_000.0)], torch.tensor([0.0]), 17)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e38])
def test_any_scale(isa, rng, scale):
    """Squares of such values are no floats."""
    x = torch.randn(20_000, generator=rng).clamp(-3, 3) * scale
    check([x], torch.tensor([-1.0, 1.0]) * scale, 100)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(FLOATS, st.floats(0, 100, width=32)), min_size=1, max_size=9),
    st.lists(FLOATS, min_size=1, max_size=4),
    st.data(),
)
def test_no_other_corrections_are_better(items, codebook, data):
    x, h = (torch.tensor(v) for v in zip(*items, strict=True))
    book = torch.tensor(sorted(codebook))
    kappa = data.draw(st.integers(0, len(items)))
    got = ops.codebook_plus_sparse(x, book, kappa, weights=h)
    error = (x.double()[:, None] - book.double()).square().min(1).values * h.double()
    best = min(
        float(error[[i for i in range(len(items)) if i not in chosen]].sum())
        for chosen in itertools.combinations(range(len(items)), kappa)
    )
    assert got.distortion == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_sum_is_exact_where_corrected(rng):
    xs = [torch.randn(30, 40, generator=rng), torch.randn(11, generator=rng)]
    got = ops.codebook_plus_sparse(xs, torch.tensor([-1.0, 1.0]), 100)
    total, corrections = got.decompress(), got.corrections()
    left = torch.cat([(x - t).flatten() for x, t in zip(xs, total, strict=True)])
    assert float(left.double().square().sum()) == pytest.approx(got.distortion, rel=1e-6)
    assert left[got.indices].abs().max() < 1e-6
    assert sum(int(c.count_nonzero()) for c in corrections) == 100
    assert [t.shape for t in total] == [x.shape for x in xs]


def test_same_for_any_number_of_threads(rng):
    x = torch.randint(-500, 500, (400_000,), generator=rng) / 77
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.codebook_plus_sparse(x, torch.tensor([-3.0, 3.0]), 4321))
    torch.set_num_threads(before)
    for r in results[1:]:
        assert torch.equal(r.codes, results[0].codes) and torch.equal(r.indices, results[0].indices)
        assert r.distortion == results[0].distortion


def test_half_precision_strides_and_reused_output(rng):
    x = torch.randn(100, 70, generator=rng)
    book = torch.tensor([-1.0, 1.0])
    first = ops.codebook_plus_sparse(x.t(), book, 50)
    assert torch.equal(first.codes, ops.codebook_plus_sparse(x.t().contiguous(), book, 50).codes)
    again = ops.codebook_plus_sparse(2 * x.t(), book, 50, out=first)
    assert again.codes is first.codes and again.values is first.values
    half = x.to(torch.bfloat16)
    assert torch.equal(
        ops.codebook_plus_sparse(half, book, 9).indices, ops.codebook_plus_sparse(half.float(), book, 9).indices
    )


@pytest.mark.parametrize("n", [100, 50_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(isa, rng, n, bad):
    x = torch.randn(n, generator=rng)
    x[n // 2] = bad
    with pytest.raises(ValueError, match="x contains NaN or Inf"):
        ops.codebook_plus_sparse(x, torch.tensor([0.0, 1.0]), 3)
    h = torch.ones(n)
    h[n // 3] = bad
    with pytest.raises(ValueError, match="weights must be finite"):
        ops.codebook_plus_sparse(torch.zeros(n), torch.tensor([0.0, 1.0]), 3, weights=h)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"x": torch.empty(0)}, ValueError, "x"),
        ({"x": torch.ones(4).double()}, TypeError, "x"),
        ({"x": [torch.ones(4), torch.ones(4, device="meta")]}, ValueError, r"x\[1\]"),
        ({"codebook": torch.tensor([1.0, 0.0])}, ValueError, "codebook"),
        ({"codebook": torch.tensor([torch.nan])}, ValueError, "codebook"),
        ({"kappa": 5}, ValueError, "kappa"),
        ({"kappa": 0.5}, TypeError, "kappa"),
        ({"weights": torch.ones(3)}, ValueError, "weights"),
        ({"weights": [torch.ones(4)]}, ValueError, "weights"),
        ({"weights": -torch.ones(4)}, ValueError, "weights"),
        ({"out": 3}, TypeError, "out"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    given = {"x": torch.ones(4), "codebook": torch.tensor([0.0, 1.0]), "kappa": 1} | arguments
    x, codebook, kappa = (given.pop(name) for name in ("x", "codebook", "kappa"))
    with pytest.raises(error, match=named):
        ops.codebook_plus_sparse(x, codebook, kappa, **given)


def test_bad_out_is_named(rng):
    out = ops.codebook_plus_sparse(torch.randn(10, generator=rng), torch.tensor([0.0]), 2)
    with pytest.raises(ValueError, match=r"out\.codes"):
        ops.codebook_plus_sparse(torch.randn(11, generator=rng), torch.tensor([0.0]), 2, out=out)
