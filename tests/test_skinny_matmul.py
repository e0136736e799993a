"""skinny_matmul: against float64, on every instruction set, and the same for any number of threads."""

import pytest
import torch

from lc_ext import ops


def bound(a, x):
    """Rounding of a chain of k multiply-adds: k eps times the product of the magnitudes."""
    return 2.0**-24 * (a.shape[1] + 1) * (a.abs().double() @ x.abs().double()) + 1e-37


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (6, 129), (200, 40), (13, 1100), (1030, 130)])
@pytest.mark.parametrize("b", [1, 15, 16, 17, 32, 48, 100])
def test_matches_float64(isa, rng, shape, b, transpose):
    a = torch.randn(shape, generator=rng)
    x = torch.randn(shape[0] if transpose else shape[1], b, generator=rng)
    got = ops.skinny_matmul(a, x, transpose=transpose)
    left = a.t() if transpose else a
    assert got.shape == (left.shape[0], b) and got.is_contiguous()
    assert ((got.double() - left.double() @ x.double()).abs() <= bound(left, x)).all()
    torch.testing.assert_close(got, ops.skinny_matmul_reference(a, x, transpose=transpose), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transpose", [False, True])
def test_any_number_of_threads_gives_the_same_bits(isa, rng, transpose):
    a = torch.randn(700, 1300, generator=rng)
    x = torch.randn(700 if transpose else 1300, 32, generator=rng)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ops.skinny_matmul(a, x, transpose=transpose))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38, 1e-44])
def test_extreme_values(isa, value):
    a, x = torch.full((7, 5), value), torch.zeros(5, 16)
    x[0] = 1
    want = a @ x
    assert torch.equal(ops.skinny_matmul(a, x).nan_to_num(7.0), want.nan_to_num(7.0))
    assert torch.equal(ops.skinny_matmul(a.t(), x, transpose=True).nan_to_num(7.0), want.nan_to_num(7.0))


def test_other_layouts_types_and_empty_sides(rng):
    a, x = torch.randn(30, 20, generator=rng), torch.randn(20, 10, generator=rng)
    torch.testing.assert_close(ops.skinny_matmul(a.t().contiguous().t(), x[:, ::2]), a @ x[:, ::2])
    assert ops.skinny_matmul(a.half(), x.bfloat16()).dtype == torch.float32
    for m, n, b in ((0, 4, 3), (4, 0, 3), (4, 3, 0), (4, 0, 16)):
        assert torch.equal(ops.skinny_matmul(torch.ones(m, n), torch.ones(n, b)), torch.ones(m, n) @ torch.ones(n, b))


A = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("a", "x", "error", "named"),
    [
        (torch.ones(3), A, ValueError, "a"),
        (A.double(), A, TypeError, "a"),
        (A, torch.ones(3, 2), ValueError, "x"),
        (A, torch.ones(4), ValueError, "x"),
        (A, torch.ones(4, 2).int(), TypeError, "x"),
        ([1.0], A, TypeError, "a"),
    ],
)
def test_bad_arguments_are_named(a, x, error, named):
    with pytest.raises(error, match=named):
        ops.skinny_matmul(a, x)
