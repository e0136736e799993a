"""jacobi_svd against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_ext import _native, ops


def check(a, rank):
    u, s, vh = ops.jacobi_svd(a, rank)
    w = a.double()
    values = torch.linalg.svdvals(w)
    count, m, n = a.shape
    assert u.shape == (count, m, rank) and s.shape == (count, rank) and vh.shape == (count, rank, n)
    scale = values[:, :1] + 1e-300
    torch.testing.assert_close(s.double() / scale, values[:, :rank] / scale, rtol=0, atol=3e-5)
    assert (s[:, 1:] <= s[:, :-1]).all() and (s >= 0).all()
    for factor in (u.mT, vh):
        identity = torch.eye(rank).expand(count, rank, rank)
        torch.testing.assert_close(factor @ factor.mT, identity, rtol=0, atol=1e-4)
    error = (w - u.double() * s.double()[:, None] @ vh.double()).square().sum((1, 2))
    best = values[:, rank:].square().sum(1)
    assert (error <= best * (1 + 1e-6) + 1e-8 * values.square().sum(1) + 1e-80).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 3), (9, 16), (16, 9), (17, 40), (48, 50), (5, 700)])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_shapes_and_counts_around_the_lanes(rng, isa, shape, count):
    a = torch.randn(count, *shape, generator=rng)
    for rank in sorted({1, (min(shape) + 1) // 2, min(shape)}):
        check(a, rank)


def test_hard_matrices(rng, isa):
    m, n = 12, 20
    low = torch.randn(9, m, 3, generator=rng) @ torch.randn(9, 3, n, generator=rng)
    check(low, 3)
    check(low, 8)
    check(torch.zeros(3, m, n), 4)
    check(torch.eye(m, n).expand(20, m, n).contiguous(), 5)
    check(torch.ones(5, m, n), 2)
    graded = torch.randn(20, m, n, generator=rng) * 10.0 ** -torch.arange(m)[:, None]
    check(graded, m)
    check(graded.mT.contiguous(), 7)
    mixed = torch.cat([low, torch.zeros(2, m, n), torch.randn(7, m, n, generator=rng)])
    check(mixed, 4)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-15, 1e15, 1e37])
def test_scales(rng, scale):
    a = torch.randn(20, 6, 8, generator=rng)
    s = ops.jacobi_svd(a * scale, 3)[1]
    torch.testing.assert_close(s / scale, ops.jacobi_svd(a, 3)[1], rtol=1e-2 if scale < 1e-38 else 1e-5, atol=0)
    mixed = a * torch.where(torch.arange(20) % 2 == 0, scale, 1.0)[:, None, None]
    torch.testing.assert_close(ops.jacobi_svd(mixed, 3)[1][1::2], ops.jacobi_svd(a, 3)[1][1::2])


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 20), n=st.integers(1, 20), count=st.integers(1, 20), seed=st.integers(0, 999))
def test_any_shape(m, n, count, seed):
    a = torch.randn(count, m, n, generator=torch.Generator().manual_seed(seed))
    check(a, 1 + seed % min(m, n))


def test_types_and_layouts(rng):
    a = torch.randn(17, 6, 8, generator=rng)
    for other in (a.half(), a.bfloat16(), a.mT.contiguous().mT, torch.stack([a, a], 3)[..., 0]):
        check(other.float(), 3)
        assert all(map(torch.equal, ops.jacobi_svd(other, 3), ops.jacobi_svd(other.float(), 3)))


def test_the_same_on_any_isa_and_number_of_threads(rng, isa):
    a = torch.randn(70, 9, 30, generator=rng)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got = ops.jacobi_svd(a, 4)
    finally:
        torch.set_num_threads(before)
    _native.set_isa("scalar")  # until the fixture restores it
    assert all(map(torch.equal, got, ops.jacobi_svd(a, 4)))


@pytest.mark.parametrize(
    ("a", "rank", "error"),
    [
        (torch.ones(3, 4), 1, ValueError),
        (torch.ones(0, 3, 4), 1, ValueError),
        (torch.ones(2, 3, 4), 4, ValueError),
        (torch.ones(2, 3, 4), 0, ValueError),
        (torch.ones(2, 3, 4), 1.5, TypeError),
        (torch.ones(2, 3, 4).double(), 1, TypeError),
        (torch.full((2, 3, 4), float("nan")), 1, ValueError),
        (torch.full((2, 3, 4), float("inf")), 1, ValueError),
    ],
)
def test_bad_arguments(a, rank, error):
    with pytest.raises(error):
        ops.jacobi_svd(a, rank)
