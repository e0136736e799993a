"""Sums with a low-rank part: never above their parts, nor above a warm start; planted sums are recovered."""

import pytest
import torch

from lc_ext import ops


def planted(rng, m=60, n=80, noise=0.0):
    low = torch.randn(m, 3, generator=rng) @ torch.randn(3, n, generator=rng)
    return low, noise * torch.randn(m, n, generator=rng)


def error(w, got):
    return float((w - got.decompress()).double().square().sum())


def solve(name, w, **options):
    if name == "sparse":
        return ops.low_rank_plus_sparse(w, 3, 40, **options)
    if name == "codebook":
        return ops.low_rank_plus_codebook(w, 3, 4, **options)
    if name == "fixed":
        return ops.low_rank_plus_codebook(w, 3, torch.tensor([-0.3, 0.0, 0.3]), **options)
    if name == "fixed and sparse":
        return ops.low_rank_plus_codebook(w, 3, torch.tensor([-0.3, 0.0, 0.3]), 40, **options)
    return ops.low_rank_plus_codebook(w, 3, 4, 40, **options)


NAMES = ["sparse", "codebook", "fixed", "fixed and sparse", "all three"]


@pytest.mark.parametrize("name", NAMES)
def test_lower_than_low_rank_alone_and_never_above_a_warm_start(rng, name):
    low, noise = planted(rng, noise=0.3)
    w = low + noise
    alone = ops.truncated_svd(w, 3)
    left = float((w - alone.u @ alone.s.diag() @ alone.vh).double().square().sum())
    got = solve(name, w)
    assert got.distortion == pytest.approx(error(w, got), rel=1e-5)
    assert got.distortion < left
    for step in range(3):
        w = w + 0.01 * torch.randn(w.shape, generator=rng)
        before = error(w, got)
        got = solve(name, w, init=got, max_iter=1 + step)
        assert got.distortion <= before * (1 + 1e-9)
        assert got.distortion == pytest.approx(error(w, got), rel=1e-5)


def test_planted_spikes_are_recovered(rng):
    low, _ = planted(rng)
    spikes = torch.zeros(60, 80)
    spikes.view(-1)[torch.randperm(4800, generator=rng)[:40]] = 30.0
    got = ops.low_rank_plus_sparse(low + spikes, 3, 40, tol=0.0, max_iter=100)
    assert torch.equal(got.sparse != 0, spikes != 0)
    assert got.distortion < 1e-4 * float(low.square().sum())


def test_planted_codebook_is_recovered(rng):
    low, _ = planted(rng)
    signs = torch.where(torch.rand(60, 80, generator=rng) < 0.5, -0.5, 0.5)
    got = ops.low_rank_plus_codebook(low + signs, 3, 2)
    assert float(((got.codes == 1) == (signs > 0)).float().mean()) > 0.95
    assert got.codebook is not None and got.sparse is None and got.codes.shape == (60, 80)


def test_parts_are_what_they_claim(rng):
    w = torch.randn(30, 20, generator=rng)
    got = solve("all three", w)
    assert torch.linalg.matrix_rank(got.u @ got.v) == 3
    assert int(got.sparse.count_nonzero()) <= 40
    assert got.codebook.shape == (4,) and got.codes.dtype == torch.uint8
    half = solve("sparse", w.to(torch.bfloat16))
    assert half.u.dtype == torch.float32
    assert torch.equal(solve("sparse", w.t()).u, solve("sparse", w.t().contiguous()).u)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda w: ops.low_rank_plus_sparse(w[0], 1, 1), ValueError, "w"),
        (lambda w: ops.low_rank_plus_sparse(w.double(), 1, 1), TypeError, "w"),
        (lambda w: ops.low_rank_plus_sparse(w / 0, 1, 1), ValueError, "w contains NaN"),
        (lambda w: ops.low_rank_plus_sparse(w, 5, 1), ValueError, "rank"),
        (lambda w: ops.low_rank_plus_sparse(w, 1, 21), ValueError, "kappa"),
        (lambda w: ops.low_rank_plus_sparse(w, 1, 1, tol=2.0), ValueError, "tol"),
        (lambda w: ops.low_rank_plus_sparse(w, 1, 1, max_iter=0), ValueError, "max_iter"),
        (lambda w: ops.low_rank_plus_sparse(w, 1, 1, init=w), TypeError, "init"),
        (lambda w: ops.low_rank_plus_sparse(w, 2, 1, init=ops.low_rank_plus_sparse(w, 1, 1)), ValueError, "init"),
        (lambda w: ops.low_rank_plus_codebook(w, 1, 0), ValueError, "codebook"),
        (lambda w: ops.low_rank_plus_codebook(w, 1, torch.tensor([1.0, 0.0])), ValueError, "codebook"),
        (lambda w: ops.low_rank_plus_codebook(w, 1, 2, -1), ValueError, "kappa"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call(torch.ones(4, 5))
