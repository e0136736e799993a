"""assign: nearest codeword, on every device."""

import pytest
import torch

from lc_ext import ops

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
