"""nm_prune equals a stable sort of each group exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def check(x, n, m, dim=-1, **given):
    scores = given.get("scores")
    if "weights" in given:
        scores = given["weights"] * x.abs() * x.abs()
    want = ops.nm_prune_reference(x, n, m, dim=dim, scores=scores)
    got = ops.nm_prune(x, n, m, dim=dim, **given)
    bits = ops.nm_prune(x, n, m, dim=dim, mask="bits", **given)
    assert torch.equal(got.mask, want.mask) and torch.equal(got.values, want.values)
    assert torch.equal(bits.values, want.values)
    if x.numel():
        assert torch.equal(ops.unpack_codes(bits.mask[None], 1, x.numel())[0].bool().view(x.shape), want.mask)
    assert bits.mask.numel() == (x.numel() + 31) // 32


@pytest.mark.parametrize("m", range(2, 17))
@pytest.mark.parametrize("groups", [0, 1, 2, 7, 8, 33, 300])
def test_rows(isa, rng, m, groups):
    x = torch.randint(-3, 4, (groups * m,), generator=rng) / 2  # ties everywhere
    for n in {1, m // 2, m - 1}:
        check(x, n, m)
        check(torch.randn(groups * m, generator=rng), n, m)


@pytest.mark.parametrize("m", [2, 3, 4, 8, 13, 16])
@pytest.mark.parametrize("inner", [2, 9, 16, 31, 32, 33, 64, 100])
def test_columns(isa, rng, m, inner):
    x = torch.randint(-3, 4, (5, 2 * m, inner), generator=rng) / 2
    for n in {1, m // 2, m - 1}:
        check(x, n, m, dim=1)


@pytest.mark.parametrize("kind", ["weights", "scores"])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_weights_and_scores(isa, rng, kind, dim):
    x = torch.randn(12, 24, 36, generator=rng)
    for m in (3, 4, 12):
        check(x, 2, m, dim=dim, **{kind: torch.randint(0, 3, x.shape, generator=rng).float()})


@pytest.mark.parametrize("dim", [0, 1])
def test_large(isa, rng, dim):
    """So large that values are written past the caches, and work is split."""
    x = torch.randn(1600, 2048, generator=rng)
    check(x, 2, 4, dim=dim)
    if dim:
        check(x[:, :2040], 2, 5, dim=dim)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 16).flatmap(
        lambda m: st.tuples(
            st.just(m),
            st.integers(1, m - 1),
            st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=m, max_size=m),
        )
    )
)
def test_any_floats(case):
    m, n, values = case
    check(torch.tensor(values), n, m)


def test_same_for_any_number_of_threads(rng):
    x = torch.randint(-9, 10, (300, 1000), generator=rng) / 7
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([ops.nm_prune(x, 3, 5, dim=d, mask="bits") for d in (0, 1)])
    torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.values, b.values) and torch.equal(a.mask, b.mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_strides(rng, dtype):
    x = torch.randn(64, 48, generator=rng).to(dtype)
    got = ops.nm_prune(x.t(), 2, 4)
    assert got.values.dtype == dtype
    assert torch.equal(got.values.t(), ops.nm_prune(x, 2, 4, dim=0).values)


def test_reused_output_and_no_mask(rng):
    x, y = torch.randn(2, 8, 16, generator=rng)
    first = ops.nm_prune(x, 2, 4)
    again = ops.nm_prune(y, 2, 4, out=first)
    assert again.values is first.values and torch.equal(again.values, ops.nm_prune_reference(y, 2, 4).values)
    assert ops.nm_prune(x, 2, 4, mask=None).mask is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(8, 3), (40, 160)])
def test_nan_and_inf_are_refused(isa, rng, bad, shape):
    x = torch.randn(shape, generator=rng)
    x[-1, -1] = bad
    with pytest.raises(ValueError, match="x contains NaN or Inf"):
        ops.nm_prune(x, 1, 2, dim=0)
    with pytest.raises(ValueError, match="x contains NaN or Inf"):
        ops.nm_prune(x.t().contiguous(), 1, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((torch.ones(8), 4, 4), ValueError, "n must be"),
        ((torch.ones(8), 0, 4), ValueError, "n must be"),
        ((torch.ones(34), 1, 17), ValueError, "m must be"),
        ((torch.ones(8), 1.0, 4), TypeError, "n must be"),
        ((torch.ones(9), 2, 4), ValueError, "multiple of m = 4 entries along dim -1, got 9"),
        ((torch.tensor(1.0), 2, 4), ValueError, "at least one dimension"),
        ((torch.ones(8).double(), 2, 4), TypeError, "x must be"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        ops.nm_prune(*arguments)


def test_bad_options_are_named():
    x = torch.ones(8)
    for options, error, named in [
        ({"dim": 1}, ValueError, "dim"),
        ({"weights": torch.ones(4)}, ValueError, "weights"),
        ({"scores": -x}, ValueError, "scores must not be negative"),
        ({"mask": 1}, ValueError, "mask"),
        ({"out": 3}, TypeError, "out"),
        ({"out": ops.NMPruneResult(x, x.bool())}, ValueError, "share memory"),
    ]:
        with pytest.raises(error, match=named):
            ops.nm_prune(x, 2, 4, **options)
