"""lut_linear: its three arithmetics, codebooks of rows and groups, and the layouts that it derives from the words."""

import copy
import gc
import weakref

import pytest
import torch

from lc_ext import _native, nn, ops
from lc_ext.ops._lut_tables import int8_table, int16_table

ERROR = {"exact": 1e-6, "fast": 1e-3, "int8": 2e-2}  # relative to the exact product, in norm
MODES = tuple(ERROR)
BITS = range(1, 9)
SIZES = (1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 200, 255, 257, 300)


def gaussian(rng, rows, cols, bits, books=()):
    """Codes and codebooks of Gaussian weights, by quantiles; ``books``: () or (groups,) for codebooks of each row."""
    codes = torch.randint(0, 2**bits, (rows, cols), generator=rng, dtype=torch.uint8)
    level = torch.special.ndtri((torch.arange(2**bits) + 0.5) / 2**bits)
    shape = (rows, *books) if books else ()
    codebook = level * (0.7 + 0.6 * torch.rand(*shape, 1, generator=rng)) if books else level
    return ops.pack_codes(codes, bits), codebook.squeeze(1) if books == (1,) else codebook


def error(y, x, words, codebook, bits):
    """Against the norm that a product of such rows has when their signs are random: one output may cancel."""
    weight, x = ops.lut_decode(words, codebook, bits, x.shape[-1]).double(), x.double()
    return float((y.double() - x @ weight.T).norm() / (x.square() @ weight.square().T).sqrt().norm())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", BITS)
def test_error_at_every_batch(lut_isa, rng, mode, bits):
    words, codebook = gaussian(rng, 70, 260, bits)
    for batch in (1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 70, 97):
        x = torch.randn(batch, 260, generator=rng)
        assert error(ops.lut_linear(x, words, codebook, bits, 260, mode=mode), x, words, codebook, bits) < ERROR[mode]


@pytest.mark.parametrize("mode", ["fast", "int8"])
@pytest.mark.parametrize("bits", BITS)
def test_every_output_at_ragged_sizes(lut_isa, rng, mode, bits):
    """Each output is off by no more than the steps of x and of the codebook allow."""
    for i, cols in enumerate(SIZES):
        rows, batch = SIZES[(5 * i + bits) % 13], (1, 2, 5, 19)[i % 4]
        words, codebook = gaussian(rng, rows, cols, bits)
        x, bias = torch.randn(batch, cols, generator=rng), torch.randn(rows, generator=rng)
        y = ops.lut_linear(x, words, codebook, bits, cols, bias if i % 2 else None, mode=mode)
        weight = ops.lut_decode(words, codebook, bits, cols).double()
        exact = x.double() @ weight.T + (bias if i % 2 else 0)
        steps = 2 * 2047 if mode == "fast" else 2 * 127
        x_step, w_step = x.abs().max() / steps, 2 * codebook.abs().max() / steps
        if bits == 1 or (bits == 2 and mode == "fast"):  # a nibble's sum is rounded to 1 / 2047 of the largest
            slack = cols * 2 * x.abs().max() * codebook.abs().max() / 2047
        else:
            slack = 1.5 * (cols * x_step * codebook.abs().max() + x.abs().sum(1, keepdim=True) * w_step)
        assert ((y - exact).abs() <= slack + 1e-5).all(), (rows, cols, batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_codebooks_of_rows_and_groups(lut_isa, rng, mode, groups):
    for bits in BITS:
        for rows, cols, batch in ((1, 6, 1), (5, 66, 3), (66, 192, 2), (33, 384, 18)):
            words, codebook = gaussian(rng, rows, cols, bits, (groups,))
            assert codebook.dim() == (2 if groups == 1 else 3)
            x = torch.randn(batch, cols, generator=rng)
            y = ops.lut_linear(x, words, codebook, bits, cols, mode=mode)
            assert error(y, x, words, codebook, bits) < (3 if cols < 100 else 1) * ERROR[mode]


def test_decode_of_rows_and_groups(rng):
    words, codebook = gaussian(rng, 9, 30, 3, (5,))
    codes = ops.unpack_codes(words, 3, 30).long()
    weight = ops.lut_decode(words, codebook, 3, 30)
    for o in range(9):
        for i in range(30):
            assert weight[o, i] == codebook[o, i // 6, codes[o, i]]


@pytest.mark.parametrize("books", [(), (1,), (3,)])
@pytest.mark.parametrize("mode", MODES)
def test_same_bits_everywhere(rng, mode, books):
    """For every instruction set and number of threads, and for a row alone or in a batch."""
    before = _native.active_isa(), torch.get_num_threads()
    for bits in BITS:
        words, codebook = gaussian(rng, 150, 273, bits, books)
        x = torch.randn(21, 273, generator=rng)
        results = []
        try:
            for isa in _native.supported_isas():
                _native.set_isa(isa)
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    results.append(ops.lut_linear(x, words, codebook, bits, 273, mode=mode))
                results.append(
                    torch.cat([ops.lut_linear(row, words, codebook, bits, 273, mode=mode) for row in x[:, None]])
                )
        finally:
            _native.set_isa(before[0])
            torch.set_num_threads(before[1])
        assert all(torch.equal(y, results[0]) for y in results), bits


@pytest.mark.parametrize("mode", ["fast", "int8"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_outliers_cost_at_most_twice_the_error(lut_isa, rng, mode, bits):
    for books in ((), (4,)):
        words, codebook = gaussian(rng, 70, 1024, bits, books)
        x = torch.randn(4, 1024, generator=rng)
        plain = error(ops.lut_linear(x, words, codebook, bits, 1024, mode=mode), x, words, codebook, bits)
        x[:, [3, 500, 901]] *= 50
        assert error(ops.lut_linear(x, words, codebook, bits, 1024, mode=mode), x, words, codebook, bits) < 2 * plain


@pytest.mark.parametrize("mode", ["fast", "int8"])
def test_outliers_in_every_column(lut_isa, rng, mode):
    """Each column's weights are found in the layout: an outlier is multiplied exactly, and many of them are too.

    But int8 keeps codewords of 7 bits only where codes have more than 4.
    """
    for bits in BITS:
        words, codebook = gaussian(rng, 70, 67, bits)
        x = torch.full((67, 67), 1e-30)
        x.fill_diagonal_(3.0)
        y = ops.lut_linear(x, words, codebook, bits, 67, mode=mode)
        step = float(codebook.max() - codebook.min()) / 127 if mode == "int8" and bits > 4 else 0
        assert torch.allclose(y, 3 * ops.lut_decode(words, codebook, bits, 67).T, rtol=1e-6, atol=1e-25 + 3 * step)
    x = torch.randn(3, 4096, generator=rng) * (1 + 100 * (torch.rand(3, 4096, generator=rng) < 0.02))
    words, codebook = gaussian(rng, 5, 4096, 4)
    assert error(ops.lut_linear(x, words, codebook, 4, 4096, mode=mode), x, words, codebook, 4) < ERROR[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e30])
def test_any_scale_of_x_and_codebook(lut_isa, rng, mode, scale):
    for bits in (1, 4, 8):
        words, codebook = gaussian(rng, 8, 130, bits)
        x = torch.randn(3, 130, generator=rng)
        for a, b in ((x * scale, codebook), (x, codebook * scale)):
            y = ops.lut_linear(a, words, b, bits, 130, mode=mode)
            tiny = 1e-44 * 130 * 4095 if scale < 1e-37 else 0  # steps that are denormal
            exact = a.double() @ ops.lut_decode(words, b, bits, 130).double().T
            assert (y - exact).norm() <= ERROR[mode] * exact.norm() + tiny


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(lut_isa, rng, mode, bad):
    for bits in (2, 3, 8):
        words, codebook = gaussian(rng, 70, 300, bits)
        x = torch.randn(5, 300, generator=rng)
        good = ops.lut_linear(x, words, codebook, bits, 300, mode=mode)
        x[2, 150] = bad
        y = ops.lut_linear(x, words, codebook, bits, 300, mode=mode)
        assert torch.equal(y[[0, 1, 3, 4]], good[[0, 1, 3, 4]])
        assert y[2].isnan().all() if mode != "exact" or bad != bad else not y[2].isfinite().any()


@pytest.mark.parametrize("mode", MODES)
def test_zeros_and_constant_codebooks(lut_isa, mode):
    for value in (0.0, 2.5, -2.5):
        for bits in (1, 4, 8):
            words = ops.pack_codes(torch.zeros(3, 40, dtype=torch.uint8), bits)
            y = ops.lut_linear(torch.ones(2, 40), words, torch.tensor([value]), bits, 40, mode=mode)
            assert torch.allclose(y, torch.full((2, 3), 40 * value), rtol=1e-3)
            assert not ops.lut_linear(torch.zeros(2, 40), words, torch.tensor([value]), bits, 40, mode=mode).any()


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_activation_is_that_of_the_plain_result(lut_isa, rng, name, mode, bits):
    for rows, cols, batch, per_row in [(9, 20, 1, False), (70, 33, 4, False), (130, 40, 7, True), (64, 8, 100, False)]:
        words, codebook = gaussian(rng, rows, cols, bits)
        codebook = torch.randn(rows, len(codebook), generator=rng) if per_row else codebook
        x, bias = torch.randn(batch, cols, generator=rng), torch.randn(rows, generator=rng)
        arguments = (words, codebook, bits, cols, bias, mode)
        y, plain = ops.lut_linear(x, *arguments, activation=name), ops.lut_linear(x, *arguments)
        assert torch.equal(y, ops.activation(plain, name))
        assert torch.allclose(y, ops.activation_reference(plain, name), rtol=1e-5, atol=1e-6)
        for half in (torch.bfloat16, torch.float16):
            wide = ops.lut_linear(x.to(half).float(), *arguments, activation=name)
            assert torch.equal(ops.lut_linear(x.to(half), *arguments, activation=name), wide.to(half))


def test_tables_of_integers(rng):
    books = torch.randn(5, 3, 16, generator=rng) * torch.tensor([1e-20, 1.0, 3.0, 1e20, 0.0])[:, None, None]
    integers, step = int16_table(books)
    assert integers.abs().max() <= 4095
    assert ((integers * step[:, None, None] - books).abs() <= 0.51 * step[:, None, None]).all()
    integers, step, offset = int8_table(books)
    assert integers.min() >= 0 and integers.max() <= 127
    got = (integers - offset[:, None, None]) * step[:, None, None]
    assert ((got - books).norm(dim=(1, 2)) <= 0.01 * books.norm(dim=(1, 2))).all()
    for one in (-3.0, 0.0, 2.0):
        integers, step, offset = int8_table(torch.full((1, 1, 2), one))
        assert ((integers - offset) * step == one).all()


def test_plan_follows_the_tensors(rng):
    """It is made again when words, codebook or instruction set change, and goes when the words go."""
    words, codebook = gaussian(rng, 6, 40, 4)
    x = torch.randn(2, 40, generator=rng)
    for mode in MODES:
        before = ops.lut_linear(x, words, codebook, 4, 40, mode=mode)
        words.bitwise_not_()
        y = ops.lut_linear(x, words, codebook, 4, 40, mode=mode)
        assert error(y, x, words, codebook, 4) < ERROR[mode] and not torch.equal(y, before)
        codebook.mul_(2)
        assert error(ops.lut_linear(x, words, codebook, 4, 40, mode=mode), x, words, codebook, 4) < ERROR[mode]
        other = codebook + 1
        assert error(ops.lut_linear(x, words, other, 4, 40, mode=mode), x, words, other, 4) < ERROR[mode]
    gone = weakref.ref(words)
    del words
    gc.collect()
    assert gone() is None


def test_layer_in_every_mode(rng):
    codes = torch.randint(0, 16, (20, 48), generator=rng, dtype=torch.uint8)
    x = torch.randn(3, 48, generator=rng)
    for shape in ((16,), (20, 16), (20, 4, 16)):
        codebook = torch.randn(shape, generator=rng)
        for mode in MODES:
            layer = nn.LUTLinear.from_codes(codes, codebook, torch.randn(20, generator=rng), mode=mode)
            assert layer.groups == (None, 1, 4)[len(shape) - 1] and (mode == "exact") == ("mode" not in repr(layer))
            y, dense = layer(x), layer.to_dense()(x)
            assert (y - dense).norm() <= 1.5 * ERROR[mode] * dense.norm()
            again = type(layer)(**layer.config())
            again.load_state_dict(layer.state_dict())
            assert torch.equal(again(x), y) and torch.equal(copy.deepcopy(layer)(x), y)
            torch._dynamo.reset()
            assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), y)
            torch._dynamo.reset()
            again.words.zero_()
            again.load_state_dict(layer.state_dict())  # in place
            assert torch.equal(again(x), y)
            traced = x.clone().requires_grad_()
            layer(traced).sum().backward()
            assert torch.allclose(traced.grad, layer.dense_weight().sum(0).expand(3, -1), atol=1e-4)


def test_layer_refuses(rng):
    codes = torch.zeros(4, 6, dtype=torch.uint8)
    for codebook in (torch.ones(3, 2), torch.ones(4, 4, 2), torch.ones(4, 2, 2, 2)):
        with pytest.raises(ValueError, match="codebook"):
            nn.LUTLinear.from_codes(codes, codebook)
    with pytest.raises(ValueError, match="mode"):
        nn.LUTLinear.from_codes(codes, torch.ones(2), mode="quick")
    with pytest.raises(ValueError, match="groups"):
        nn.LUTLinear(6, 4, 1, groups=4)
