"""The bound on the excess that ``method="optimal"`` reports, against the global optimum."""

import math
import pickle

import numpy
import pytest
import torch

from lc_ext import ops


def optimum64(x, k, weights=None):
    """Distortion of the optimal partition: dynamic programming over all values in float64, each row by halves."""
    v, order = x.double().flatten().sort()
    h = torch.ones_like(v) if weights is None else weights.double().flatten()[order]
    v = v - v[v.numel() // 2]
    zero = v.new_zeros(1)
    w, s, q = (torch.cat([zero, t.cumsum(0)]).numpy() for t in (h, h * v, h * v * v))
    n = len(w) - 1

    def cost(i, j):  # of a cell of the values i to j - 1
        return q[j] - q[i] - (s[j] - s[i]) ** 2 / numpy.maximum(w[j] - w[i], 1e-300)

    best = cost(0, numpy.arange(n + 1))
    for _ in range(k - 1):
        row = best.copy()
        todo = [(1, n, 0, n)]
        while todo:  # the best split rises with j
            first, last, low, high = todo.pop()
            if first > last:
                continue
            j = (first + last) // 2
            i = numpy.arange(low, min(high, j) + 1)
            total = best[i] + cost(i, j)
            at = int(total.argmin())
            row[j] = total[at]
            todo += [(first, j - 1, low, int(i[at])), (j + 1, last, int(i[at]), high)]
        best = row
    return float(best[n])


@pytest.mark.parametrize("name", ["gaussian", "laplacian", "cauchy", "bimodal", "rounded"])
@pytest.mark.parametrize("n", [300, 5_000, 20_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bound_holds(rng, name, n, weighted):
    normal, uniform = torch.randn(n, generator=rng), torch.rand(n, generator=rng)
    x = {
        "gaussian": normal,
        "laplacian": normal.sign() * uniform.log() + 3,
        "cauchy": (3.14159 * (uniform - 0.5)).tan(),
        "bimodal": 0.1 * normal + (uniform - 0.5).sign(),
        "rounded": normal.bfloat16().float(),
    }[name]
    h = torch.rand(n, generator=rng) + 0.1 if weighted else None
    for k in (2, 5, 16):
        result = ops.kmeans1d(x, k, weights=h, method="optimal")
        optimum = optimum64(x, k, h)
        assert result.excess_bound >= 0
        assert result.distortion <= optimum * (1 + result.excess_bound) * (1 + 1e-9)
        if n <= 4096 or name == "rounded":
            assert result.excess_bound < 1e-6


def test_the_bound_is_of_use(rng):
    x = torch.randn(500_000, generator=rng)
    for k, most in ((2, 1e-4), (16, 1e-3)):
        assert ops.kmeans1d(x, k, method="optimal").excess_bound < most


def test_a_poor_result_has_a_large_bound(rng):
    """A warm start that may not move: the bound is on what is returned, not on what could be."""
    x = torch.randn(3_000, generator=rng)
    pinned = torch.tensor([-1.0, 0.5, 3.0])
    result = ops.kmeans1d(x, 3, pinned=pinned, method="optimal")
    excess = result.distortion / optimum64(x, 3) - 1
    assert excess > 0.05 and result.excess_bound == pytest.approx(excess, rel=1e-6)


def test_shapes_of_the_bound(rng):
    x = torch.randn(4, 200, generator=rng)
    single, listed = ops.kmeans1d(x, 3, method="optimal"), ops.kmeans1d(list(x), 3, method="optimal")
    ragged = ops.kmeans1d(x, 3, method="optimal", offsets=torch.arange(0, 801, 200))
    joint = ops.kmeans1d(list(x), 3, method="optimal", joint=True)
    assert isinstance(single.excess_bound, float) and len(joint.excess_bound) == 1
    assert ragged.excess_bound.tolist() == listed.excess_bound and len(listed.excess_bound) == 4
    assert len(single) == 4
    assert pickle.loads(pickle.dumps(single)).excess_bound == single.excess_bound
    assert ops.kmeans1d(x, 3).excess_bound == math.inf
    assert ops.kmeans1d(torch.ones(5), 3, method="optimal").excess_bound == 0
