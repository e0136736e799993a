"""gram_product against float64, around the vectors and tiles of the kernel."""

import pytest
import torch

from lc_ext import ops


def check(a, v):
    p, x = ops.gram_product(a, v)
    want = v.double() @ a.double().t()
    assert p.dtype == x.dtype == torch.float32
    absolute = v.double().abs() @ a.double().abs().t()
    assert ((p.double() - want).abs() <= 1e-6 * absolute + 1e-30).all()
    assert ((x.double() - want @ a.double()).abs() <= 2e-6 * (absolute @ a.double().abs()) + 1e-30).all()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 23, 24, 31, 33, 64, 100, 301])
@pytest.mark.parametrize("m", [0, 1, 2, 5, 6, 7, 13, 131, 133, 270])
def test_sizes_around_vectors_tiles_and_chunks(rng, isa, m, n):
    for b in (0, 1, 2, 3, 4, 5, 11):
        check(torch.randn(m, n, generator=rng), torch.randn(b, n, generator=rng))


def test_many_rows_and_a_large_matrix(rng, isa):
    check(torch.randn(700, 1500, generator=rng), torch.randn(70, 1500, generator=rng))
    check(torch.randn(3000, 40, generator=rng), torch.randn(9, 40, generator=rng))


def test_types_layouts_and_scales(rng):
    a, v = torch.randn(50, 60, generator=rng), torch.randn(5, 60, generator=rng)
    for cast in (torch.Tensor.half, torch.Tensor.bfloat16):
        check(cast(a), cast(v))
    check(a.t().contiguous().t(), v.t().contiguous().t())
    check(torch.stack([a, a], 2)[:, :, 0], v)
    check(a * 1e-12, v)
    check(a * 1e12, v)


def test_the_same_for_any_number_of_threads(rng, isa):
    a, v = torch.randn(1000, 333, generator=rng), torch.randn(37, 333, generator=rng)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.gram_product(a, v))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize(
    ("a", "v", "error"),
    [
        (torch.ones(3), torch.ones(1, 3), ValueError),
        (torch.ones(3, 4), torch.ones(1, 3), ValueError),
        (torch.ones(3, 4), torch.ones(4), ValueError),
        (torch.ones(3, 4).double(), torch.ones(1, 4), TypeError),
        (torch.ones(3, 4), [1.0], TypeError),
    ],
)
def test_bad_arguments(a, v, error):
    with pytest.raises(error):
        ops.gram_product(a, v)
