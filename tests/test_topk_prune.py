"""topk_prune equals the stable-sort definition exactly."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def unpack(words, like):
    return ops.unpack_codes(words[None], 1, like.numel())[0].bool().view(like.shape)


def check(xs, kappa, weights=None, scores=None):
    """Values, threshold, both kinds of mask and indices against the stable sort."""
    given = scores or [h * x.abs() * x.abs() for h, x in zip(weights, xs, strict=True)] if weights or scores else None
    got = ops.topk_prune(xs, kappa, weights=weights, scores=scores, indices=True)
    want = ops.topk_prune_reference(xs, kappa, given)
    bits = ops.topk_prune(xs, kappa, weights=weights, scores=scores, mask="bits")
    for i, w in enumerate(want.mask):
        assert torch.equal(got.mask[i], w)
        assert torch.equal(unpack(bits.mask[i], w), w) and bits.mask[i].numel() == (w.numel() + 31) // 32
        assert torch.equal(got.indices[i], w.reshape(-1).nonzero().reshape(-1))
        assert torch.equal(got.values[i], want.values[i]) and torch.equal(bits.values[i], want.values[i])
    assert got.threshold.item() == bits.threshold.item() == want.threshold.item()


@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1000, 16383, 16384, 65536 + 7, 300_001])
@pytest.mark.parametrize("part", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_matches_stable_sort(isa, rng, n, part):
    check([torch.randn(n, generator=rng)], round(part * n))


@pytest.mark.parametrize("kappa", [1, 2, 199_999])
def test_extreme_kappa(isa, rng, kappa):
    check([torch.randn(200_000, generator=rng)], kappa)


@pytest.mark.parametrize("levels", [1, 2, 5, 200])
def test_heavy_ties(isa, rng, levels):
    """Quantized weights: the sampled bracket holds far too much, and the radix path deals out the ties."""
    x = torch.randint(-levels, levels + 1, (150_000,), generator=rng) / levels
    for kappa in (1, 1000, 75_000, 149_999):
        check([x], kappa)


def test_joint_over_tensors_of_different_scale_and_size(isa, rng):
    xs = [
        torch.randn(s, generator=rng) * a for s, a in [((300, 784), 1.0), ((7,), 10.0), ((0,), 1.0), ((99, 101), 0.1)]
    ]
    for kappa in (0, 1, 5000, sum(x.numel() for x in xs)):
        check(xs, kappa)


def test_misleading_sample(isa, rng):
    """All large entries lie in one place that a sample may miss: the answer must not depend on luck."""
    x = torch.randn(400_000, generator=rng) * 1e-3
    x[123_456:123_556] = torch.randn(100, generator=rng)
    check([x], 100)
    check([x], 60)
    check([torch.arange(300_000.0)], 17)  # sorted: every chunk is different from every other


@pytest.mark.parametrize("kind", ["weights", "scores"])
@pytest.mark.parametrize("n", [0, 5, 33, 1000, 100_003])
def test_weights_and_scores(isa, rng, kind, n):
    x, given = torch.randn(n, generator=rng), torch.rand(n, generator=rng)
    given[::3] = 0  # ties at a score of zero, for kappa beyond the others
    for kappa in (0, n // 20, n // 2, n):
        check([x], kappa, **{kind: [given]})
    check([x, x[: n // 2]], n // 3, **{kind: [given, given[: n // 2]]})


def test_constant_weights_change_nothing(rng):
    x = torch.randn(50_000, generator=rng)
    assert torch.equal(ops.topk_prune(x, 0.1, weights=torch.full_like(x, 0.25)).mask, ops.topk_prune(x, 0.1).mask)


def test_weighted_survivors_minimise_the_weighted_error(rng):
    """Against every set of three of eight entries."""
    for _ in range(20):
        x, h = torch.randn(8, generator=rng), torch.rand(8, generator=rng)
        got = ops.topk_prune(x, 3, weights=h)
        errors = [(h * x**2).sum() - (h * x**2)[list(kept)].sum() for kept in itertools.combinations(range(8), 3)]
        torch.testing.assert_close((h * (x - got.values) ** 2).sum(), min(errors))


@pytest.mark.parametrize("levels", [None, 2, 200])
def test_large(isa, rng, levels):
    """So large that values are written past the caches; tensors that are not aligned to a cache line are not."""
    x = torch.randn(3_100_001, generator=rng)
    x = x if levels is None else (x * levels / 8).round()
    for part in (x, x[1:]):
        got = ops.topk_prune(part, 0.05, mask="bits")
        want = part.abs().sort(descending=True, stable=True).indices[: round(0.05 * part.numel())]
        keep = torch.zeros(part.shape, dtype=torch.bool)
        keep[want] = True
        assert torch.equal(unpack(got.mask, part), keep)
        assert torch.equal(got.values, torch.where(keep, part, 0))


def test_re_pruning_a_sparse_tensor(isa, rng):
    """Most entries tie at zero, and the threshold is there."""
    x = ops.topk_prune(torch.randn(200_000, generator=rng), 0.05).values
    for kappa in (9_999, 10_000, 10_001, 150_000):
        check([x], kappa)


def test_list_of_many_tiny_tensors(isa, rng):
    check([torch.randn(7, generator=rng) for _ in range(3000)], 2000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=80),
    st.floats(0, 1),
)
def test_any_floats(values, part):
    """Signed zeros, denormals and the largest floats included."""
    check([torch.tensor(values)], round(part * len(values)))


def test_same_for_any_number_of_threads(rng):
    x = torch.randint(-500, 500, (700_000,), generator=rng) / 77
    before = torch.get_num_threads()
    for part in (x, torch.randn(700_000, generator=rng)):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.topk_prune(part, 0.05, indices=True))
        torch.set_num_threads(before)
        assert all(torch.equal(r.mask, results[0].mask) for r in results)
        assert all(torch.equal(r.values, results[0].values) for r in results)
        assert all(torch.equal(r.indices, results[0].indices) for r in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_dtype(rng, dtype):
    x = torch.randn(50, 40, generator=rng).to(dtype)
    got = ops.topk_prune(x, 100)
    assert got.values.dtype == dtype and got.mask.sum() == 100
    assert torch.equal(got.values, torch.where(got.mask, x, 0))


def test_strided_input_and_reused_output(rng):
    x = torch.randn(200, 300, generator=rng)
    first = ops.topk_prune(x.t(), 0.1)
    assert torch.equal(first.values, ops.topk_prune(x, 0.1).values.t())
    y = torch.randn(300, 200, generator=rng)
    again = ops.topk_prune(y, 0.2, out=first)
    assert again.values.data_ptr() == first.values.data_ptr()
    assert torch.equal(again.values, ops.topk_prune(y, 0.2).values)


@pytest.mark.parametrize("n", [100, 100_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kappa", [0, 3, 90])
def test_nan_and_inf_are_refused(isa, rng, n, bad, kappa):
    x = torch.randn(n, generator=rng)
    x[n // 2] = bad
    with pytest.raises(ValueError, match="x contains NaN or Inf"):
        ops.topk_prune(x, kappa)


@pytest.mark.parametrize(
    ("x", "keep", "error", "named"),
    [
        (torch.ones(4), 5, ValueError, "keep"),
        (torch.ones(4), -1, ValueError, "keep"),
        (torch.ones(4), 1.5, ValueError, "keep"),
        (torch.ones(4), True, TypeError, "keep"),
        (torch.ones(4), "1", TypeError, "keep"),
        (torch.ones(4).double(), 1, TypeError, "x"),
        ([torch.ones(4), torch.ones(4, device="meta")], 1, ValueError, r"x\[1\]"),
        ([], 0, ValueError, "x"),
        (3.0, 0, TypeError, "x"),
    ],
)
def test_bad_arguments_are_named(x, keep, error, named):
    with pytest.raises(error, match=named):
        ops.topk_prune(x, keep)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"weights": torch.ones(3)}, ValueError, "weights must have the shape"),
        ({"scores": torch.tensor([1.0, -1.0, 0.0, 0.0])}, ValueError, "scores must not be negative"),
        ({"weights": torch.tensor([1.0, -1.0, 0.0, 0.0])}, ValueError, "weights must not be negative"),
        ({"weights": torch.tensor([1.0, torch.nan, 0.0, 0.0])}, ValueError, "weights contains NaN"),
        ({"scores": torch.tensor([1.0, torch.inf, 0.0, 0.0])}, ValueError, "scores contains NaN"),
        ({"weights": torch.full((4,), 1e38)}, ValueError, "weights must be such that"),
        ({"weights": torch.ones(4), "scores": torch.ones(4)}, ValueError, "weights and scores"),
        ({"weights": [torch.ones(4)]}, TypeError, "weights"),
        ({"weights": torch.ones(4).int()}, TypeError, "weights"),
        ({"mask": "bytes"}, ValueError, "mask"),
    ],
)
def test_bad_options_are_named(options, error, named):
    with pytest.raises(error, match=named):
        ops.topk_prune(torch.full((4,), 100.0), 2, **options)


def test_no_mask(rng):
    x = torch.randn(1000, generator=rng)
    got = ops.topk_prune(x, 10, mask=None)
    assert got.mask is None and torch.equal(got.values, ops.topk_prune(x, 10).values)
    assert ops.topk_prune(x, 20, mask=None, out=got).values is got.values
    with pytest.raises(ValueError, match="out must hold"):
        ops.topk_prune(x, 10, out=got)


def test_bad_out_is_named(rng):
    x = torch.randn(10, generator=rng)
    out = ops.topk_prune(x, 3)
    with pytest.raises(ValueError, match=r"out\.values"):
        ops.topk_prune(torch.randn(11, generator=rng), 3, out=out)
    with pytest.raises(ValueError, match="share memory"):
        ops.topk_prune(x, 3, out=out._replace(values=x))
    with pytest.raises(TypeError, match="out"):
        ops.topk_prune(x, 3, out=(out.values, out.mask))
    a, b = torch.randn(8, generator=rng), torch.randn(8, generator=rng)
    both = ops.topk_prune([a, b], 3)
    with pytest.raises(ValueError, match="share memory"):
        ops.topk_prune([a, b], 3, out=both._replace(values=[b, a]))
    with pytest.raises(ValueError, match="within itself"):
        ops.topk_prune([a, b], 3, out=both._replace(mask=[both.mask[0], both.mask[0]]))


def test_reused_output_with_empty_tensors(rng):
    """Two empty tensors have the same address, 0, and were taken for one memory."""
    xs = [torch.empty(0), torch.randn(20, generator=rng), torch.empty(0, 3)]
    first = ops.topk_prune(xs, 5)
    again = ops.topk_prune(xs, 7, out=first)
    assert again.mask[1] is first.mask[1] and again.mask[1].sum() == 7


def test_out_may_not_share_memory_with_an_input_that_starts_before_another():
    """Only neighbours in memory used to be compared, so an overlap with the first of two was missed."""
    memory = torch.randn(100)
    x = [memory[:60], memory[5:10]]
    out = ops.ListPruneResult([torch.empty(60), memory[20:25]], None, torch.tensor(0.0))
    with pytest.raises(ValueError, match="out must not share memory"):
        ops.topk_prune(x, 3, mask=None, out=out)
