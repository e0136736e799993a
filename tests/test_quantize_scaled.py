"""quantize_scaled against the float64 event sweep and brute force; quantize_fixed against assign."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import _native, ops
from lc_ext.ops import codebooks

BOOKS = {
    "one": torch.tensor([2.0]),
    "binary": codebooks.binary(),
    "ternary": codebooks.ternary(),
    "powers": codebooks.powers_of_two(3),
    "int3": codebooks.int_symmetric(3),
    "int4": codebooks.int_symmetric(4),
    "nf4": codebooks.nf4(),
    "int6": codebooks.int_symmetric(6),
    "int8": codebooks.int_symmetric(8),
    "positive": torch.tensor([0.5, 1.0, 2.0]),
    "lopsided": torch.tensor([-3.0, 0.25, 1.0]),
    "no zero": torch.tensor([-2.0, -1.0, 1.0, 2.0]),
    "twice": torch.tensor([-1.0, 0.0, 0.0, 1.0]),
}


def slack(x, h, distortion):
    """What rounding the codewords to float32 can add: 2 |x - q| |q| 2^-24 a value, by Cauchy's inequality."""
    energy = float((h.double() * x.double().square()).sum())
    return 1e-8 * distortion + 2.0**-22 * math.sqrt(max(distortion, 0) * energy) + 2.0**-44 * energy


def check(x, book, h=None):
    """No worse than the sweep, and what is returned fits together."""
    weights = torch.ones_like(x) if h is None else h
    got, want = ops.quantize_scaled(x, book, weights=h), ops.quantize_scaled_reference(x, book, weights=weights)
    assert float(got.scale) >= 0
    assert torch.equal(got.codes, ops.assign_reference(x, got.scale * book))
    error = (x.double() - (got.scale * book).double()[got.codes.long()]).square()
    distortion = float((weights.double() * error).sum())
    assert float(got.distortion) == pytest.approx(distortion, rel=1e-12, abs=1e-300)
    assert distortion <= float(want.distortion) + slack(x, weights, float(want.distortion))
    return got


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 15, 17, 33, 64, 65, 1000])
def test_matches_the_sweep(isa, rng, n, name):
    x = torch.randn(n, generator=rng)
    check(x, BOOKS[name])
    check(x, BOOKS[name], torch.rand(n, generator=rng))


@pytest.mark.parametrize("name", ["ternary", "powers", "int4", "nf4", "lopsided", "int6"])
def test_large_inputs_match_the_sweep(isa, rng, name):
    """Through the histogram."""
    n = 40_001 if BOOKS[name].numel() < 32 else 32_769
    x = torch.randn(n, generator=rng)
    check(x, BOOKS[name])
    check(x * x.abs(), BOOKS[name], torch.rand(n, generator=rng))


@pytest.mark.parametrize("name", ["ternary", "int4", "nf4"])
def test_outliers_ties_and_scales_through_the_histogram(rng, name):
    x = torch.randn(50_000, generator=rng)
    outlier = x.clone()
    outlier[777] = 1e6
    spike = torch.where(torch.rand(50_000, generator=rng) < 0.5, torch.tensor(0.3), x)
    pruned = torch.where(torch.rand(50_000, generator=rng) < 0.9, torch.tensor(0.0), x)
    few = torch.randint(-5, 6, (50_000,), generator=rng) / 7
    for values in (outlier, spike, pruned, few, -x.abs(), x * 1e-41, x * 1e37, torch.full((50_000,), -2.5)):
        check(values, BOOKS[name])


@pytest.mark.parametrize(
    ("n", "name"),
    [(4095, "nf4"), (4096, "nf4"), (4096, "int3"), (16_383, "int6"), (16_384, "int6"), (131_072, "ternary")],
)
def test_sizes_at_which_the_method_changes(isa, rng, n, name):
    x = torch.randn(n, generator=rng)
    check(x, BOOKS[name])
    x[n // 2] = 1e5  # beyond what a sample shows
    check(x, BOOKS[name], torch.rand(n, generator=rng))


FLOATS = st.floats(-100, 100, width=32)


@settings(max_examples=150, deadline=None)
@given(
    x=st.lists(FLOATS | st.sampled_from([0.0, 1.0, -1.0, 0.5]), min_size=1, max_size=12),
    levels=st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=6),
    data=st.data(),
)
def test_no_scale_of_a_fine_grid_is_better(x, levels, data):
    x, book = torch.tensor(x), torch.tensor(sorted(levels))
    h = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(x), max_size=len(x))))
    got = check(x, book, h)
    near = float(got.scale) * (1 + torch.linspace(-1, 1, 201, dtype=torch.float64)) + 1e-12
    scales = torch.cat([torch.logspace(-4, 3, 300, dtype=torch.float64), near])
    gaps = (x.double()[:, None, None] - scales[:, None] * book.double()).square().min(-1).values
    least = float((h.double()[:, None] * gaps).sum(0).min())
    assert float(got.distortion) <= least + slack(x, h, least)


@pytest.mark.parametrize("book", [[0.0, 0.5, 1.0], [-1.0, 0.0, 1.0], [-1.0, -0.5, 0.0, 1.0]])
def test_scales_of_denormal_values(book):
    got = ops.quantize_scaled(torch.tensor([0.0, 3e-45]), torch.tensor(book))
    assert float(got.distortion) == 0 and float(got.scale) > 0


@settings(max_examples=60, deadline=None)
@given(x=st.lists(FLOATS, min_size=1, max_size=30), data=st.data())
def test_closed_forms(x, data):
    """{-c, c}: c is the weighted mean magnitude. {-c, 0, c}: the best prefix in the order of magnitude."""
    x = torch.tensor(x)
    h = torch.tensor(data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(x), max_size=len(x))))
    c = (h.double() * x.double().abs()).sum() / h.double().sum()
    assert float(ops.quantize_scaled(x, codebooks.binary(), weights=h).scale) == pytest.approx(float(c), rel=1e-6)
    order = x.abs().argsort(descending=True)
    s, w = (h.double() * x.double().abs())[order].cumsum(0), h[order].double().cumsum(0)
    energy = float((h.double() * x.double().square()).sum())
    want = energy - float((s.square() / w).max())
    got = float(ops.quantize_scaled(x, codebooks.ternary(), weights=h).distortion)
    assert got == pytest.approx(want, rel=1e-6, abs=slack(x, h, want) + 1e-12 * energy)


def test_degenerate_inputs(isa):
    ternary = codebooks.ternary()
    for n in (0, 1, 9, 40_000):
        zero = ops.quantize_scaled(torch.zeros(n), ternary)
        assert float(zero.scale) == 0 and float(zero.distortion) == 0 and zero.codes.shape == (n,)
    one = ops.quantize_scaled(torch.full((9,), -0.7), ternary)
    assert one.scale.item() == pytest.approx(0.7) and one.codes.tolist() == [0] * 9
    wrong_sign = ops.quantize_scaled(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]))
    assert float(wrong_sign.scale) == 0 and float(wrong_sign.distortion) == 5
    weightless = ops.quantize_scaled(torch.tensor([1.0, 2.0]), ternary, weights=torch.zeros(2))
    assert float(weightless.scale) == 0 and float(weightless.distortion) == 0
    masked = ops.quantize_scaled(torch.tensor([5.0, 2.0, -2.0]), ternary, weights=torch.tensor([0.0, 1.0, 1.0]))
    assert masked.scale.item() == pytest.approx(2.0) and masked.codes.tolist() == [2, 2, 0]


@pytest.mark.parametrize("name", ["ternary", "nf4", "int8"])
def test_a_quantized_input_is_a_fixed_point(rng, name):
    for n in (50, 100_000):
        codes = torch.randint(0, BOOKS[name].numel(), (n,), generator=rng)
        x = 0.25 * BOOKS[name][codes]
        got = ops.quantize_scaled(x, BOOKS[name])
        assert torch.equal(got.scale * BOOKS[name][got.codes.long()], x)
        assert float(got.distortion) == 0


def test_segments_are_problems_of_their_own(isa, rng):
    x, h = torch.randn(5000, generator=rng), torch.rand(5000, generator=rng)
    offsets = torch.tensor([0, 0, 1, 33, 97, 225, 225, 2000, 5000])
    for weights in (None, h):
        got = ops.quantize_scaled(x, codebooks.nf4(), offsets=offsets, weights=weights)
        for p, (a, b) in enumerate(itertools.pairwise(offsets.tolist())):
            part = None if weights is None else weights[a:b]
            alone = ops.quantize_scaled(x[a:b], codebooks.nf4(), weights=part)
            assert got.scale[p] == alone.scale and got.distortion[p] == alone.distortion
            assert torch.equal(got.codes[a:b], alone.codes)


def test_lists_and_joint_scales(rng):
    xs = [torch.randn(s, generator=rng) for s in [(3, 5), (40_000,), (0,), (7, 2, 2)]]
    book = codebooks.int_symmetric(4)
    got = ops.quantize_scaled(xs, book)
    assert got.scale.shape == got.distortion.shape == (4,)
    for i, x in enumerate(xs):
        alone = ops.quantize_scaled(x, book)
        assert got.scale[i] == alone.scale and torch.equal(got.codes[i], alone.codes)
    joint = ops.quantize_scaled(xs, book, joint=True)
    whole = ops.quantize_scaled(torch.cat([x.reshape(-1) for x in xs]), book)
    assert joint.scale.shape == () and float(joint.scale) == pytest.approx(float(whole.scale), rel=1e-6)
    assert float(joint.distortion) == pytest.approx(float(whole.distortion), rel=1e-9)
    assert [c.shape for c in joint.codes] == [x.shape for x in xs]


def test_fixed_levels(isa, rng):
    x, h = torch.randn(70, 1001, generator=rng), torch.rand(70, 1001, generator=rng)
    for book in (codebooks.powers_of_two(2), codebooks.int_symmetric(8)):
        got = ops.quantize_fixed(x, book, weights=h)
        assert float(got.scale) == 1 and torch.equal(got.codes, ops.assign_reference(x, book))
        error = h.double() * (x.double() - book.double()[got.codes.long()]).square()
        assert float(got.distortion) == pytest.approx(float(error.sum()), rel=1e-12)
    assert [c.tolist() for c in ops.quantize_fixed([torch.tensor([0.5]), x[0, :2] * 0], codebooks.ternary()).codes] == [
        [1],
        [1, 1],
    ]


def test_packed_codes_and_out(rng):
    x = torch.randn(6, 33, generator=rng)
    plain = ops.quantize_scaled(x, codebooks.nf4())
    packed = ops.quantize_scaled(x, codebooks.nf4(), packed=True)
    assert torch.equal(packed.codes, ops.pack_codes(plain.codes, 4))
    assert torch.equal(
        ops.quantize_scaled(x[0], codebooks.ternary(), packed=True).codes,
        ops.pack_codes(ops.quantize_scaled(x[:1], codebooks.ternary()).codes, 2),
    )
    again = ops.quantize_scaled(-x, codebooks.nf4(), out=plain)
    assert all(a is b for a, b in zip(again, plain, strict=True))
    assert torch.equal(again.codes, ops.quantize_scaled(-x, codebooks.nf4()).codes)
    repacked = ops.quantize_scaled(-x, codebooks.nf4(), packed=True, out=packed)
    assert repacked.codes is packed.codes and torch.equal(packed.codes, ops.pack_codes(again.codes, 4))


def test_threads_and_isas_agree(rng):
    x, h = torch.randn(300_000, generator=rng), torch.rand(300_000, generator=rng)
    groups = torch.arange(0, 300_001, 50)
    before, isa = torch.get_num_threads(), _native.active_isa()
    results = []
    try:
        for name in _native.supported_isas():
            _native.set_isa(name)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                one = ops.quantize_scaled(x, codebooks.nf4())
                weighted = ops.quantize_scaled(x, codebooks.nf4(), weights=h)
                many = ops.quantize_scaled(x, codebooks.ternary(), offsets=groups)
                results.append([*one, *weighted, *many])
    finally:
        torch.set_num_threads(before)
        _native.set_isa(isa)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_plain_torch_path(monkeypatch, rng):
    """Of devices that have no kernel."""
    x, h = torch.randn(4, 50, generator=rng), torch.rand(4, 50, generator=rng)
    offsets = torch.tensor([0, 100, 200])
    native = [
        ops.quantize_scaled(x, codebooks.int_symmetric(3), weights=h, offsets=offsets),
        ops.quantize_fixed(x, codebooks.int_symmetric(3)),
    ]
    joint = ops.quantize_scaled([x, h], codebooks.int_symmetric(3), joint=True)
    monkeypatch.setattr(_native, "has_kernel", lambda *_: False)
    torch_path = [
        ops.quantize_scaled(x, codebooks.int_symmetric(3), weights=h, offsets=offsets),
        ops.quantize_fixed(x, codebooks.int_symmetric(3)),
    ]
    for a, b in zip(native, torch_path, strict=True):
        torch.testing.assert_close(a.distortion, b.distortion, rtol=1e-6, atol=0)
        torch.testing.assert_close(a.scale, b.scale, rtol=1e-5, atol=0)
    again = ops.quantize_scaled([x, h], codebooks.int_symmetric(3), joint=True)
    torch.testing.assert_close(again.distortion, joint.distortion, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="x contains NaN"):
        ops.quantize_scaled(torch.tensor([math.nan]), codebooks.ternary())


def test_codebooks():
    assert codebooks.binary().tolist() == [-1, 1] and codebooks.ternary().tolist() == [-1, 0, 1]
    assert codebooks.powers_of_two(2).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert codebooks.int_symmetric(3).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert codebooks.nf4().numel() == 16 and codebooks.nf4().diff().min() > 0
    for bad in (
        lambda: codebooks.int_symmetric(1),
        lambda: codebooks.int_symmetric(9),
        lambda: codebooks.powers_of_two(-1),
    ):
        with pytest.raises(ValueError, match="must be"):
            bad()


X = torch.ones(4)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "named"),
    [
        (([1.0], codebooks.ternary()), {}, TypeError, "x"),
        (([], codebooks.ternary()), {}, ValueError, "x"),
        ((X.int(), codebooks.ternary()), {}, TypeError, "x"),
        ((X, torch.tensor([1.0, 0.0])), {}, ValueError, "levels"),
        ((X, torch.zeros(0)), {}, ValueError, "levels"),
        ((X * math.nan, codebooks.ternary()), {}, ValueError, "x contains NaN"),
        (([X, X * math.inf], codebooks.ternary()), {}, ValueError, r"x\[1\] contains NaN"),
        ((torch.full((50_000,), math.inf), codebooks.ternary()), {}, ValueError, "x contains NaN"),
        ((X, codebooks.ternary()), {"weights": -X}, ValueError, "weights"),
        ((X, codebooks.ternary()), {"weights": X[:2]}, ValueError, "weights"),
        ((torch.ones(50_000), codebooks.ternary()), {"weights": torch.full((50_000,), -1.0)}, ValueError, "weights"),
        ((X, codebooks.ternary()), {"offsets": torch.tensor([0, 3])}, ValueError, "offsets"),
        ((X, codebooks.ternary()), {"offsets": torch.tensor([0, 3, 2, 4])}, ValueError, "offsets"),
        ((X, codebooks.ternary()), {"offsets": torch.tensor([0.0, 4.0])}, TypeError, "offsets"),
        (([X], codebooks.ternary()), {"offsets": torch.tensor([0, 4])}, ValueError, "offsets"),
        ((X, codebooks.ternary()), {"out": X}, TypeError, "out"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, error, named):
    with pytest.raises(error, match=named):
        ops.quantize_scaled(*args, **kwargs)


def test_fixed_levels_refuse_bad_values():
    with pytest.raises(ValueError, match="x contains NaN"):
        ops.quantize_fixed(torch.tensor([1.0, math.nan]), codebooks.ternary())
    with pytest.raises(ValueError, match="weights"):
        ops.quantize_fixed(X, codebooks.ternary(), weights=-X)
