"""assign: nearest codeword, on every device."""

import pytest
import torch

from lc_ext import _native, ops
from lc_ext.ops.assign import midpoints

SIZES = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000]  # around every vector width, and empty


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 2, 3, 16, 32, 33, 255, 256])
def test_matches_reference(device, rng, n, k):
    x = torch.randn(n, generator=rng).to(device)
    codebook = torch.randn(k, generator=rng).sort().values.to(device)
    torch.testing.assert_close(ops.assign(x, codebook), ops.assign_reference(x, codebook), rtol=0, atol=0)


def test_large_input_matches_reference(device, rng):
    x = torch.randn(200_003, generator=rng).to(device)
    codebook = torch.randn(16, generator=rng).sort().values.to(device)
    assert torch.equal(ops.assign(x, codebook), ops.assign_reference(x, codebook))


@pytest.mark.parametrize("k", [17, 32, 33, 200, 256])
def test_large_codebooks_of_every_spacing(isa, rng, k):
    """Even, crowded, with an outlier, repeated, and too wide or too narrow for a grid of floats."""
    even = torch.linspace(-1, 1, k)
    crowded = torch.cat([torch.tensor([-1.0]), 1e-6 * torch.arange(k - 1)])
    outlier = torch.cat([even[:-1], torch.tensor([1e6])])
    repeated = (even * 9).round() / 9
    wide, narrow = even * 3e38, even * 1e-44
    for codebook in (even, crowded, outlier, repeated, wide, narrow, torch.zeros(k)):
        near = codebook[torch.randint(0, k, (6000,), generator=rng)] * (1 + 0.01 * torch.randn(6000, generator=rng))
        mids = midpoints(codebook)[torch.randint(0, k - 1, (3001,), generator=rng)]  # where < and <= differ
        special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 3.4e38, -3.4e38, 1e-45])
        x = torch.cat([near, mids, torch.nextafter(mids, torch.tensor(torch.inf)), special])
        assert torch.equal(ops.assign(x, codebook), ops.assign_reference(x, codebook))


def test_tie_takes_lower_codeword_and_nan_takes_zero(device):
    x = torch.tensor([0.5, float("nan"), float("inf"), float("-inf")], device=device)
    assert ops.assign(x, torch.tensor([0.0, 1.0], device=device)).tolist() == [0, 0, 1, 0]


def test_is_exactly_nearest_where_the_midpoint_is_no_float(device):
    """A midpoint rounded up would give the float just above it to the wrong codeword."""
    low = torch.tensor(1.0)
    high = torch.nextafter(torch.nextafter(torch.nextafter(low, torch.tensor(2.0)), torch.tensor(2.0)), low + 1)
    codebook = torch.stack([low, high]).to(device)  # three steps apart: the midpoint lies between two floats
    x = torch.stack([torch.nextafter(low, high), torch.nextafter(high, low)]).to(device)
    assert ops.assign(x, codebook).tolist() == [0, 1]


def test_is_exactly_nearest_where_the_codewords_are_far_apart(device):
    """-2^-60 + 1 rounds to 1 in double: with a midpoint of 0.5, x = 0.5 would go to the lower codeword, the farther."""
    codebook = torch.tensor([-(2.0**-60), 1.0], device=device)
    x = torch.tensor([0.5, 0.5 - 2**-25], device=device)
    assert ops.assign(x, codebook).tolist() == [1, 0]
    assert ops.assign(x, -codebook.flip(0)).tolist() == [1, 1]
    assert ops.assign(-x, -codebook.flip(0)).tolist() == [0, 1]


def test_half_precision_shape_and_strides(isa, rng):
    x = torch.randn(6, 10, generator=rng)
    codebook = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(ops.assign(x.t(), codebook), ops.assign(x, codebook).t())
    assert torch.equal(ops.assign(x.bfloat16(), codebook), ops.assign(x.bfloat16().float(), codebook))
    assert ops.assign(x[0, 0], codebook).shape == ()


def test_kernel_midpoints_are_those_of_torch(rng):
    """Close, far apart, equal, tiny and huge codewords."""
    scale = 10.0 ** torch.randint(-44, 38, (256,), generator=rng)
    wild = (torch.randn(256, generator=rng) * scale).clamp(-3e38, 3e38)
    near = 1 + torch.arange(256.0) * 2.0**-23
    for codebook in (wild.sort().values, near, near[:1], torch.zeros(3), torch.tensor([-(2.0**-60), 1.0])):
        mids = torch.empty_like(codebook)
        _native.call("midpoints", codebook, codebook.numel(), mids)
        assert torch.equal(mids[:-1], midpoints(codebook))


def test_native_call_refuses_tensors_of_two_devices():
    here, there = torch.ones(2), torch.ones(2, device="meta")
    for args in ((here, there), (there, here), ([here, there],), (here, [there])):
        with pytest.raises(ValueError, match="one device"):
            _native.call("assign", *args)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 31, 1000])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 16, 17, 256])
def test_decode(isa, rng, n, k):
    codes = torch.randint(0, k, (n,), generator=rng, dtype=torch.uint8)
    codebook = torch.randn(k, generator=rng)
    assert torch.equal(ops.decode(codes, codebook), codebook[codes.long()])


def test_writes_into_out(device, rng):
    x, codebook = torch.randn(5, 7, generator=rng).to(device), torch.tensor([-1.0, 0.0, 1.0], device=device)
    out = torch.full((5, 7), 9, dtype=torch.uint8, device=device)
    assert ops.assign(x, codebook, out=out) is out
    assert torch.equal(out, ops.assign_reference(x, codebook))
    values = torch.empty(5, 7, device=device)
    assert ops.decode(out, codebook, out=values) is values
    assert torch.equal(values, codebook[out.long()])


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ([0.0], TypeError),
        (torch.empty(4), ValueError),
        (torch.empty(3, dtype=torch.uint8), ValueError),
        (torch.empty(4, dtype=torch.uint8, device="meta"), ValueError),
        (torch.empty(8, dtype=torch.uint8)[::2], ValueError),
    ],
)
def test_bad_out_is_named(out, error):
    with pytest.raises(error, match="out must"):
        ops.assign(torch.ones(4), torch.ones(2), out=out)


def test_out_must_not_share_memory_with_the_input():
    x = torch.ones(4)
    with pytest.raises(ValueError, match="out must not share memory"):
        ops.assign(x, torch.ones(2), out=x.view(torch.uint8)[12:])
    codes = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="out must not share memory"):
        ops.decode(codes[:4], torch.ones(2), out=codes.view(torch.float32))


@pytest.mark.parametrize(
    ("x", "codebook", "error", "named"),
    [
        ([1.0], torch.ones(2), TypeError, "x"),
        (torch.ones(3, dtype=torch.int32), torch.ones(2), TypeError, "x"),
        (torch.ones(3).double(), torch.ones(2), TypeError, "x"),
        (torch.ones(3), torch.ones(0), ValueError, "codebook"),
        (torch.ones(3), torch.arange(257.0), ValueError, "codebook"),
        (torch.ones(3), torch.ones(2, 2), ValueError, "codebook"),
        (torch.ones(3), torch.tensor([1.0, 0.0]), ValueError, "codebook"),
        (torch.ones(3), torch.tensor([0.0, float("nan")]), ValueError, "codebook"),
        (torch.ones(3), torch.ones(2, device="meta"), ValueError, "codebook"),
        (torch.ones(3).to_sparse(), torch.ones(2), TypeError, "x"),
    ],
)
def test_bad_arguments_are_named(x, codebook, error, named):
    with pytest.raises(error, match=named):
        ops.assign(x, codebook)
