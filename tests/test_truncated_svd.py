"""truncated_svd: the error of the best approximation, cold and warm."""

import pytest
import torch

from lc_ext import ops


def error(w, r):
    return float((w.double() - (r.u.double() * r.s.double()) @ r.vh.double()).square().sum())


def power_law(m, n, rng, decay=1.0):
    u, _ = torch.linalg.qr(torch.randn(m, min(m, n), generator=rng))
    v, _ = torch.linalg.qr(torch.randn(n, min(m, n), generator=rng))
    return (u * torch.arange(1, min(m, n) + 1).pow(-decay)) @ v.t()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (10, 100), (100, 10), (60, 60), (300, 200)])
@pytest.mark.parametrize("kind", ["gaussian", "power law", "exact rank 1", "zero"])
def test_best_approximation(rng, shape, kind):
    m, n = shape
    w = {
        "gaussian": lambda: torch.randn(m, n, generator=rng),
        "power law": lambda: power_law(m, n, rng),
        "exact rank 1": lambda: torch.randn(m, 1, generator=rng) @ torch.randn(1, n, generator=rng),
        "zero": lambda: torch.zeros(m, n),
    }[kind]()
    for rank in sorted({1, (min(m, n) + 1) // 2, min(m, n)}):
        got, want = ops.truncated_svd(w, rank), ops.truncated_svd_reference(w, rank)
        eps = 2.0**-23 * float(w.double().square().sum())
        assert error(w, got) <= error(w, want) * (1 + 1e-5) + eps
        torch.testing.assert_close(got.s, want.s, rtol=1e-4, atol=1e-5 * float(want.s[0]) + 1e-12)


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_warm_start_follows_a_drifting_matrix(rng, decay):
    w = power_law(200, 300, rng, decay)
    warm = ops.truncated_svd(w, 10).vh
    for _ in range(3):
        w = w + 0.02 * w.std() * torch.randn(w.shape, generator=rng)
        got = ops.truncated_svd(w, 10, warm=warm)
        warm = got.vh
        assert error(w, got) <= error(w, ops.truncated_svd_reference(w, 10)) * (1 + 1e-4)
        torch.testing.assert_close(got.vh @ got.vh.t(), torch.eye(10), rtol=0, atol=1e-5)


def test_useless_warm_start_costs_no_accuracy(rng):
    w = power_law(50, 80, rng)
    got = ops.truncated_svd(w, 5, warm=torch.zeros(5, 80))
    assert error(w, got) <= error(w, ops.truncated_svd_reference(w, 5)) * (1 + 1e-4)


@pytest.mark.parametrize(
    ("w", "rank", "warm", "error", "named"),
    [
        (torch.ones(3), 1, None, ValueError, "w"),
        (torch.ones(3, 4), 0, None, ValueError, "rank"),
        (torch.ones(3, 4), 4, None, ValueError, "rank"),
        (torch.ones(3, 4).double(), 1, None, TypeError, "w"),
        (torch.full((3, 4), float("nan")), 1, None, ValueError, "w"),
        (torch.ones(3, 4), 1, torch.ones(1, 3), ValueError, "warm"),
    ],
)
def test_bad_arguments_are_named(w, rank, warm, error, named):
    with pytest.raises(error, match=named):
        ops.truncated_svd(w, rank, warm=warm)
