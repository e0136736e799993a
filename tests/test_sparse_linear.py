"""sparse_linear, check_csr and the conversions: compressed rows."""

import pytest
import torch
from conftest import forced_isa

from lc_ext import _native, ops

U = 2.0**-24  # unit roundoff of float32


def make(rng, rows, cols, density=0.3):
    kept = torch.rand(rows, cols, generator=rng) < density
    return torch.where(kept, torch.randn(rows, cols, generator=rng), 0.0)


def assert_product(got, x, weight, bias=None):
    """Within what the products of a row, their sum and the bias may round, of the exact result."""
    x, weight = x.double(), weight.double()
    exact, size = x @ weight.T, x.abs() @ weight.abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    bound = ((weight != 0).sum(1) + 2) * U * 1.01 * size
    worst = ((got.double() - exact).abs() - bound).max() if got.numel() else torch.tensor(0.0)
    assert got.shape == exact.shape
    assert worst <= 0, f"{float(worst)} over the bound"


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_matches_float64_at_every_tail(isa, rng, density):
    for cols in range(1, 71):
        rows, batch = 1 + cols % 9, (1, 2, 3, 4, 5)[cols % 5]
        weight = make(rng, rows, cols, density)
        x = torch.randn(batch, cols, generator=rng)
        bias = torch.randn(rows, generator=rng) if cols % 2 else None
        assert_product(ops.sparse_linear(x, *ops.dense_to_csr(weight), cols, bias), x, weight, bias)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 17])
def test_matches_float64_at_every_batch(isa, rng, rows):
    weight, bias = make(rng, rows, 43), torch.randn(rows, generator=rng)
    for batch in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 70):
        x = torch.randn(batch, 43, generator=rng)
        assert_product(ops.sparse_linear(x, *ops.dense_to_csr(weight), 43, bias), x, weight, bias)


@pytest.mark.parametrize("cols", [65536, 65537])
def test_both_widths_of_columns(isa, rng, cols):
    weight = make(rng, 9, cols, 1e-3)
    weight[:, -1] = torch.randn(9, generator=rng)  # the highest column there is
    csr = ops.dense_to_csr(weight)
    assert csr[1].dtype == (torch.uint16 if cols == 65536 else torch.int32)
    for batch in (1, 3):
        x = torch.randn(batch, cols, generator=rng)
        assert_product(ops.sparse_linear(x, *csr, cols), x, weight)


def test_same_bits_on_every_instruction_set_and_rows_of_any_length(rng):
    weight = make(rng, 75, 90)
    weight[3], weight[40] = torch.randn(90, generator=rng), 0  # a full row, and an empty one
    csr, bias = ops.dense_to_csr(weight), torch.randn(75, generator=rng)
    for batch in (1, 2, 8, 9, 20, 40):
        x, results = torch.randn(batch, 90, generator=rng), []
        for name in _native.supported_isas():
            with forced_isa(name):
                results.append(ops.sparse_linear(x, *csr, 90, bias))
        assert_product(results[0], x, weight, bias)
        assert all(torch.equal(result, results[0]) for result in results)


def test_large_matches_float64(isa, rng):
    weight = make(rng, 600, 1061, 0.1)
    weight[64:128] = 0  # a chunk of rows with nothing, and blocks of columns too
    weight[:, 128:400] = 0
    for batch in (1, 12, 17, 40, 70):
        x = torch.randn(batch, 1061, generator=rng)
        assert_product(ops.sparse_linear(x, *ops.dense_to_csr(weight), 1061), x, weight)


@pytest.mark.parametrize("batch", [1, 5, 20, 40])
def test_out_and_accumulate(isa, rng, batch):
    weight, bias = make(rng, 37, 50), torch.randn(37, generator=rng)
    csr, x = ops.dense_to_csr(weight), torch.randn(batch, 50, generator=rng)
    want, before = ops.sparse_linear(x, *csr, 50, bias), torch.randn(batch, 37, generator=rng)
    out = before.clone()
    assert ops.sparse_linear(x, *csr, 50, bias, out=out) is out and torch.equal(out, want)
    out.copy_(before)
    assert ops.sparse_linear(x, *csr, 50, bias, out=out, accumulate=True) is out
    assert torch.equal(out, before + want)
    none = ops.dense_to_csr(torch.zeros(37, 50))
    assert torch.equal(ops.sparse_linear(x, *none, 50, bias, out=out, accumulate=True), before + want + bias)


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("batch", [1, 5, 20, 70])
def test_activation_is_that_of_the_plain_result(isa, rng, batch, kind):
    """To the bit: also after a sum, and where nothing is stored."""
    for rows, cols, density in [(37, 50, 0.3), (16, 7, 0.0), (150, 133, 0.02), (130, 200, 0.2)]:
        bias, x = torch.randn(rows, generator=rng), torch.randn(batch, cols, generator=rng)
        arguments = (*ops.dense_to_csr(make(rng, rows, cols, density)), cols, bias)
        plain = ops.sparse_linear(x, *arguments)
        assert torch.equal(ops.sparse_linear(x, *arguments, activation=kind), ops.activation(plain, kind))
        out = torch.randn(batch, rows, generator=rng)
        want = ops.activation(out + plain, kind)
        assert ops.sparse_linear(x, *arguments, activation=kind, out=out, accumulate=True) is out and torch.equal(
            out, want
        )
        half = ops.sparse_linear(x.bfloat16(), *arguments, activation=kind)
        assert torch.equal(half, ops.sparse_linear(x.bfloat16().float(), *arguments, activation=kind).bfloat16())
        close = ops.sparse_linear_reference(x, *arguments, activation=kind)
        assert torch.allclose(ops.activation(plain, kind), close, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_half_values(isa, rng, batch, dtype):
    weight, x = make(rng, 37, 50), torch.randn(batch, 50, generator=rng)
    values, *structure = ops.dense_to_csr(weight.to(dtype))
    want = ops.sparse_linear(x, values.float(), *structure, 50)
    assert torch.equal(ops.sparse_linear(x, values, *structure, 50), want)
    codebook = torch.randn(7, generator=rng).to(dtype)
    codes = torch.randint(0, 7, values.shape, generator=rng, dtype=torch.uint8)
    want = ops.sparse_linear(x, codebook.float()[codes.long()], *structure, 50)
    assert torch.equal(ops.sparse_linear(x, codes, *structure, 50, codebook=codebook), want)
    assert torch.equal(ops.csr_to_dense(codes, *structure, 50, codebook).count_nonzero(), (weight != 0).sum())
    with pytest.raises(ValueError, match="values must be codes below"):
        ops.sparse_linear(x, codes + 1, *structure, 50, codebook=codebook)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_columns_without_an_entry_do_not_matter(isa, batch):
    weight = torch.zeros(20, 9)
    weight[:7, 2] = 1.0  # rows of different lengths: the slices of a batch of 1 are padded
    x = torch.full((batch, 9), float("nan"))
    x[:, 2] = 3.0
    y = ops.sparse_linear(x, *ops.dense_to_csr(weight), 9)
    assert y.tolist() == [[3.0] * 7 + [0.0] * 13] * batch


@pytest.mark.parametrize("batch", [1, 3])
def test_writing_in_place_is_seen_and_checked(rng, batch):
    weight, x = make(rng, 20, 30), torch.randn(batch, 30, generator=rng)
    values, columns, starts = ops.dense_to_csr(weight)
    before = ops.sparse_linear(x, values, columns, starts, 30)
    values *= 2
    assert torch.equal(ops.sparse_linear(x, values, columns, starts, 30), 2 * before)
    columns[1] = 30
    with pytest.raises(ValueError, match="columns"):
        ops.sparse_linear(x, values, columns, starts, 30)


@pytest.mark.parametrize("batch", [1, 5, 20, 40])
def test_same_bits_for_any_number_of_threads(isa, rng, batch):
    csr = ops.dense_to_csr(make(rng, 901, 333))
    x = torch.randn(batch, 333, generator=rng)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ops.sparse_linear(x, *csr, 333))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])


def test_dense_round_trip(rng):
    weight = make(rng, 9, 31)
    weight[0, 0] = float("nan")
    values, columns, starts = ops.dense_to_csr(weight)
    ops.check_csr(values, columns, starts, 31)
    assert starts[-1] == values.numel() == int((weight != 0).sum())
    assert torch.equal(ops.csr_to_dense(values, columns, starts, 31).nan_to_num(7), weight.nan_to_num(7))


def test_empty_shapes(isa):
    none = torch.zeros(0), torch.zeros(0, dtype=torch.uint16)
    starts = torch.zeros(4, dtype=torch.int32)
    assert ops.sparse_linear(torch.ones(2, 5), *none, starts, 5, torch.arange(3.0)).tolist() == [[0, 1, 2]] * 2
    assert ops.sparse_linear(torch.ones(2, 0), *none, starts, 0).tolist() == [[0, 0, 0]] * 2
    assert ops.sparse_linear(torch.ones(2, 5), *none, starts[:1], 5).shape == (2, 0)
    assert ops.sparse_linear(torch.ones(0, 5), *none, starts, 5).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_shape_and_strides(isa, rng, dtype):
    values, columns, starts = ops.dense_to_csr(make(rng, 5, 20))
    x = torch.randn(2, 3, 20, generator=rng)
    y = ops.sparse_linear(x, values, columns, starts, 20)
    assert y.shape == (2, 3, 5)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(ops.sparse_linear(strided, values, columns, starts, 20), y)
    half = ops.sparse_linear(x.to(dtype), values.to(dtype), columns, starts, 20)
    wide = ops.sparse_linear(x.to(dtype).float(), values.to(dtype).float(), columns, starts, 20)
    assert torch.equal(half, wide.to(dtype))


def structure(starts, columns=(0, 1, 2), dtype=torch.uint16):
    return torch.ones(len(columns)), torch.tensor(columns).to(dtype), torch.tensor(starts, dtype=torch.int32)


@pytest.mark.parametrize(
    ("starts", "columns", "cols", "named"),
    [
        ([1, 2, 3], (0, 1, 2), 3, "row_starts must rise from 0"),
        ([0, 2, 4], (0, 1, 2), 3, "row_starts must rise from 0"),
        ([0, 2, 2], (0, 1, 2), 3, "row_starts must rise from 0"),
        ([0, 5, 3], (0, 1, 2), 3, "row_starts must not fall"),
        ([0, -1, 3], (0, 1, 2), 3, "row_starts must not fall"),
        ([0, 2, 3], (0, 1, 3), 3, "columns"),
        ([0, 2, 3], (0, 1, 65535), 3, "columns"),
        ([0, 2, 3], (1, 0, 2), 3, "columns must ascend in each row, got 1 before 0"),
        ([0, 0, 3], (0, 1, 1), 3, "columns must ascend"),
    ],
)
def test_bad_structures_are_refused(starts, columns, cols, named):
    with pytest.raises(ValueError, match=named):
        ops.check_csr(*structure(starts, columns), cols)
    for batch in (1, 2):
        with pytest.raises(ValueError, match=named):
            ops.sparse_linear(torch.ones(batch, cols), *structure(starts, columns), cols)


def test_check_csr_accepts_and_looks_at_signed_columns():
    assert ops.check_csr(*structure([0, 2, 3]), 3) is None
    assert ops.check_csr(*structure([0, 2, 3], dtype=torch.int32), 70_000) is None
    with pytest.raises(ValueError, match="columns"):
        ops.check_csr(*structure([0, 2, 3], (0, -1, 2), torch.int32), 70_000)


CSR = structure([0, 2, 3])
GOOD = {
    "x": torch.ones(2, 9),
    "values": CSR[0],
    "columns": CSR[1],
    "row_starts": CSR[2],
    "cols": 9,
    "bias": torch.ones(2),
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", None, TypeError),
        ("x", torch.ones(2, 9).double(), TypeError),
        ("x", torch.ones(2, 8), ValueError),
        ("values", torch.ones(3).int(), TypeError),
        ("values", torch.ones(2), ValueError),
        ("values", torch.ones(3, device="meta"), ValueError),
        ("columns", CSR[1].int(), TypeError),
        ("columns", torch.zeros(3, dtype=torch.uint16, device="meta"), ValueError),
        ("row_starts", CSR[2].long(), TypeError),
        ("row_starts", CSR[2][:0], ValueError),
        ("row_starts", torch.zeros(3, dtype=torch.int32, device="meta"), ValueError),
        ("cols", 9.0, TypeError),
        ("bias", torch.ones(3), ValueError),
        ("bias", torch.ones(2).int(), TypeError),
        ("codebook", torch.ones(3), TypeError),  # with float values
        ("out", torch.ones(2, 3), ValueError),
        ("out", torch.ones(2, 2).double(), ValueError),
        ("out", torch.ones(2, 4)[:, ::2], ValueError),
        ("accumulate", True, ValueError),
        ("accumulate", 1, TypeError),
        ("activation", "tanh", ValueError),
    ],
)
def test_bad_arguments_are_named(name, value, error):
    assert ops.sparse_linear(**GOOD).tolist() == [[3, 2]] * 2
    with pytest.raises(error, match={"codebook": "values", "accumulate": "out|accumulate"}.get(name, name)):
        ops.sparse_linear(**{**GOOD, name: value})


def test_dense_to_csr_names_a_bad_weight():
    with pytest.raises(ValueError, match="weight"):
        ops.dense_to_csr(torch.ones(3))
