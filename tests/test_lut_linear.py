"""lut_linear and lut_decode: packed codes and a codebook."""

import pytest
import torch

from lc_ext import ops

U = 2.0**-24  # unit roundoff of float32
BITS = range(1, 9)


def make(rng, rows, cols, bits, k=None):
    k = 2**bits if k is None else k
    codes = torch.randint(0, k, (rows, cols), generator=rng, dtype=torch.uint8)
    codebook = torch.randn(k, generator=rng)
    return ops.pack_codes(codes, bits), codebook, codebook[codes.long()]


def assert_product(got, x, weight, bias=None):
    """Within what ``cols`` products, their sum and the bias may round, of the exact result."""
    x, weight = x.double(), weight.double()
    exact, size = x @ weight.T, x.abs() @ weight.abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    bound = (weight.shape[1] + 2) * U * 1.01 * size
    worst = ((got.double() - exact).abs() - bound).max() if got.numel() else torch.tensor(0.0)
    assert got.shape == exact.shape
    assert worst <= 0, f"{float(worst)} over the bound"


@pytest.mark.parametrize("bits", BITS)
def test_matches_float64_at_every_tail(lut_isa, rng, bits):
    for cols in range(1, 71):
        rows, batch = 1 + cols % 9, (1, 2, 3, 4, 5)[cols % 5]
        words, codebook, weight = make(rng, rows, cols, bits)
        assert torch.equal(ops.lut_decode(words, codebook, bits, cols), weight)
        x = torch.randn(batch, cols, generator=rng)
        bias = torch.randn(rows, generator=rng) if cols % 2 else None
        assert_product(ops.lut_linear(x, words, codebook, bits, cols, bias), x, weight, bias)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 2, 7, 9])
def test_matches_float64_at_every_batch(lut_isa, rng, bits, rows):
    words, codebook, weight = make(rng, rows, 43, bits, k=2**bits - 1)
    bias = torch.randn(rows, generator=rng)
    for batch in (0, 1, 2, 3, 4, 5, 8, 33):
        x = torch.randn(batch, 43, generator=rng)
        assert_product(ops.lut_linear(x, words, codebook, bits, 43, bias), x, weight, bias)


@pytest.mark.parametrize("bits", BITS)
def test_large_matches_float64(lut_isa, rng, bits):
    words, codebook, weight = make(rng, 300, 1061, bits)
    for batch in (1, 4, 49):
        x = torch.randn(batch, 1061, generator=rng)
        assert_product(ops.lut_linear(x, words, codebook, bits, 1061), x, weight)


@pytest.mark.parametrize("bits", BITS)
def test_agrees_with_reference(lut_isa, rng, bits):
    words, codebook, weight = make(rng, 9, 61, bits, k=max(1, 2**bits - 1))
    x, bias = torch.randn(3, 61, generator=rng), torch.randn(9, generator=rng)
    reference = ops.lut_linear_reference(x, words, codebook, bits, 61, bias)
    assert_product(reference, x, weight, bias)
    size = x.abs() @ weight.abs().T + bias.abs()
    assert ((ops.lut_linear(x, words, codebook, bits, 61, bias) - reference).abs() <= 2.02 * 63 * U * size).all()


@pytest.mark.parametrize("bits", BITS)
def test_integers_are_exact(lut_isa, rng, bits):
    words, _, _ = make(rng, 9, 100, bits)
    codebook = torch.randint(-9, 10, (2**bits,), generator=rng).float()
    x = torch.randint(-9, 10, (4, 100), generator=rng).float()
    weight = codebook[ops.unpack_codes(words, bits, 100).long()]
    assert torch.equal(ops.lut_linear(x, words, codebook, bits, 100), (x.double() @ weight.double().T).float())


@pytest.mark.parametrize("bits", BITS)
def test_same_bits_for_any_number_of_threads(lut_isa, rng, bits):
    words, codebook, _ = make(rng, 701, 333, bits)
    x = torch.randn(5, 333, generator=rng)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ops.lut_linear(x, words, codebook, bits, 333))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("bits", BITS)
def test_reads_no_bit_outside_its_rows(lut_isa, rng, bits):
    """Junk before, after and in the spare bits of the last word changes nothing (ASan sees reads further out)."""
    cols = 37
    words, codebook, weight = make(rng, 5, cols, bits)
    spare = words.shape[1] * 32 - cols * bits
    junk = torch.full((7, words.shape[1]), -1, dtype=torch.int32)
    junk[1:6] = words
    if spare:
        junk[1:6, -1] |= -(1 << (32 - spare))
    x = torch.randn(2, cols, generator=rng)
    assert torch.equal(ops.lut_decode(junk[1:6], codebook, bits, cols), weight)
    assert torch.equal(
        ops.lut_linear(x, junk[1:6], codebook, bits, cols), ops.lut_linear(x, words, codebook, bits, cols)
    )


def test_code_past_the_codebook_means_zero(lut_isa):
    for bits in BITS:
        words = ops.pack_codes(torch.full((2, 11), 2**bits - 1, dtype=torch.uint8), bits)
        codebook = torch.full((2**bits - 1,), 3.0)
        for batch in (1, 64):
            assert ops.lut_linear(torch.ones(batch, 11), words, codebook, bits, 11).abs().max() == 0


def test_one_bit_does_not_cancel(lut_isa):
    """c0 sum(x) + (c1 - c0) sum over set bits would lose every digit of this."""
    words = ops.pack_codes(torch.ones(1, 64, dtype=torch.uint8), 1)
    y = ops.lut_linear(torch.full((1, 64), 0.1), words, torch.tensor([1e8, 1e-3]), 1, 64)
    assert_product(y, torch.full((1, 64), 0.1), torch.full((1, 64), 1e-3))


def test_empty_shapes(lut_isa):
    codebook = torch.ones(2)
    words = torch.zeros(3, 0, dtype=torch.int32)
    assert ops.lut_linear(torch.zeros(2, 0), words, codebook, 1, 0, torch.arange(3.0)).tolist() == [[0, 1, 2]] * 2
    assert ops.lut_linear(torch.zeros(2, 0), words, codebook, 3, 0).tolist() == [[0, 0, 0]] * 2
    assert ops.lut_linear(torch.ones(2, 5), torch.zeros(0, 1, dtype=torch.int32), codebook, 1, 5).shape == (2, 0)
    assert ops.lut_linear(torch.ones(0, 5), torch.zeros(3, 1, dtype=torch.int32), codebook, 1, 5).shape == (0, 3)
    assert ops.lut_decode(words, codebook, 4, 0).shape == (3, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_cast_back(lut_isa, rng, dtype):
    words, codebook, _ = make(rng, 5, 20, 3)
    x, codebook = torch.randn(2, 20, generator=rng).to(dtype), codebook.to(dtype)
    y = ops.lut_linear(x, words, codebook, 3, 20)
    assert torch.equal(y, ops.lut_linear(x.float(), words, codebook.float(), 3, 20).to(dtype))


def test_leading_dimensions_and_strides(lut_isa, rng):
    words, codebook, _ = make(rng, 5, 20, 3)
    x = torch.randn(2, 3, 20, generator=rng)
    y = ops.lut_linear(x, words, codebook, 3, 20)
    assert y.shape == (2, 3, 5)
    assert torch.equal(ops.lut_linear(x[0, 0], words, codebook, 3, 20), y[0, 0])
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(ops.lut_linear(strided, words.t().contiguous().t(), codebook, 3, 20), y)


GOOD = {
    "x": torch.ones(2, 9),
    "words": torch.zeros(4, 1, dtype=torch.int32),
    "codebook": torch.ones(8),
    "bits": 3,
    "cols": 9,
    "bias": torch.ones(4),
    "mode": "exact",
    "activation": None,
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", [1.0], TypeError),
        ("x", torch.ones(2, 9).double(), TypeError),
        ("x", torch.ones(2, 8), ValueError),
        ("x", torch.tensor(1.0), ValueError),
        ("words", torch.zeros(4, 1), TypeError),
        ("words", torch.zeros(4, 2, dtype=torch.int32), ValueError),
        ("words", torch.zeros(4, 1, dtype=torch.int32, device="meta"), ValueError),
        ("codebook", torch.ones(9), ValueError),
        ("codebook", torch.ones(0), ValueError),
        ("codebook", torch.ones(3, 2), ValueError),
        ("codebook", torch.ones(4, 2, 2), ValueError),
        ("codebook", torch.ones(4, 1, 1, 2), ValueError),
        ("codebook", torch.full((8,), torch.inf), ValueError),
        ("codebook", torch.ones(8, dtype=torch.int64), TypeError),
        ("codebook", torch.ones(8, device="meta"), ValueError),
        ("bits", 0, ValueError),
        ("bits", True, TypeError),
        ("cols", -1, ValueError),
        ("bias", torch.ones(3), ValueError),
        ("bias", torch.ones(4).int(), TypeError),
        ("bias", torch.ones(4, device="meta"), ValueError),
        ("mode", "quick", ValueError),
        ("activation", "tanh", ValueError),
    ],
)
def test_bad_arguments_are_named(name, value, error):
    assert ops.lut_linear(**GOOD).tolist() == [[10] * 4] * 2
    with pytest.raises(error, match=name):
        ops.lut_linear(**{**GOOD, name: value})
