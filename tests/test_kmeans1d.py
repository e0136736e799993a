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
    assert result.distortion == pytest.approx(distortion64(x, codebook, weights), rel=1e-9)


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
    cluster = pytest.importorskip("sklearn.cluster")
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
        assert result.distortion <= distortion64(x, init) * (1 + 1e-12)
        again = ops.kmeans1d(x, k, init=result.codebook)
        assert again.distortion <= result.distortion * (1 + 1e-12)


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
    torch.testing.assert_close(result.codebook, without.codebook, rtol=0, atol=1e-5)
    assert result.codes.shape == x.shape


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
    ],
)
def test_bad_arguments_are_named(args, kwargs, error, named):
    with pytest.raises(error, match=named):
        ops.kmeans1d(*args, **kwargs)


def test_half_precision_and_strides(rng):
    x = torch.randn(40, 50, generator=rng)
    assert torch.equal(ops.kmeans1d(x.t(), 4).codes, ops.kmeans1d(x, 4).codes.t())
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
    numpy = pytest.importorskip("numpy")
    assert ops.kmeans1d(torch.arange(4.0), numpy.int64(4)).distortion == 0
