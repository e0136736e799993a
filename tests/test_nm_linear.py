"""nm_linear, nm_pack, nm_unpack and check_nm: N:M sparse weights."""

import itertools

import pytest
import torch
from conftest import forced_isa

from lc_ext import _native, ops
from lc_ext.ops.nm_linear import position_bits

U = 2.0**-24  # unit roundoff of float32
PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 2), (2, 3), (3, 4), (2, 8), (3, 7), (8, 16), (1, 16), (15, 16), (5, 9)]


def make(rng, rows, cols, n, m):
    """A random N:M sparse matrix, some of whose groups hold fewer than n elements."""
    groups = (cols + m - 1) // m
    score = torch.rand(rows, groups, m, generator=rng)
    kept = score >= score.sort(2, descending=True).values[:, :, n - 1 : n]
    kept &= torch.rand(rows, groups, m, generator=rng) < 0.9
    return torch.where(kept, torch.randn(rows, groups, m, generator=rng), 0.0).view(rows, groups * m)[:, :cols]


def assert_product(got, x, weight, bias=None):
    """Within what the products of a row, their sum and the bias may round, of the exact result."""
    x, weight = x.double(), weight.double()
    exact, size = x @ weight.T, x.abs() @ weight.abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    bound = (weight.shape[1] + 2) * U * 1.01 * size
    assert got.shape == exact.shape
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("n,m", PATTERNS)
def test_packs_and_unpacks(rng, n, m):
    for rows, cols in itertools.product((0, 1, 5), (0, 1, m - 1, m, m + 1, 5 * m + 3)):
        weight = make(rng, rows, cols, n, m)
        values, indices = ops.nm_pack(weight, n, m)
        assert values.shape == (rows, (cols + m - 1) // m * n)
        ops.check_nm(values, indices, n, m, cols)
        assert torch.equal(ops.nm_unpack(values, indices, n, m, cols), weight)


def test_pack_by_hand():
    weight = torch.tensor([[0.0, 5, 0, 6, 7, 0, 0, 0, 8]])
    values, indices = ops.nm_pack(weight, 2, 4)
    assert values.tolist() == [[5, 6, 7, 0, 8, 0]]
    assert indices.tolist() == [[0b01_00_01_00_11_01]]
    with pytest.raises(ValueError, match="at most n = 1 nonzero elements in each 4, got 2"):
        ops.nm_pack(weight, 1, 4)


@pytest.mark.parametrize("n,m", PATTERNS)
def test_matches_float64_at_every_tail(isa, rng, n, m):
    batches = itertools.cycle((1, 2, 3, 4, 5, 8, 9))
    for rows, cols in itertools.product((1, 15, 16, 17), (1, m - 1, m, m + 1, 3 * m, 70)):
        batch, weight = next(batches), make(rng, rows, cols, n, m)
        x, bias = torch.randn(batch, cols, generator=rng), torch.randn(rows, generator=rng)
        bias = bias if cols % 2 else None
        assert_product(ops.nm_linear(x, *ops.nm_pack(weight, n, m), n, m, cols, bias), x, weight, bias)


@pytest.mark.parametrize("n,m", [(2, 4), (3, 4), (4, 8), (5, 9)])
def test_matches_float64_at_every_batch(isa, rng, n, m):
    weight, bias = make(rng, 83, 150, n, m), torch.randn(83, generator=rng)
    packed = ops.nm_pack(weight, n, m)
    for batch in (0, 1, 2, 5, 8, 12, 13, 16, 17, 33, 64, 65, 70):
        x = torch.randn(batch, 150, generator=rng)
        assert_product(ops.nm_linear(x, *packed, n, m, 150, bias), x, weight, bias)


@pytest.mark.parametrize("n,m", PATTERNS)
def test_same_bits_on_every_instruction_set(rng, n, m):
    weight, bias = make(rng, 35, 100, n, m), torch.randn(35, generator=rng)
    packed = ops.nm_pack(weight, n, m)
    for batch in (1, 3, 14, 40):
        x, results = torch.randn(batch, 100, generator=rng), []
        for name in _native.supported_isas():
            with forced_isa(name):
                results.append(ops.nm_linear(x, *packed, n, m, 100, bias))
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("batch", [1, 5, 20])
def test_same_bits_for_any_number_of_threads(isa, rng, batch):
    packed, x = ops.nm_pack(make(rng, 1100, 400, 2, 4), 2, 4), torch.randn(batch, 400, generator=rng)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ops.nm_linear(x, *packed, 2, 4, 400))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("batch", [1, 5, 20])
def test_out_and_accumulate(isa, rng, batch):
    bias, x = torch.randn(37, generator=rng), torch.randn(batch, 50, generator=rng)
    args = (*ops.nm_pack(make(rng, 37, 50, 2, 4), 2, 4), 2, 4, 50, bias)
    want, before = ops.nm_linear(x, *args), torch.randn(batch, 37, generator=rng)
    out = before.clone()
    assert ops.nm_linear(x, *args, out=out) is out and torch.equal(out, want)
    out.copy_(before)
    assert ops.nm_linear(x, *args, out=out, accumulate=True) is out
    assert torch.equal(out, before + want)


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("batch", [1, 5, 20, 70])
def test_activation_is_that_of_the_plain_result(isa, rng, batch, kind):
    """To the bit: also after a sum, and where nothing is stored."""
    for rows, cols, (n, m) in [(37, 50, (2, 4)), (16, 7, (1, 8)), (100, 33, (3, 9))]:
        bias, x = torch.randn(rows, generator=rng), torch.randn(batch, cols, generator=rng)
        arguments = (*ops.nm_pack(make(rng, rows, cols, n, m), n, m), n, m, cols, bias)
        plain = ops.nm_linear(x, *arguments)
        assert torch.equal(ops.nm_linear(x, *arguments, activation=kind), ops.activation(plain, kind))
        out = torch.randn(batch, rows, generator=rng)
        want = ops.activation(out + plain, kind)
        assert ops.nm_linear(x, *arguments, activation=kind, out=out, accumulate=True) is out and torch.equal(out, want)
        half = ops.nm_linear(x.bfloat16(), *arguments, activation=kind)
        assert torch.equal(half, ops.nm_linear(x.bfloat16().float(), *arguments, activation=kind).bfloat16())
        close = ops.nm_linear_reference(x, *arguments, activation=kind)
        assert torch.allclose(ops.activation(plain, kind), close, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_half_values(isa, rng, batch, dtype):
    x = torch.randn(batch, 50, generator=rng)
    values, indices = ops.nm_pack(make(rng, 37, 50, 2, 4).to(dtype), 2, 4)
    shape = (indices, 2, 4, 50)
    assert torch.equal(ops.nm_linear(x, values, *shape), ops.nm_linear(x, values.float(), *shape))
    codebook = torch.randn(7, generator=rng).to(dtype)
    codes = torch.randint(0, 7, values.shape, generator=rng, dtype=torch.uint8)
    want = ops.nm_linear(x, codebook.float()[codes.long()], *shape)
    assert torch.equal(ops.nm_linear(x, codes, *shape, codebook=codebook), want)
    assert ops.nm_unpack(codes, *shape, codebook).dtype == dtype
    with pytest.raises(ValueError, match="values must be codes below"):
        ops.nm_linear(x, codes + 1, *shape, codebook=codebook)


def test_half_x_and_strides(isa, rng):
    weight = make(rng, 5, 20, 2, 4)
    args = (*ops.nm_pack(weight, 2, 4), 2, 4, 20)
    x = torch.randn(2, 3, 20, generator=rng)
    y = ops.nm_linear(x, *args)
    assert y.shape == (2, 3, 5)
    assert torch.equal(ops.nm_linear(x.transpose(0, 2).contiguous().transpose(0, 2), *args), y)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(ops.nm_linear(x.to(dtype), *args), ops.nm_linear(x.to(dtype).float(), *args).to(dtype))


def test_slots_past_the_last_column_are_ignored(isa):
    values, indices = ops.nm_pack(torch.tensor([[1.0, 2, 0, 0, 3]]), 2, 4)
    values[0, 3] = float("nan")
    for batch in (1, 2, 20):
        assert ops.nm_linear(torch.ones(batch, 5), values, indices, 2, 4, 5).tolist() == [[6]] * batch
    assert ops.nm_unpack(values, indices, 2, 4, 5).tolist() == [[1, 2, 0, 0, 3]]


@pytest.mark.parametrize("batch", [1, 3])
def test_writing_in_place_is_seen_and_checked(rng, batch):
    x = torch.randn(batch, 30, generator=rng)
    values, indices = ops.nm_pack(make(rng, 20, 30, 2, 4), 2, 4)
    before = ops.nm_linear(x, values, indices, 2, 4, 30)
    values *= 2
    assert torch.equal(ops.nm_linear(x, values, indices, 2, 4, 30), 2 * before)
    indices[7] = 0  # twice the first column
    with pytest.raises(ValueError, match=r"indices must hold positions that ascend.* row 7"):
        ops.nm_linear(x, values, indices, 2, 4, 30)


@pytest.mark.parametrize("n,m,positions", [(2, 4, [1, 1]), (2, 4, [2, 1]), (2, 3, [0, 3]), (1, 5, [5]), (1, 9, [15])])
def test_bad_positions_are_refused(n, m, positions):
    values, indices = torch.ones(1, n), ops.pack_codes(torch.tensor([positions], dtype=torch.uint8), position_bits(m))
    for call in (ops.check_nm, ops.nm_unpack, lambda *a: ops.nm_linear(torch.ones(2, m), *a)):
        with pytest.raises(ValueError, match="indices must hold positions that ascend"):
            call(values, indices, n, m, m)


def test_empty_shapes(isa):
    for rows, cols, batch in itertools.product((0, 3), (0, 5), (0, 1, 2)):
        weight = torch.ones(rows, cols) * (torch.arange(cols) % 4 < 2)
        y = ops.nm_linear(torch.ones(batch, cols), *ops.nm_pack(weight, 2, 4), 2, 4, cols, torch.ones(rows))
        assert torch.equal(y, torch.full((batch, rows), 1.0 + float(weight.sum() / max(rows, 1))))


PACKED = ops.nm_pack(torch.tensor([[1.0, 2, 0, 0, 3]] * 2), 2, 4)
GOOD = {
    "x": torch.ones(2, 5),
    "values": PACKED.values,
    "indices": PACKED.indices,
    "n": 2,
    "m": 4,
    "cols": 5,
    "bias": torch.ones(2),
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", None, TypeError),
        ("x", torch.ones(2, 5).double(), TypeError),
        ("x", torch.ones(2, 6), ValueError),
        ("values", torch.ones(2, 4).int(), TypeError),
        ("values", torch.ones(2, 4).double(), TypeError),
        ("values", torch.ones(2, 3), ValueError),
        ("values", torch.ones(4), ValueError),
        ("values", torch.ones(2, 4, device="meta"), ValueError),
        ("indices", PACKED.indices.long(), TypeError),
        ("indices", PACKED.indices[:1], ValueError),
        ("indices", PACKED.indices.to("meta"), ValueError),
        ("n", 4, ValueError),
        ("n", 0, ValueError),
        ("n", 2.0, TypeError),
        ("m", 1, ValueError),
        ("m", 17, ValueError),
        ("cols", 9, ValueError),
        ("cols", 5.0, TypeError),
        ("bias", torch.ones(3), ValueError),
        ("bias", torch.ones(2).int(), TypeError),
        ("codebook", torch.ones(3), TypeError),  # with float values
        ("out", torch.ones(2, 3), ValueError),
        ("accumulate", True, ValueError),
        ("accumulate", 1, TypeError),
        ("activation", "tanh", ValueError),
    ],
)
def test_bad_arguments_are_named(name, value, error):
    assert ops.nm_linear(**GOOD).tolist() == [[7, 7]] * 2
    match = {"codebook": "values", "accumulate": "out|accumulate", "cols": "values|cols"}.get(name, name)
    with pytest.raises(error, match=match):
        ops.nm_linear(**{**GOOD, name: value})


@pytest.mark.parametrize("weight,error", [(torch.ones(3), ValueError), (torch.ones(2, 4).int(), TypeError)])
def test_pack_names_a_bad_weight(weight, error):
    with pytest.raises(error, match="weight"):
        ops.nm_pack(weight, 2, 4)
