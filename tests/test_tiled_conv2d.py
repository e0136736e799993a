"""tiled_conv2d: torch's convolution of the same kernel, for every layout of the input, instruction set and threads."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lc_ext import ops


def kernel(rng, shape, k, density, per_output=False):
    codes = codebook = sparse = None
    weight = torch.zeros(shape)
    if k:
        codes = torch.randint(0, k, shape, generator=rng).to(torch.uint8)
        codebook = torch.randn(*((shape[0], k) if per_output else (k,)), generator=rng)
        books = codebook.expand(shape[0], k)
        weight = weight + books.gather(1, codes.flatten(1).long()).view(shape)
    if density is not None:
        sparse = torch.randn(shape, generator=rng) * (torch.rand(shape, generator=rng) < density)
        weight = weight + sparse
    return ops.conv_tiles(shape, codes=codes, codebook=codebook, sparse=sparse), weight


def bound(x, weight, **options):
    """Of the error of a sum in float32 in any order, for each output."""
    taps = weight[0].numel()
    return 2 * (taps + 8) * 2.0**-24 * F.conv2d(x.double().abs(), weight.double().abs(), **options) + 1e-30


def check(x, tiles, weight, bias, **options):
    got = ops.tiled_conv2d(x, tiles, bias, **options)
    want = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), **options)
    limit = bound(x, weight, **options) + (0 if bias is None else 2.0**-22 * bias.abs()[:, None, None])
    assert got.shape == want.shape and ((got - want).abs() <= limit).all()
    reference = ops.tiled_conv2d_reference(x, tiles, bias, **options)
    assert ((reference - want).abs() <= limit).all()
    return got


OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (2, 0)},
    {"dilation": 2, "padding": 2},
    {"dilation": (2, 1), "stride": (2, 1), "padding": (1, 3)},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("k", "density", "per_output"),
    [
        (2, None, False),
        (16, None, False),
        (17, 0.05, False),
        (256, None, False),
        (4, 0.02, False),
        (0, 0.1, False),
        (3, 0.0, False),
        (16, None, True),
        (3, 0.05, True),
        (200, 0.05, True),
    ],
)
def test_is_the_convolution(isa, rng, options, k, density, per_output):
    for shape, size in (
        ((16, 8, 3, 3), (9, 11)),
        ((5, 3, 1, 1), (4, 4)),
        ((33, 5, 2, 4), (8, 13)),
        ((1, 1, 5, 5), (9, 9)),
    ):
        tiles, weight = kernel(rng, shape, k, density, per_output)
        x = torch.randn(2, shape[1], *size, generator=rng)
        if any((shape[2 + i] - 1) * 2 + 1 > size[i] for i in (0, 1)):
            continue
        first = check(x, tiles, weight, None, **options)
        bias = torch.randn(shape[0], generator=rng)
        check(x, tiles, weight, bias, **options)
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(ops.tiled_conv2d(last, tiles, **options), first)
        wide = torch.randn(2, shape[1], size[0], 2 * size[1], generator=rng)
        wide[..., ::2] = x
        assert torch.equal(ops.tiled_conv2d(wide[..., ::2], tiles, **options), first)
        assert first.is_contiguous(memory_format=torch.channels_last)


@given(
    st.integers(0, 2), st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(3, 30),
    st.integers(3, 30), st.integers(0, 2), st.integers(1, 2), st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape(batch, outputs, inputs, d1, d2, height, width, padding, stride, seed):
    rng = torch.Generator().manual_seed(seed)
    tiles, weight = kernel(rng, (outputs, inputs, d1, d2), 5, 0.1)
    x = torch.randn(batch, inputs, height, width, generator=rng)
    check(x, tiles, weight, None, padding=padding, stride=stride)


def test_large_layers_are_cut(isa, rng):
    """More weights than are decoded at a time, and more pixels than are padded at a time."""
    tiles, weight = kernel(rng, (70, 300, 3, 3), 16, None)
    check(torch.randn(1, 300, 5, 5, generator=rng), tiles, weight, None, padding=1)
    tiles, weight = kernel(rng, (20, 16, 3, 3), 4, 0.01)
    check(torch.randn(3, 16, 200, 210, generator=rng), tiles, weight, None, padding=1)


def test_threads_agree(isa, rng, monkeypatch):
    tiles, _ = kernel(rng, (40, 24, 3, 3), 16, 0.02)
    x = torch.randn(3, 24, 30, 30, generator=rng)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.tiled_conv2d(x, tiles, padding=1))
    torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(rng, dtype):
    tiles, weight = kernel(rng, (8, 4, 3, 3), 4, None)
    x = torch.randn(1, 4, 6, 6, generator=rng).to(dtype)
    got = ops.tiled_conv2d(x, tiles)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), F.conv2d(x.float(), weight), rtol=0.02, atol=0.02)


def test_bad_arguments(rng):
    tiles, _ = kernel(rng, (8, 4, 3, 3), 4, None)
    x = torch.randn(1, 4, 6, 6, generator=rng)
    codes = torch.zeros(8, 4, 3, 3, dtype=torch.uint8)
    cases = [
        (ValueError, "x must have shape", lambda: ops.tiled_conv2d(x[:, :3], tiles)),
        (ValueError, "at least as large as the kernel", lambda: ops.tiled_conv2d(x[..., :2], tiles)),
        (TypeError, "x must be float32", lambda: ops.tiled_conv2d(x.double(), tiles)),
        (ValueError, r"bias must have shape \(8,\)", lambda: ops.tiled_conv2d(x, tiles, torch.zeros(7))),
        (ValueError, "stride must be at least 1", lambda: ops.tiled_conv2d(x, tiles, stride=0)),
        (ValueError, "codes must come with", lambda: ops.conv_tiles((8, 4, 3, 3), codes=codes)),
        (ValueError, "codes must be uint8", lambda: ops.conv_tiles((8, 4, 3, 2), codes=codes, codebook=torch.ones(2))),
        (ValueError, "codebook must be", lambda: ops.conv_tiles((8, 4, 3, 3), codes=codes, codebook=torch.ones(300))),
        (
            ValueError,
            "one for each of 8 outputs",
            lambda: ops.conv_tiles((8, 4, 3, 3), codes=codes, codebook=torch.ones(7, 2)),
        ),
        (ValueError, "sparse must have", lambda: ops.conv_tiles((8, 4, 3, 3), sparse=torch.ones(2))),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
