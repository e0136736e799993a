"""topk_prune equals the stable-sort definition exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops


def check(xs, kappa):
    got, want = ops.topk_prune(xs, kappa), ops.topk_prune_reference(xs, kappa)
    for g, w in zip(got.mask, want.mask, strict=True):
        assert torch.equal(g, w)
    for g, w in zip(got.values, want.values, strict=True):
        assert torch.equal(g, w)
    assert got.threshold.item() == want.threshold.item()


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
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.topk_prune(x, 0.05))
    torch.set_num_threads(before)
    assert all(torch.equal(r.mask, results[0].mask) for r in results)
    assert all(torch.equal(r.values, results[0].values) for r in results)


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
