"""conv_as_matrix and its company: two convolutions in sequence are the one with the projected kernel."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from lc_ext import ops

sides = st.integers(1, 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(sides, sides, sides, sides),
    scheme=st.sampled_from([1, 2]),
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    rank=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_two_convolutions_equal_the_one_with_the_projected_kernel(shape, scheme, stride, padding, dilation, rank, seed):
    rng = torch.Generator().manual_seed(seed)
    n, m, d1, d2 = shape
    weight = torch.randn(shape, generator=rng, dtype=torch.float64)
    x = torch.randn(2, m, d1 * dilation[0] + 3, d2 * dilation[1] + 4, generator=rng, dtype=torch.float64)
    bias = torch.randn(n, generator=rng, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(ops.conv_as_matrix(weight, scheme), full_matrices=False)
    left, right = (u * s)[:, :rank], vh[:rank]
    projected = ops.matrix_as_conv(left @ right, shape, scheme)
    first, second = ops.conv_factors(left, right, shape, scheme)
    one, two = ops.conv_options(scheme, stride=stride, padding=padding, dilation=dilation)
    want = conv2d(x, projected, bias, stride=stride, padding=padding, dilation=dilation)
    middle = conv2d(x, first, **one)
    got = conv2d(middle, second, bias, **two)
    torch.testing.assert_close(got, want)
    if rank >= len(s):
        torch.testing.assert_close(projected, weight)
    macs = ops.conv_macs(shape, scheme, x.shape[2:], stride=stride, padding=padding, dilation=dilation)
    assert macs.dense == weight.numel() * want[0, 0].numel()
    used = first.numel() * middle[0, 0].numel() + second.numel() * got[0, 0].numel()
    assert macs.per_rank * left.shape[1] == used


@pytest.mark.parametrize("scheme", [1, 2])
def test_matrix_and_kernel_are_each_others_inverse(rng, scheme):
    weight = torch.randn(3, 4, 2, 5, generator=rng)
    matrix = ops.conv_as_matrix(weight, scheme)
    assert matrix.shape == ((3, 40) if scheme == 1 else (6, 20))
    assert torch.equal(ops.matrix_as_conv(matrix, weight.shape, scheme), weight)
    if scheme == 2:
        for a, b, i, j in itertools.product(range(3), range(4), range(2), range(5)):
            assert matrix[a * 2 + i, b * 5 + j] == weight[a, b, i, j]


W = torch.ones(3, 4, 2, 5)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: ops.conv_as_matrix(W[0], 1), ValueError, "shape"),
        (lambda: ops.conv_as_matrix(W, 3), ValueError, "scheme"),
        (lambda: ops.conv_as_matrix(W, "1"), TypeError, "scheme"),
        (lambda: ops.conv_as_matrix([1.0], 1), TypeError, "weight"),
        (lambda: ops.matrix_as_conv(torch.ones(3, 41), W.shape, 1), ValueError, "matrix"),
        (lambda: ops.conv_factors(torch.ones(4, 2), torch.ones(2, 40), W.shape, 1), ValueError, "left"),
        (lambda: ops.conv_factors(torch.ones(6, 2), torch.ones(3, 20), W.shape, 2), ValueError, "right"),
        (lambda: ops.conv_options(1, stride=0), ValueError, "stride"),
        (lambda: ops.conv_options(2, padding=(1, 2, 3)), ValueError, "padding"),
        (lambda: ops.conv_options(2, dilation="11"), ValueError, "dilation"),
        (lambda: ops.conv_macs(W.shape, 1, (1, 9)), ValueError, "size"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()
