"""group_prune and group_lasso against brute force and their formulas."""

import itertools

import pytest
import torch

from lc_ext import ops


def squares(x, h, groups):
    v = (x.double() ** 2) if h is None else h.double() * x.double() ** 2
    if groups in ("row", "filter"):
        return v.flatten(1).sum(1)
    if groups in ("column", "channel"):
        return v.transpose(0, 1).flatten(1).sum(1)
    a, b = groups
    v = v.flatten(1)
    return torch.stack([torch.stack([q.sum() for q in p.split(b, 1)]) for p in v.split(a, 0)])


@pytest.mark.parametrize("groups", ["row", "filter", "column", "channel", (2, 3), (1, 1), (4, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_keeps_the_largest_norms(rng, groups, weighted):
    x = torch.randn(8, 6, 3, generator=rng)
    h = torch.rand(x.shape, generator=rng) if weighted else None
    norms = squares(x, h, groups)
    for keep in (0, 1, 0.5, norms.numel()):
        got = ops.group_prune(x, keep, groups=groups, weights=h)
        kappa = round(keep * norms.numel()) if isinstance(keep, float) else keep
        assert got.group_mask.shape == norms.shape and int(got.group_mask.sum()) == kappa
        assert torch.equal(got.values, torch.where(got.mask, x, 0))
        assert torch.equal(squares(got.mask.float(), None, groups) > 0, got.group_mask)
        if 0 < kappa < norms.numel():
            assert norms[got.group_mask].min() >= norms[~got.group_mask].max()
            torch.testing.assert_close(got.threshold, norms[got.group_mask].min())


def test_joint_over_a_list_and_ties(rng):
    xs = [torch.ones(4, 5), torch.ones(3, 5) * 2, torch.ones(2, 5)]
    got = ops.group_prune(xs, 5)
    assert [g.tolist() for g in got.group_mask] == [[True, True, False, False], [True] * 3, [False, False]]
    assert got.threshold == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_penalty_minimises_its_objective(rng, weighted):
    """Against every choice of filters."""
    x = torch.randn(6, 2, 3, generator=rng)
    h = torch.rand(x.shape, generator=rng) if weighted else None
    costs, alpha = torch.rand(6, generator=rng) + 0.1, 1.3
    norms = squares(x, h, "filter")
    objective = {
        kept: alpha * sum(float(costs[g]) for g in kept) + 0.5 * sum(float(norms[g]) for g in set(range(6)) - set(kept))
        for size in range(7)
        for kept in itertools.combinations(range(6), size)
    }
    got = ops.group_prune(x, penalty=alpha, groups="filter", costs=costs, weights=h)
    assert tuple(got.group_mask.nonzero().reshape(-1).tolist()) == min(objective, key=objective.get)
    assert got.threshold == 2 * alpha


def test_budget(rng):
    x = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    got = ops.group_prune(x, 5.0, costs=torch.tensor([4.0, 3.0, 1.0, 1.0]))  # ratios 4, 3, 4, 1
    assert got.group_mask.tolist() == [True, False, True, False]
    got = ops.group_prune(x, 6, costs=torch.tensor([4.0, 3.0, 1.0, 1.0]))  # row 1 does not fit, row 3 does
    assert got.group_mask.tolist() == [True, False, True, True]
    got = ops.group_prune([x, x], 3.0, costs=[1.0, torch.full((4,), 2.0)])
    assert [g.tolist() for g in got.group_mask] == [[True, True, True, False], [False] * 4]
    assert not ops.group_prune(x, 0.0, costs=1.0).group_mask.any()


def test_group_lasso(rng):
    x, costs = torch.randn(5, 4, 3, generator=rng), torch.rand(4, generator=rng) + 0.5
    got = ops.group_lasso(x, 1.5, groups="channel", costs=costs)
    norms = x.transpose(0, 1).flatten(1).norm(dim=1)
    want = x * (1 - 1.5 * costs / norms).clamp(min=0).view(1, 4, 1)
    torch.testing.assert_close(got, want)
    # Stationary where it is not zero: alpha c theta / ||theta|| = x - theta.
    left = got.transpose(0, 1).flatten(1)
    for g, c, v in zip(left, costs, x.transpose(0, 1).flatten(1), strict=True):
        if g.any():
            torch.testing.assert_close(1.5 * c * g / g.norm(), v - g)
    assert not ops.group_lasso([torch.zeros(2, 3)], 1.0)[0].any()


def test_half_precision(rng):
    x = torch.randn(8, 4, generator=rng).half()
    got = ops.group_prune(x.t(), 2)
    assert got.values.dtype == torch.float16 and torch.equal(
        got.values.t(), ops.group_prune(x, 2, groups="column").values
    )
    assert ops.group_lasso(x, 0.1).dtype == torch.float16


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda x: ops.group_prune(x), ValueError, "keep or penalty"),
        (lambda x: ops.group_prune(x, 1, penalty=1.0), ValueError, "keep or penalty"),
        (lambda x: ops.group_prune(x, 7), ValueError, "keep"),
        (lambda x: ops.group_prune(x, 1, groups="rows"), ValueError, "groups"),
        (lambda x: ops.group_prune(x, 1, groups=(4, 2)), ValueError, "groups must divide"),
        (lambda x: ops.group_prune(x, 1, groups=(0, 2)), ValueError, "groups"),
        (lambda x: ops.group_prune(x[0], 1), ValueError, "two dimensions"),
        (lambda x: ops.group_prune(x, 1, costs=torch.ones(2)), ValueError, "costs"),
        (lambda x: ops.group_prune(x, 1, costs=0.0), ValueError, "costs must be positive"),
        (lambda x: ops.group_prune([x], 1, costs=[1.0, 1.0]), ValueError, "costs"),
        (lambda x: ops.group_prune(x, -1.0, costs=1.0), ValueError, "keep"),
        (lambda x: ops.group_prune(x, penalty=-1.0), ValueError, "penalty"),
        (lambda x: ops.group_prune(x, 1, weights=-x), ValueError, "weights must not be negative"),
        (lambda x: ops.group_prune(x / 0, 1), ValueError, "x contains NaN"),
        (lambda x: ops.group_lasso(x, -1.0), ValueError, "alpha_over_mu"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call(torch.ones(6, 4))
