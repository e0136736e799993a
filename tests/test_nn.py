"""Packed layers: the same function as the dense layer, and good citizens of torch."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from lc_ext import nn as packed
from lc_ext import ops

OPS = torch.ops.lc_ext


def few_values(rng, rows, cols, k=5, bias=True):
    linear = nn.Linear(cols, rows, bias=bias)
    values = torch.randn(k, generator=rng)
    linear.weight.data = values[torch.randint(0, k, (rows, cols), generator=rng)]
    return linear


def lut(rng, rows=11, cols=37, bias=True):
    return packed.LUTLinear.from_dense(few_values(rng, rows, cols, bias=bias))


def sparse(rng, rows=11, cols=37, bias=True):
    linear = nn.Linear(cols, rows, bias=bias)
    linear.weight.data *= torch.rand(rows, cols, generator=rng) < 0.2
    return packed.SparseLinear.from_dense(linear)


def coded_sparse(rng, rows=11, cols=37, bias=True):
    layer, book = sparse(rng, rows, cols, bias), torch.randn(5, generator=rng)
    codes = torch.randint(0, 5, layer.values.shape, generator=rng, dtype=torch.uint8)
    return packed.SparseLinear.from_csr(codes, layer.columns, layer.row_starts, cols, layer.bias, book)


def nm(rng, rows=11, cols=37, bias=True):
    linear = nn.Linear(cols, rows, bias=bias)
    linear.weight.data *= torch.arange(cols) % 4 % 3 == torch.randint(0, 2, (rows, 1), generator=rng)
    return packed.NMLinear.from_dense(linear)


def coded_nm(rng, rows=11, cols=37, bias=True):
    layer, book = nm(rng, rows, cols, bias), torch.randn(5, generator=rng)
    codes = torch.randint(0, 5, layer.values.shape, generator=rng, dtype=torch.uint8)
    return packed.NMLinear.from_packed(codes, layer.indices, 2, 4, cols, layer.bias, book)


def low_rank(rng, rows=11, cols=37, bias=True):
    u, v = torch.randn(rows, 2, generator=rng), torch.randn(2, cols, generator=rng)
    return packed.LowRankLinear.from_factors(u, v, torch.randn(rows, generator=rng) if bias else None)


def total(rng, rows=11, cols=37, bias=True):
    parts = [make(rng, rows, cols, bias) for make in (lut, sparse, low_rank, nm)]
    return packed.SumLinear(parts, torch.randn(rows, generator=rng) if bias else None)


LAYERS = [lut, sparse, coded_sparse, nm, coded_nm, low_rank, total]


def bound(layer, x):
    """What two float32 evaluations of the layer may differ by: 4 parts, 2 matrix products each, any order of sums."""
    dense = layer.to_dense()
    parts = layer.parts if isinstance(layer, packed.SumLinear) else [layer]
    size = sum(
        x.abs() @ (p.u.abs() @ p.v.abs() if isinstance(p, packed.LowRankLinear) else p.dense_weight().abs()).T
        for p in parts
    )
    size = size + (0 if dense.bias is None else sum(p.bias.abs() for p in [*parts, layer] if p.bias is not None))
    return 2 * (x.shape[-1] + 10) * 2.0**-24 * size


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
def test_is_the_dense_layer(isa, rng, make, bias):
    layer = make(rng, bias=bias)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear and (dense.bias is not None) == bias
    for shape in ((37,), (0, 37), (3, 37), (2, 3, 37), (60, 37)):
        x = torch.randn(shape, generator=rng)
        assert ((layer(x) - dense(x)).abs() <= bound(layer, x)).all()
        assert layer(x).shape == dense(x).shape


@pytest.mark.parametrize("make", [lut, sparse, nm])
def test_from_dense_keeps_every_weight(rng, make):
    layer = make(rng)
    again = type(layer).from_dense(layer.to_dense())
    assert torch.equal(again.dense_weight(), layer.dense_weight()) and torch.equal(again.bias, layer.bias)


@pytest.mark.parametrize("make", LAYERS)
def test_nbytes_and_repr(rng, make):
    layer = make(rng)
    assert layer.nbytes == sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert f"{type(layer).__name__}(" in repr(layer) and "in_features=37" in repr(layer)
    assert list(layer.parameters()) == []


def test_nbytes_by_hand(rng):
    assert packed.LUTLinear(100, 10, 3).nbytes == 10 * 10 * 4 + 8 * 4 + 10 * 4
    assert packed.SparseLinear(100, 10, 50, bias=False).nbytes == 50 * (4 + 2) + 11 * 4
    assert packed.NMLinear(100, 10, 2, 4, bias=False).nbytes == 10 * (50 * 4 + 16)
    assert packed.NMLinear(100, 10, 2, 4, 16, bias=False).nbytes == 10 * (50 + 16) + 16 * 4
    assert packed.LowRankLinear(100, 10, 2, bias=False).nbytes == 110 * 2 * 4


def through_safetensors(layer):
    return safetensors.torch.load(safetensors.torch.save(layer.state_dict()))


def through_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("through", [through_safetensors, through_torch_save])
def test_state_dict_round_trips(rng, make, through):
    layer, x = make(rng), torch.randn(3, 37, generator=rng)
    state = through(layer)
    assert {n: (t.dtype, t.shape) for n, t in state.items()} == {
        n: (t.dtype, t.shape) for n, t in layer.state_dict().items()
    }
    other = copy.deepcopy(layer)
    for t in other.state_dict().values():
        t.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("make", LAYERS)
def test_copies_and_pickles(rng, make):
    layer, x = make(rng).eval(), torch.randn(3, 37, generator=rng)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")):
        assert torch.equal(other(x), layer(x)) and not other.training
    clone = copy.deepcopy(layer)
    next(clone.buffers()).zero_()
    assert not torch.equal(next(clone.buffers()), next(layer.buffers()))


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_leaves_integers_alone_and_computes(rng, make, dtype):
    layer, x = make(rng), torch.randn(3, 37, generator=rng)
    half = copy.deepcopy(layer).to(dtype)
    for (name, before), after in zip(layer.state_dict().items(), half.state_dict().values(), strict=True):
        if not before.dtype.is_floating_point:
            assert torch.equal(before, after), name
    y = half(x.to(dtype))
    assert y.dtype == dtype and half.to_dense().weight.dtype == dtype
    # Input, weights (two factors), intermediate, result and the sums of the parts are each rounded once.
    size = bound(layer, x) / (2 * (37 + 10) * 2.0**-24)
    assert ((y - layer(x)).abs() <= 10 * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("rows,cols", [(1, 1), (1, 5), (5, 1)])
def test_small_shapes(rng, make, rows, cols):
    layer, x = make(rng, rows, cols), torch.randn(2, cols, generator=rng)
    assert ((layer(x) - layer.to_dense()(x)).abs() <= bound(layer, x)).all()


def test_nothing_stored():
    zero = nn.Linear(4, 3)
    zero.weight.data.zero_()
    layers = [
        packed.SparseLinear.from_dense(zero),
        packed.LUTLinear.from_dense(zero),
        packed.LowRankLinear.from_factors(torch.zeros(3, 0), torch.zeros(0, 4), zero.bias),
        packed.NMLinear.from_dense(zero),
    ]
    assert layers[0].values.numel() == 0
    for layer in layers:
        assert torch.equal(layer(torch.ones(2, 4)), zero.bias.detach().expand(2, 3))
        assert torch.equal(layer.to_dense().weight, zero.weight)


def test_new_layers_are_zero_and_valid():
    layers = [packed.LUTLinear(5, 3, 2), packed.SparseLinear(5, 3, 7), packed.LowRankLinear(5, 3, 1)]
    coded = [packed.SparseLinear(5, 3, 7, codebook_size=2), packed.NMLinear(5, 3, 2, 4, 3)]
    for layer in [*layers, *coded, packed.NMLinear(5, 3, 2, 4)]:
        layer.check()
        assert layer(torch.ones(2, 5)).tolist() == [[0, 0, 0]] * 2


def test_codes_come_back(rng):
    codes = torch.randint(0, 6, (5, 21), generator=rng, dtype=torch.uint8)
    layer = packed.LUTLinear.from_codes(codes, torch.randn(6, generator=rng))
    assert layer.bits == 3 and torch.equal(layer.codes(), codes)
    assert packed.LUTLinear.from_codes(codes, torch.randn(6, generator=rng), bits=7).bits == 7


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks_and_has_the_gradient(rng, make, backend):
    layer = make(rng)
    x = torch.randn(3, 37, generator=rng).requires_grad_()
    weights = torch.randn(3, 11, generator=rng)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    y = compiled(x)
    assert ((y - layer(x)).abs() <= bound(layer, x.detach())).all()
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    (exact,) = torch.autograd.grad((layer.to_dense()(x) * weights).sum(), x)
    size = weights.abs() @ (5 + layer.to_dense().weight.abs())
    assert ((grad - exact).abs() <= 2 * (37 + 10) * 2.0**-24 * size).all()


def per_row(rng, rows=11, cols=36, bias=True, groups=1):
    codes = torch.randint(0, 5, (rows, cols), generator=rng, dtype=torch.uint8)
    book = torch.randn(rows, groups, 5, generator=rng)
    return packed.LUTLinear.from_codes(codes, book[:, 0] if groups == 1 else book, torch.randn(rows, generator=rng))


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("batch", [(1,), (2, 3)])
@pytest.mark.parametrize("make", [lut, per_row, lambda rng: per_row(rng, groups=3), sparse, coded_sparse, nm, coded_nm])
def test_gradients_of_codewords_values_and_bias(rng, make, batch, backend):
    """A small step along each gradient changes the output as the gradient says, in float64 with the dense weight."""
    layer = make(rng)
    learned = [t for t in layer.buffers() if t.dtype.is_floating_point and t.numel()]
    x = torch.randn(*batch, layer.in_features, generator=rng)
    before = layer(x)
    for t in learned:
        t.requires_grad_()
    call = layer if backend is None else torch.compile(layer, fullgraph=True, backend=backend)
    y = call(x)
    assert torch.equal(y, before)
    weights = torch.randn(y.shape, generator=rng)
    grads = torch.autograd.grad((y * weights).sum(), learned)

    def dense():
        return F.linear(x.double(), layer.dense_weight().double(), layer.bias.double())

    for t, grad in zip(learned, grads, strict=True):
        assert grad.shape == t.shape and grad.dtype == t.dtype
        with torch.no_grad():
            step = torch.randint(-3, 4, t.shape, generator=rng).float()  # the output is linear in each
            old = dense()
            t += step
            change = float(((dense() - old) * weights).sum())
            t -= step
        size = float(grad.abs().double().sum()) * 3
        assert change == pytest.approx(float((grad.double() * step.double()).sum()), abs=1e-4 * size + 1e-4)
    with torch.no_grad():
        learned[0] += 1
    assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(rng, bias, dtype):
    a, b, c, d, e = (make(rng, bias=bias).to(dtype) for make in (lut, sparse, nm, coded_sparse, coded_nm))
    rows, coded_rows = (b.values, b.columns, b.row_starts), (d.values, d.columns, d.row_starts)
    slots, coded_slots = (c.values, c.indices, 2, 4, 37), (e.values, e.indices, 2, 4, 37)
    for shape in ((3, 37), (2, 3, 37)):
        x = torch.randn(shape, generator=rng).to(dtype).requires_grad_()
        for t in (a.codebook, b.values, c.values, d.codebook, e.codebook):
            t.requires_grad_()
        results = [
            torch.library.opcheck(OPS.lut_linear.default, (x, a.words, a.codebook, a.bits, 37, a.bias)),
            torch.library.opcheck(OPS.sparse_linear.default, (x, *rows, 37, b.bias)),
            torch.library.opcheck(OPS.sparse_linear.default, (x, *coded_rows, 37, d.bias, d.codebook)),
            torch.library.opcheck(OPS.nm_linear.default, (x, *slots, c.bias)),
            torch.library.opcheck(OPS.nm_linear.default, (x, *coded_slots, e.bias, e.codebook)),
            torch.library.opcheck(OPS.nm_unpack.default, (*coded_slots, e.codebook)),
            torch.library.opcheck(OPS.lut_decode.default, (a.words, a.codebook, a.bits, 37)),
            torch.library.opcheck(OPS.csr_to_dense.default, (*rows, 37)),
        ]
        assert all(set(result.values()) == {"SUCCESS"} for result in results)


def test_load_state_dict_refuses_what_would_read_outside(rng):
    layer = sparse(rng)
    good = copy.deepcopy(layer.state_dict())
    for name, at, value in (("columns", 0, 40), ("row_starts", 1, 10_000), ("row_starts", 2, -1)):
        bad = copy.deepcopy(good)
        bad[name][at] = value
        for state in (bad, {name: bad[name]}):  # whole, or in part with strict=False
            with pytest.raises(RuntimeError, match=name):
                layer.load_state_dict(state, strict=False)
    wide = {**good, "columns": good["columns"].int() + 65536}
    with pytest.raises(RuntimeError, match="columns"):  # would wrap to valid columns
        layer.load_state_dict(wide)
    assert all(torch.equal(t, good[name]) for name, t in layer.state_dict().items())


def test_load_state_dict_refuses_bad_positions_and_codes(rng):
    for make, name, bad in (
        (nm, "indices", lambda t: torch.zeros_like(t)),
        (coded_nm, "values", lambda t: t + 5),
        (coded_sparse, "values", lambda t: t + 5),
        (coded_sparse, "codebook", lambda t: t * float("inf")),
    ):
        layer = make(rng)
        good = copy.deepcopy(layer.state_dict())
        with pytest.raises(RuntimeError, match=name):
            layer.load_state_dict({**good, name: bad(good[name])})
        assert all(torch.equal(t, good[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("make", [sparse, coded_sparse, nm, coded_nm, total])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_computed_on_follows_the_buffers(rng, make, batch):
    """The kernels' own layouts are derived anew when a buffer is written to, replaced, loaded or moved."""
    layer, x = make(rng, bias=False), torch.randn(batch, 37, generator=rng)
    other = make(rng, bias=False)
    layer(x)
    with torch.no_grad():
        for t in layer.buffers():
            if t.dtype.is_floating_point:
                t *= 2
    assert ((layer(x) - x @ layer.to_dense().weight.T).abs() <= bound(layer, x)).all()
    if make is not sparse:  # whose structure is another
        for name, t in other.state_dict().items():
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, t.clone())
        assert torch.equal(layer(x), other(x))
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("make", [lut, sparse, nm])
def test_a_bias_of_another_dtype_is_not_read_as_float32(rng, make):
    layer, x = make(rng), torch.randn(2, 37, generator=rng)
    layer.bias = layer.bias.bfloat16()
    assert ((layer(x) - F.linear(x, layer.dense_weight(), layer.bias.float())).abs() <= bound(layer, x)).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_sum_adds_in_place_what_its_parts_say(rng, batch):
    layer, x = total(rng), torch.randn(batch, 37, generator=rng)
    kept = x.clone()
    for part in layer.parts:
        y = torch.randn(batch, 11, generator=rng)
        want = y + part(x)
        assert part.write(y, x, part.bias, True) or isinstance(part, packed.LUTLinear)  # which is written first
        assert isinstance(part, packed.LUTLinear) or ((y - want).abs() <= 1e-5 * (1 + want.abs())).all()
    assert torch.equal(x, kept) and torch.equal(layer(x), layer(x))
    through_ops = layer(x.clone().requires_grad_())
    assert ((layer(x) - through_ops).abs() <= bound(layer, x)).all()


def test_load_state_dict_refuses_bad_codes(rng):
    layer = nn.Sequential(lut(rng))  # 5 codewords of 8
    good = copy.deepcopy(layer.state_dict())
    bad = {**good, "0.words": torch.full_like(good["0.words"], -1)}
    with pytest.raises(RuntimeError, match=r"0: words must hold codes below"):
        layer.load_state_dict(bad)
    with pytest.raises(RuntimeError, match="codebook contains NaN"):
        layer.load_state_dict({**good, "0.codebook": good["0.codebook"] * float("nan")})
    assert all(torch.equal(t, good[name]) for name, t in layer.state_dict().items())


CODES, BOOK = torch.zeros(3, 4, dtype=torch.uint8), torch.ones(2)
LUT, LOW, SPARSE, NM = packed.LUTLinear, packed.LowRankLinear, packed.SparseLinear, packed.NMLinear


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: LUT(4, 3, 9), ValueError, "bits"),
        (lambda: LUT(4, 3, 2, 5), ValueError, "codebook_size"),
        (lambda: LUT(-1, 3, 2), ValueError, "in_features"),
        (lambda: LUT(4, 3.0, 2), TypeError, "out_features"),
        (lambda: LUT(4, 3, 2, bias=torch.ones(3)), TypeError, "bias"),
        (lambda: LUT.from_codes(CODES + 2, BOOK), ValueError, "codes"),
        (lambda: LUT.from_codes(CODES + 2, BOOK, bits=3), ValueError, "codes must be below the size"),
        (lambda: LUT.from_codes(CODES, torch.ones(3), bits=1), ValueError, "codebook"),
        (lambda: LUT.from_codes(CODES, torch.tensor([1.0, float("inf")])), ValueError, "codebook"),
        (lambda: LUT.from_codes(CODES, BOOK, torch.ones(4)), ValueError, "bias"),
        (lambda: LUT.from_codes(CODES, BOOK, torch.ones(3, device="meta")), ValueError, "bias"),
        (lambda: LUT.from_dense(nn.Linear(40, 40)), ValueError, "distinct values"),
        (lambda: SPARSE(4, 3, -1), ValueError, "nnz"),
        (lambda: SPARSE(0, 3, 1), ValueError, "nnz"),
        (lambda: SPARSE(4, 3, 13), ValueError, "nnz"),
        (lambda: SPARSE(4, 3, 1, codebook_size=257), ValueError, "codebook_size"),
        (lambda: packed.NMLinear(4, 3, 2, 2), ValueError, "n"),
        (lambda: packed.NMLinear(4, 3, 2, 17), ValueError, "m"),
        (lambda: packed.NMLinear(4, 3, 2, 4, 0), ValueError, "codebook_size"),
        (lambda: packed.NMLinear.from_dense(nn.Linear(4, 3)), ValueError, "weight"),
        (lambda: LOW(4, 3, -1), ValueError, "rank"),
        (lambda: LOW.from_factors(torch.ones(3, 2), torch.ones(3, 4)), ValueError, "u and v"),
        (lambda: LOW.from_factors(torch.ones(3, 2), torch.ones(2, 4).half()), TypeError, "v"),
        (lambda: LOW.from_factors(torch.ones(3, 2), torch.ones(2, 4), torch.ones(4)), ValueError, "bias"),
        (lambda: packed.SumLinear([]), ValueError, "parts"),
        (lambda: packed.SumLinear([nn.ReLU()]), TypeError, r"parts\[0\]"),
        (lambda: packed.SumLinear([nn.Linear(2, 3), nn.Linear(3, 2)]), ValueError, r"parts\[1\]"),
        (lambda: packed.SumLinear([nn.Linear(2, 3)], torch.ones(2)), ValueError, "bias"),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_from_csr_refuses_a_bad_structure(rng):
    values, columns, starts = ops.dense_to_csr(torch.ones(2, 3))
    assert torch.equal(SPARSE.from_csr(values, columns, starts, 3).dense_weight(), torch.ones(2, 3))
    with pytest.raises(ValueError, match="columns"):
        SPARSE.from_csr(values, columns, starts, 2)


class _Seen(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    "make",
    [
        packed.LUTLinear.from_dense,
        packed.SparseLinear.from_dense,
        lambda linear: packed.NMLinear.from_dense(linear, 5, 6),
    ],
)
def test_the_short_cut_is_taken_only_where_nothing_else_looks_on(make, rng):
    """A plain call goes straight to the kernel; modes, traces, transforms and gradients get the registered op."""
    weight = torch.randint(0, 3, (5, 6), generator=rng).float()
    linear = nn.Linear(6, 5)
    linear.weight = nn.Parameter(weight)
    layer, x = make(linear), torch.randn(4, 6, generator=rng)
    want = layer(x)
    torch.testing.assert_close(want, linear(x))
    with _Seen() as seen:
        assert torch.equal(layer(x), want)
    assert any("lc_ext" in name for name in seen.names)
    assert "lc_ext" in str(torch.jit.trace(layer, x, check_trace=False).graph)
    torch.testing.assert_close(torch.func.vmap(layer)(x), want)
    differentiated = layer(x.requires_grad_())
    assert differentiated.requires_grad and torch.equal(differentiated, want)
    with torch.no_grad():
        assert torch.equal(layer(x), want)
    for bad in (torch.randn(4, 7), torch.tensor(1.0), torch.ones(4, 6, dtype=torch.float64)):
        with pytest.raises((TypeError, ValueError), match="x"):
            layer(bad)
    assert torch.equal(layer(x.detach().t().contiguous().t()), want)
    assert layer(torch.empty(0, 6)).shape == (0, 5)
