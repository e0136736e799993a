"""kmeans1d: optimal where that can be checked, an exact Lloyd fixed point everywhere, and never behind scikit-learn."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import ops

EPS32 = 2.0**-24


def distributions(n, rng):
    normal = torch.randn(n, generator=rng)
    uniform = torch.rand(n, generator=rng)
    outliers = normal.clone()
    outliers[:10] = 1e6 * (1 + uniform[:10])
    return {
        "gaussian": normal,
        "laplacian": normal.sign() * uniform.log(),
        "bimodal": normal * 0.1 + uniform.sub(0.5).sign(),
        "two spikes": normal * 1e-6 + uniform.sub(0.3).sign(),
        "offset": normal * 0.01 + 100,
        "constant": torch.full((n,), 0.7),
        "few distinct": torch.randint(0, 10, (n,), generator=rng) / 10,
        "mostly zero": torch.where(uniform < 0.9, 0, normal),
        "outliers": outliers,
        "cauchy": (3.14159 * (uniform - 0.5)).tan(),
        "huge": normal / normal.abs().max() * 3e38,
        "full range": torch.where(uniform < 0.5, -3.4e38, 3.4e38) * (1 - 1e-3 * normal.abs()).clamp_min(0),
        "denormal": normal * 1e-41,
    }


def distortion64(x, codebook, weights=None):
    d = (x.double() - codebook.double()[ops.assign_reference(x, codebook).long()]).square()
    return float((d if weights is None else weights.double() * d).sum())


def check_result(x, k, result, weights=None):
    """What holds for every result: codewords ascend, codes are nearest, the distortion is right."""
    codebook, codes = result.codebook, result.codes
    assert codebook.shape == (k,) and bool((codebook.diff() >= 0).all())
    assert torch.equal(codes, ops.assign_reference(x, codebook))
    rough = weights is None and x.numel() > 65536  # summed from squares rounded to float
    assert result.distortion == pytest.approx(distortion64(x, codebook, weights), rel=1e-7 if rough else 1e-9)


def check_fixed_point(x, codebook, weights=None):
    """Each codeword is the float32 nearest to the mean of its cell, give or take the rounding of float32."""
    codes = ops.assign_reference(x, codebook).flatten().long()
    h = torch.ones(x.numel(), dtype=torch.float64) if weights is None else weights.flatten().double()
    mass = torch.zeros(codebook.numel(), dtype=torch.float64).index_add(0, codes, h)
    total = torch.zeros(codebook.numel(), dtype=torch.float64).index_add(0, codes, h * x.flatten().double())
    used = mass > 0
    mean = total[used] / mass[used]
    scale = x.double().abs().max()
    # A cell edge may sit within one rounding of a value, which then counts on either side of it.
    slack = 4 * EPS32 * scale + 4 * float((h.max() / mass[used].min()).clamp_max(1)) * scale * EPS32 + 4 * 2.0**-149
    assert bool(((mean - codebook.double()[used]).abs() <= slack).all())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 12])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_small_inputs_are_globally_optimal(isa, rng, n, k, weighted):
    """Against every partition of the sorted values into at most k intervals."""
    x = torch.randn(n, generator=rng)
    h = torch.rand(n, generator=rng) + 0.1 if weighted else None
    order = x.sort().indices
    v, w = x[order].double(), torch.ones(n).double() if h is None else h[order].double()

    def sse(i, j):
        mean = (w[i:j] * v[i:j]).sum() / w[i:j].sum()
        return float((w[i:j] * (v[i:j] - mean) ** 2).sum())

    best = min(
        sum(sse(i, j) for i, j in itertools.pairwise((0, *cuts, n)))
        for parts in range(min(k, n))
        for cuts in itertools.combinations(range(1, n), parts)
    )
    result = ops.kmeans1d(x, k, weights=h)
    check_result(x, k, result, h)
    assert result.distortion == pytest.approx(best, rel=1e-6, abs=n * (EPS32 * 4) ** 2)


@pytest.mark.parametrize("name", list(distributions(20, torch.Generator())))
@pytest.mark.parametrize("k", [2, 4, 16])
def test_never_worse_than_scikit_learn(rng, name, k):
    cluster = pytest.importorskip("sklearn.cluster", reason="needs scikit-learn: pip install lc-ext[test]")
    x = distributions(10_000, rng)[name]
    result = ops.kmeans1d(x, k)
    check_result(x, k, result)
    check_fixed_point(x, result.codebook)
    scale = max(float(x.double().abs().max()), 1e-300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters
        theirs = cluster.KMeans(k, n_init=10, random_state=0).fit((x.double() / scale).numpy().reshape(-1, 1))
    inertia = float(theirs.inertia_) * scale**2
    rounding = x.numel() * (EPS32 * scale) ** 2  # of codewords to float32
    assert result.distortion <= inertia * (1 + 1e-9) + rounding


@pytest.mark.parametrize("name", list(distributions(20, torch.Generator())))
@pytest.mark.parametrize("k", [1, 2, 7, 64])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_reference(isa, rng, name, k, weighted):
    x = distributions(6_000, rng)[name]
    h = torch.rand(x.shape, generator=rng) if weighted else None
    result = ops.kmeans1d(x, k, weights=h)
    check_result(x, k, result, h)
    if result.iterations < 300:
        check_fixed_point(x, result.codebook, h)
    reference = ops.kmeans1d_reference(x, k, weights=h)
    rounding = x.numel() * (4 * EPS32 * float(x.double().abs().max())) ** 2
    assert result.distortion <= reference.distortion * (1 + 1e-3) + rounding


@pytest.mark.parametrize("k", [2, 4, 16])
def test_near_the_optimum_of_a_gaussian(rng, k):
    """Lloyd-Max distortion of the unit Gaussian, published to 4 digits (Max 1960)."""
    optimum = {2: 0.3634, 4: 0.1175, 16: 0.009497}[k]
    x = torch.randn(2_000_000, generator=rng)
    assert ops.kmeans1d(x, k).distortion / x.numel() == pytest.approx(optimum, rel=6e-3)


@pytest.mark.parametrize("k", [2, 16])
@pytest.mark.parametrize("n", [5000, 200_000])
def test_warm_start_never_gets_worse(rng, k, n):
    x = torch.randn(n, generator=rng)
    for init in (torch.linspace(-3, 3, k), torch.randn(k, generator=rng).sort().values, torch.arange(float(k))):
        result = ops.kmeans1d(x, k, init=init)
        check_result(x, k, result)
        assert distortion64(x, result.codebook) <= distortion64(x, init) * (1 + 1e-12)
        again = ops.kmeans1d(x, k, init=result.codebook)
        assert distortion64(x, again.codebook) <= distortion64(x, result.codebook) * (1 + 1e-12)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("k", [2, 4, 5])
def test_warm_on_values_close_about_their_codewords(isa, rng, spread, k):
    """As the weights of late LC steps are; with k = 5 a boundary goes through a cluster."""
    levels = torch.tensor([-0.07, -0.02, 0.02, 0.07]) if k > 2 else torch.tensor([-0.05, 0.05])
    x = levels[torch.randint(0, len(levels), (60_000,), generator=rng)]
    x = x * (1 + spread * torch.randn(len(x), generator=rng))
    init = torch.cat([levels, levels[-1:] * (1 + spread)])[:k]
    result = ops.kmeans1d(x, k, init=init)
    check_result(x, k, result)
    nearest = init.double()
    for _ in range(300):  # Lloyd in float64
        labels = (x.double()[:, None] - nearest).abs().argmin(1)
        sums = torch.zeros(k, dtype=torch.float64).index_add_(0, labels, x.double())
        nearest = sums / torch.bincount(labels, minlength=k)
    assert distortion64(x, result.codebook) <= distortion64(x, nearest.float()) * (1 + 1e-3)


def test_a_quantized_input_is_a_fixed_point(isa, rng):
    levels = torch.tensor([-1.5, -0.25, 0.5, 2.0])
    x = levels[torch.randint(0, 4, (50_000,), generator=rng)]
    for init in (None, levels):
        result = ops.kmeans1d(x, 4, init=init)
        assert torch.equal(result.codebook, levels) and result.distortion == 0


def test_fewer_distinct_values_than_codewords(isa):
    x = torch.tensor([3.0, 1.0, 3.0, 1.0])
    result = ops.kmeans1d(x, 4)
    assert result.distortion == 0
    assert result.codebook.tolist() == [1, 3, 3, 3] and result.codes.tolist() == [1, 0, 1, 0]
    assert ops.kmeans1d(torch.tensor(2.5), 256).codebook.tolist() == [2.5] * 256
    assert ops.kmeans1d(torch.tensor([0.0, -0.0]), 2).distortion == 0


def test_a_codeword_that_lost_its_cell_is_used_again(rng):
    x = torch.randn(30_000, generator=rng)
    dead = torch.tensor([-1.0, 0.0, 1.0, 1e6])
    assert ops.kmeans1d(x, 4, init=dead).distortion <= ops.kmeans1d(x, 4).distortion * 1.001


def test_zero_weights_take_no_part(rng):
    x = torch.randn(40_000, generator=rng)
    h = (torch.rand(40_000, generator=rng) < 0.5).float()
    result, without = ops.kmeans1d(x, 4, weights=h), ops.kmeans1d(x[h > 0], 4)
    assert result.distortion == pytest.approx(without.distortion, rel=1e-4)  # two local optima of the same data
    assert result.codes.shape == x.shape
    x, h = x[:600], h[:600]
    result, without = (ops.kmeans1d(v, 4, weights=w, method="optimal") for v, w in ((x, h), (x[h > 0], None)))
    torch.testing.assert_close(result.codebook, without.codebook, rtol=0, atol=1e-6)


def test_batch_equals_one_by_one(rng):
    xs = [torch.randn(s, generator=rng) for s in [(7,), (300, 784), (3, 5, 2), (140_000,), (1,)]]
    hs = [torch.rand(x.shape, generator=rng) + 0.01 for x in xs]
    for weights in (None, hs):
        batch = ops.kmeans1d(xs, 4, weights=weights)
        for i, x in enumerate(xs):
            alone = ops.kmeans1d(x, 4, weights=None if weights is None else weights[i])
            assert torch.equal(batch.codebook[i], alone.codebook)
            assert torch.equal(batch.codes[i], alone.codes)
            assert batch.distortion[i] == alone.distortion
    warm = ops.kmeans1d(xs, 4, init=batch.codebook)
    assert warm.codebook.shape == (5, 4)


@pytest.mark.parametrize("k", [3, 16])
@pytest.mark.parametrize("name", ["gaussian", "cauchy", "two spikes"])
@pytest.mark.parametrize("weighted", [False, True])
def test_same_for_any_threads_and_instruction_set(rng, k, name, weighted):
    from lc_ext import _native

    x = distributions(400_000, rng)[name]
    h = torch.rand(x.shape, generator=rng) if weighted else None
    threads, isa = torch.get_num_threads(), _native.active_isa()
    results = []
    for name, count in itertools.product(_native.supported_isas(), (1, 2, 3)):
        _native.set_isa(name)
        torch.set_num_threads(count)
        results.append(ops.kmeans1d(x, k, weights=h))
    _native.set_isa(isa)
    torch.set_num_threads(threads)
    assert all(torch.equal(r.codebook, results[0].codebook) for r in results)
    assert all(torch.equal(r.codes, results[0].codes) for r in results)
    assert all(r.distortion == results[0].distortion for r in results)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_any_floats(values, k):
    """Signed zeros, denormals and the largest floats: nearest codes, and zero distortion if there are values enough."""
    x = torch.tensor(values)
    result = ops.kmeans1d(x, k)
    check_result(x, k, result)
    if x.unique().numel() <= k:
        assert result.distortion == 0


@pytest.mark.parametrize("n", [10, 30_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(isa, rng, n, bad):
    x = torch.randn(n, generator=rng)
    x[n - 1] = bad
    with pytest.raises(ValueError, match="x contains NaN or Inf"):
        ops.kmeans1d(x, 3)
    good = torch.randn(n, generator=rng)
    with pytest.raises(ValueError, match="weights of x"):
        ops.kmeans1d(good, 3, weights=x)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "named"),
    [
        ((torch.ones(3), 0), {}, ValueError, "k"),
        ((torch.ones(3), 257), {}, ValueError, "k"),
        ((torch.ones(3), 2.0), {}, TypeError, "k"),
        ((torch.ones(0), 2), {}, ValueError, "x"),
        ((torch.ones(3).double(), 2), {}, TypeError, "x"),
        ((torch.ones(3).long(), 2), {}, TypeError, "x"),
        (([1.0, 2.0], 2), {}, TypeError, "x"),
        ((torch.ones(3), 2), {"init": torch.ones(3)}, ValueError, "init"),
        ((torch.ones(3), 2), {"init": torch.tensor([1.0, 0.0])}, ValueError, "init"),
        ((torch.ones(3), 2), {"init": torch.tensor([0.0, float("nan")])}, ValueError, "init"),
        ((torch.ones(3), 2), {"weights": torch.ones(4)}, ValueError, "weights"),
        ((torch.ones(3), 2), {"weights": -torch.ones(3)}, ValueError, "weights"),
        ((torch.ones(3), 2), {"weights": torch.zeros(3)}, ValueError, "weights"),
        ((torch.ones(3), 2), {"max_iter": -1}, ValueError, "max_iter"),
        ((torch.ones(3), 2), {"method": "newton"}, ValueError, "method"),
        ((torch.ones(3), 2), {"tol": -1.0}, ValueError, "tol"),
        ((torch.ones(3), 2), {"joint": True}, ValueError, "joint"),
        ((torch.ones(3), 2), {"pinned": [0.0, 1.0, 2.0]}, ValueError, "pinned"),
        ((torch.ones(3), 2), {"pinned": [0.0, 0.0]}, ValueError, "pinned"),
        ((torch.ones(3), 2), {"pinned": float("nan")}, ValueError, "pinned"),
        ((torch.ones(3), 2), {"pinned": "0"}, TypeError, "pinned"),
        ((torch.ones(3), 2), {"pinned": 0.0, "init": torch.tensor([1.0, 2.0])}, ValueError, "init"),
        ((torch.ones(3), 2), {"offsets": torch.tensor([0, 3]).int()}, TypeError, "offsets"),
        ((torch.ones(3), 2), {"offsets": torch.tensor([0, 2])}, ValueError, "offsets"),
        ((torch.ones(3), 2), {"offsets": torch.tensor([0, 2, 2, 3])}, ValueError, "offsets"),
        (([torch.ones(3)], 2), {"offsets": torch.tensor([0, 3])}, ValueError, "offsets"),
        ((torch.ones(3), 2), {"out": torch.ones(3)}, TypeError, "out"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, error, named):
    with pytest.raises(error, match=named):
        ops.kmeans1d(*args, **kwargs)


def test_half_precision_and_strides(rng):
    x = torch.randn(40, 50, generator=rng)
    transposed, plain = (ops.kmeans1d(t, 4, method="optimal").codes for t in (x.t(), x))
    assert torch.equal(transposed, plain.t())
    half = x.bfloat16()
    assert torch.equal(ops.kmeans1d(half, 4).codebook, ops.kmeans1d(half.float(), 4).codebook)


def test_decode(isa, rng):
    codebook = torch.randn(16, generator=rng)
    codes = torch.randint(0, 16, (7, 33), generator=rng).to(torch.uint8)
    assert torch.equal(ops.decode(codes, codebook), codebook[codes.long()])
    with pytest.raises(ValueError, match="codes"):
        ops.decode(codes, codebook[:3])
    with pytest.raises(TypeError, match="codes"):
        ops.decode(codes.int(), codebook)


@pytest.mark.parametrize("n", [3, 4000, 50_000])
def test_weights_of_any_range_give_finite_ascending_codewords(rng, n):
    """Weights too light to show in a prefix sum made empty cells, inf codewords, and a crash in the next pass."""
    x = torch.randn(n, generator=rng)
    for weights in (
        torch.where(torch.arange(n) % 3 == 0, 1.0, 1e-17),
        torch.rand(n, generator=rng) * 1e-4 * (1 - (x > 1).float()) + 1e-24,
        torch.exp2(torch.rand(n, generator=rng) * 200 - 100),
    ):
        result = ops.kmeans1d(x, 7, weights=weights)
        check_result(x, 7, result, weights)
        assert bool(result.codebook.isfinite().all())
        assert ops.kmeans1d(x, 7, weights=weights, init=result.codebook).distortion <= result.distortion


def test_a_value_at_the_very_end_of_the_grid(rng):
    """The kernel's float rounding put this one a bin beyond what the grid was made for: an internal check failed."""
    generator = torch.Generator().manual_seed(0)
    for value in torch.linspace(15.5, 16.5, 200).tolist():
        x = torch.randn(20_000, generator=generator) + 0.3
        x[1000] = value
        assert ops.kmeans1d([x, x], 4).codebook.isfinite().all()


@pytest.mark.parametrize("outlier", [1e2, -1e4, -1e6, 1e9])
@pytest.mark.parametrize("k", [64, 256])
def test_one_outlier_costs_one_codeword(rng, outlier, k):
    """It took nearly all groups of the cold start's partition, and left the bulk a handful."""
    x = torch.randn(100_000, generator=rng)
    without = ops.kmeans1d(x, k - 1).distortion
    x[50_000] = outlier
    assert ops.kmeans1d(x, k).distortion <= without * 1.02


def test_warm_start_is_monotone_with_any_number_of_iterations(rng):
    """A start that is nearly right, at a large offset, once ended 1e-6 above where it began."""
    x = torch.randn(40_000, generator=rng) + 1e4
    for max_iter in (0, 1, 2, 3):
        for _ in range(20):
            init = (ops.kmeans1d(x, 14).codebook + 1e-3 * torch.randn(14, generator=rng)).sort().values
            assert ops.kmeans1d(x, 14, init=init, max_iter=max_iter).distortion <= distortion64(x, init) * (1 + 1e-12)


@pytest.mark.parametrize("method", ["lloyd", "optimal"])
@pytest.mark.parametrize("name", list(distributions(20, torch.Generator())))
@pytest.mark.parametrize("n", [3_000, 100_000])
def test_other_methods_end_at_a_fixed_point(rng, method, name, n):
    x = distributions(n, rng)[name]
    for k in (3, 20):
        result = ops.kmeans1d(x, k, method=method, max_iter=2000)
        check_result(x, k, result)
        check_fixed_point(x, result.codebook)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["few values", "few distinct"])
@pytest.mark.parametrize("k", [2, 5, 40])
def test_optimal_is_the_quadratic_dynamic_programme(rng, weighted, kind, k):
    """At most 512 distinct values, where the reference is globally optimal too."""
    x = torch.randn(500, generator=rng)
    if kind == "few distinct":
        x = x[torch.randint(0, 500, (30_000,), generator=rng)]
    h = torch.rand(x.shape, generator=rng) + 0.01 if weighted else None
    result = ops.kmeans1d(x, k, weights=h, method="optimal")
    check_result(x, k, result, h)
    assert result.distortion == pytest.approx(ops.kmeans1d_reference(x, k, weights=h).distortion, rel=1e-6)


@pytest.mark.parametrize("k", [2, 4, 16, 256])
@pytest.mark.parametrize("name", ["gaussian", "laplacian", "bimodal", "mostly zero", "cauchy"])
@pytest.mark.parametrize("weighted", [False, True])
def test_auto_is_near_the_optimum(rng, k, name, weighted):
    x = distributions(300_000, rng)[name]
    h = torch.rand(x.shape, generator=rng) + 0.1 if weighted else None
    result = ops.kmeans1d(x, k, weights=h)
    check_result(x, k, result, h)
    best = ops.kmeans1d(x, k, weights=h, method="optimal")
    assert result.distortion <= best.distortion * (1 + (1e-4 if k <= 16 else 5e-3))


def test_bfloat16_values_are_not_taken_for_a_smooth_density(rng):
    """Of a few thousand distinct values, a bin may hold one: then a boundary does not split it."""
    x = torch.randn(500_000, generator=rng).bfloat16()
    for k in (4, 16):
        result = ops.kmeans1d(x, k)
        check_result(x.float(), k, result)
        assert result.distortion <= ops.kmeans1d(x, k, method="optimal").distortion * (1 + 1e-3)
        init = (result.codebook * 1.001).contiguous()
        warm = ops.kmeans1d(x, k, init=init)
        assert distortion64(x.float(), warm.codebook) <= distortion64(x.float(), init) * (1 + 1e-12)


@pytest.mark.parametrize("n", [40, 3_000, 100_000])
@pytest.mark.parametrize("method", ["auto", "lloyd", "optimal"])
def test_pinned_codewords_do_not_move(isa, rng, n, method):
    x = torch.randn(n, generator=rng)
    free = ops.kmeans1d(x, 4, method=method)
    for pinned in (0.0, [0.0, 0.1], torch.tensor([-50.0]), [-1.0, 0.25, 1.0, 7.0]):
        values = torch.as_tensor(pinned).reshape(-1).float()
        result = ops.kmeans1d(x, 4, pinned=pinned, method=method)
        check_result(x, 4, result)
        assert bool(torch.isin(values, result.codebook).all())
        assert result.distortion >= free.distortion * (1 - 1e-4)
        assert result.distortion <= ops.kmeans1d_reference(x, 4, pinned=values.tolist()).distortion * 1.05
        init = torch.cat([values, torch.linspace(-2, 2, 4 - values.numel())]).sort().values
        warm = ops.kmeans1d(x, 4, pinned=pinned, init=init, method=method)
        assert bool(torch.isin(values, warm.codebook).all())
        assert distortion64(x, warm.codebook) <= distortion64(x, init) * (1 + 1e-12)
    zeros = torch.zeros(n)
    assert ops.kmeans1d(zeros, 3, pinned=1.0).codebook.tolist() == [0, 1, 1]
    assert ops.kmeans1d(zeros, 1, pinned=1.0).distortion == n


@pytest.mark.parametrize("sizes", [[1, 2, 3, 500, 70_000], [32] * 100, [1000] * 7 + [1]])
@pytest.mark.parametrize("weighted", [False, True])
def test_offsets_equal_a_list(isa, rng, sizes, weighted):
    xs = [torch.randn(n, generator=rng) for n in sizes]
    hs = [torch.rand(n, generator=rng) + 0.1 for n in sizes] if weighted else None
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    flat, h = torch.cat(xs), None if hs is None else torch.cat(hs)
    want = ops.kmeans1d(xs, 4, weights=hs)
    got = ops.kmeans1d(flat, 4, weights=h, offsets=offsets)
    assert torch.equal(got.codebook, want.codebook) and torch.equal(got.codes, torch.cat(want.codes))
    assert got.distortion.tolist() == want.distortion and got.iterations.tolist() == want.iterations
    again = ops.kmeans1d(flat, 4, weights=h, offsets=offsets, init=got.codebook, out=got)
    assert again.codes.data_ptr() == got.codes.data_ptr()
    assert bool((again.distortion <= got.distortion * (1 + 1e-12)).all())


def test_a_codebook_per_row_and_per_group(rng):
    x = torch.randn(6, 128, generator=rng)
    rows = ops.kmeans1d(x, 4, offsets=torch.arange(0, 6 * 128 + 1, 128))
    for row, codes, codebook in zip(x, rows.codes, rows.codebook, strict=True):
        assert torch.equal(codebook, ops.kmeans1d(row, 4).codebook)
        assert torch.equal(codes, ops.assign_reference(row, codebook))
    groups = ops.kmeans1d(x, 4, offsets=torch.arange(0, 6 * 128 + 1, 32), packed=True)
    loose = ops.kmeans1d(x, 4, offsets=torch.arange(0, 6 * 128 + 1, 32))
    assert groups.codebook.shape == (24, 4) and torch.equal(ops.unpack_codes(groups.codes, 2, 128), loose.codes)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_joint_codebook_is_that_of_the_concatenation(isa, rng, weighted):
    xs = [torch.randn(s, generator=rng) for s in [(7,), (300, 784), (3, 5, 2), (1,), (70_000,)]]
    hs = [torch.rand(x.shape, generator=rng) + 0.1 for x in xs] if weighted else None
    flat = torch.cat([x.flatten() for x in xs])
    h = None if hs is None else torch.cat([w.flatten() for w in hs])
    got = ops.kmeans1d(xs, 5, weights=hs, joint=True)
    assert got.codebook.shape == (5,) and len(got.distortion) == len(got.iterations) == 1
    for x, codes in zip(xs, got.codes, strict=True):
        assert torch.equal(codes, ops.assign_reference(x, got.codebook))
    assert got.distortion[0] == pytest.approx(ops.kmeans1d(flat, 5, weights=h).distortion, rel=1e-5)
    assert got.distortion[0] == pytest.approx(distortion64(flat, got.codebook, h), rel=1e-7)


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (5, 32), (2, 70_001), (300, 64), (2000, 33), (100_003,)])
@pytest.mark.parametrize("k", [2, 3, 5, 16, 17, 256])
def test_packed_codes_are_the_codes(isa, rng, shape, k):
    x = torch.randn(shape, generator=rng)
    bits = max(1, (k - 1).bit_length())
    loose, packed = ops.kmeans1d(x, k), ops.kmeans1d(x, k, packed=True)
    assert torch.equal(packed.codebook, loose.codebook)
    want = ops.pack_codes(loose.codes.reshape(1, -1) if len(shape) == 1 else loose.codes, bits)
    assert torch.equal(packed.codes, want)
    packed.codes.fill_(-1)
    assert torch.equal(ops.kmeans1d(x, k, packed=True, out=packed).codes, want)


def test_out_is_written_again(rng):
    x, y = torch.randn(5000, generator=rng), torch.randn(5000, generator=rng)
    result = ops.kmeans1d(x, 4)
    again = ops.kmeans1d(y, 4, out=result)
    assert again.codebook is result.codebook and again.codes is result.codes
    assert torch.equal(again.codes, ops.kmeans1d(y, 4).codes)
    warm = ops.kmeans1d(x, 4, init=again.codebook, out=again)  # the start may be the buffer itself
    assert torch.equal(warm.codebook, ops.kmeans1d(x, 4, init=ops.kmeans1d(y, 4).codebook).codebook)
    for bad in (result._replace(codes=result.codes[1:]), result._replace(codebook=result.codebook.double())):
        with pytest.raises(ValueError, match="out"):
            ops.kmeans1d(x, 4, out=bad)


def test_torch_defaults_of_the_user_do_not_matter(rng):
    """Results were allocated with the default dtype and device, then filled as float32 on the CPU."""
    x = torch.randn(1000, generator=rng)
    want, pruned = ops.kmeans1d(x, 4), ops.topk_prune(x, 10)
    try:
        torch.set_default_dtype(torch.float64)
        got = ops.kmeans1d(x, 4)
        assert got.codebook.dtype == torch.float32 and torch.equal(got.codebook, want.codebook)
        w = x.view(25, 40)
        assert ops.truncated_svd(w, 3, warm=ops.truncated_svd(w, 3).vh).u.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(ops.kmeans1d(x, 4).codes, want.codes)
        assert torch.equal(ops.topk_prune(x, 10).mask, pruned.mask)


def test_conjugate_views_are_read_with_their_sign():
    x = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert x.is_neg() and ops.kmeans1d(x, 2).codebook.tolist() == [-2, 4]


def test_numpy_integers_will_do():
    import numpy

    assert ops.kmeans1d(torch.arange(4.0), numpy.int64(4)).distortion == 0
