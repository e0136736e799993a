"""Compressions: each fit is a projection, counted honestly."""

import math

import pytest
import torch

import lc
from lc.models import lenet300
from lc.sizes import gap_coded_bits
from lc_ext import ops

SHAPES = [(20, 30), (7, 5)]


def tensors(rng):
    return [torch.randn(s, generator=rng) for s in SHAPES]


def error(v, delta):
    return sum(float((a - b).square().sum()) for a, b in zip(v, delta, strict=True))


def test_quantize_shares_one_codebook_over_the_group(rng):
    v, q = tensors(rng), lc.Quantize(3)
    delta = q.fit(v)
    assert torch.cat([d.flatten() for d in delta]).unique().numel() == 3
    assert [d.shape for d in delta] == [t.shape for t in v]
    assert all(torch.equal(a, b) for a, b in zip(delta, q.decompress(), strict=True))
    assert q.bits() == 635 * 2 + 3 * 32 and q.weight_bits() == 635 * 2


def test_quantize_warm_start_never_gets_worse(rng):
    v, q = tensors(rng), lc.Quantize(4)
    first = error(v, q.fit(v))
    assert error(v, q.fit(v)) <= first * (1 + 1e-12)
    assert not hasattr(q.fresh(), "codebook_") and hasattr(q, "codebook_")


@pytest.mark.parametrize("keep", [0, 50, 0.1, 1.0])
def test_prune_keeps_the_largest_of_the_whole_group(rng, keep):
    v, p = tensors(rng), lc.Prune(keep)
    delta = torch.cat([d.flatten() for d in p.fit(v)])
    kappa = round(keep * 635) if isinstance(keep, float) else keep
    assert delta.count_nonzero() == kappa
    flat = torch.cat([t.flatten() for t in v])
    smallest = flat[delta != 0].abs().min() if kappa else math.inf
    assert bool((flat[delta == 0].abs() <= smallest).all())
    assert p.weight_bits() == 32 * kappa


def test_low_rank_is_the_truncated_svd_also_of_convolutions(rng):
    for shape in [(20, 30), (8, 3, 3, 3)]:
        v, low = [torch.randn(shape, generator=rng)], lc.LowRank(2)
        matrix = v[0].reshape(shape[0], -1)
        s = torch.linalg.svdvals(matrix.double())
        assert error(v, low.fit(v)) == pytest.approx(float(s[2:].square().sum()), rel=1e-5)
        assert low.bits() == 32 * 2 * sum(matrix.shape)
    with pytest.raises(ValueError, match="rank must be below 20"):
        lc.LowRank(20).fit([torch.randn(20, 30)])
    with pytest.raises(ValueError, match="joint"):
        lc.LowRank(2).fit(tensors(rng))


def test_sum_of_codebook_and_corrections_is_no_worse_than_either_or_one_after_the_other(rng):
    v = [torch.randn(40, 50, generator=rng) ** 3]
    both = lc.Quantize(2) + lc.Prune(0.02)
    got = error(v, both.fit(v))
    q = lc.Quantize(2).fit(v)
    s = lc.Prune(0.02).fit([v[0] - q[0]])
    assert got <= error(v, [q[0] + s[0]]) * (1 + 1e-6)
    assert got < error(v, q)
    assert both.bits() == sum(p.bits() for p in both.parts)
    assert all(torch.equal(a, b) for a, b in zip(both.fit(v), both.decompress(), strict=True))


def test_trimmed_kmeans_recovers_planted_outliers(rng):
    """A two-valued matrix with a few large spikes is represented exactly by 2 codewords and as many corrections."""
    clean = torch.where(torch.rand(60, 50, generator=rng) < 0.5, -1.0, 1.0)
    v = clean.clone()
    v.view(-1)[::100] += 50
    both = lc.Quantize(2) + lc.Prune(30)
    assert error([v], both.fit([v])) < 1e-6
    assert sorted(both.parts[0].codebook_.tolist()) == pytest.approx([-1, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: lc.LowRank(3) + lc.Prune(0.05),
        lambda: lc.LowRank(3) + lc.Quantize(4),
        lambda: lc.Quantize(4) + lc.Prune(0.02) + lc.LowRank(2),
    ],
)
def test_sums_lower_the_error_of_each_part_and_keep_lowering_it_warm(rng, make):
    v = [torch.randn(30, 40, generator=rng) + 3 * torch.randn(30, 2, generator=rng) @ torch.randn(2, 40, generator=rng)]
    total = make()
    first = error(v, total.fit(v))
    assert first <= min(error(v, part.fresh().fit(v)) for part in total.parts)
    assert error(v, total.fit(v)) <= first * (1 + 1e-5)


def test_plus_is_flat_and_fresh_forgets_the_parts(rng):
    total = lc.Quantize(2) + lc.Prune(1) + lc.LowRank(1)
    assert [type(p) for p in total.parts] == [lc.Quantize, lc.Prune, lc.LowRank]
    total.fit([torch.randn(5, 6, generator=rng)])
    assert not hasattr(total.fresh().parts[0], "codebook_")
    with pytest.raises(TypeError):
        lc.Quantize(2) + 3


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: lc.Quantize(1), ValueError, "k"),
        (lambda: lc.Quantize(257), ValueError, "k"),
        (lambda: lc.Prune(-1), ValueError, "keep"),
        (lambda: lc.Prune(1.5), ValueError, "keep"),
        (lambda: lc.Prune(True), TypeError, "keep"),
        (lambda: lc.LowRank(0), ValueError, "rank"),
        (lambda: lc.Sum([lc.Quantize(2)]), ValueError, "parts"),
        (lambda: lc.Prune(8).fit([torch.ones(7)]), ValueError, "keep"),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_gap_code_by_hand():
    """Entries 0, 3 and 40 of 41: gaps 0, 2, 36. Width 5: 1 + 1 + 2 symbols; width 6: 3 symbols."""
    mask = torch.zeros(41, dtype=torch.bool)
    mask[[0, 3, 40]] = True
    assert gap_coded_bits(mask) == 18
    assert gap_coded_bits(torch.zeros(5, dtype=torch.bool)) == 0


@pytest.mark.parametrize(("part", "published", "entropy"), [(0.05, 6.27, 5.73), (0.02, 7.62, 7.07), (0.01, 8.67, 8.08)])
def test_gap_code_is_between_the_entropy_and_the_older_toolkits_code(rng, part, published, entropy):
    """Bits for each nonzero, at random positions."""
    mask = torch.rand(2_000_000, generator=rng) < part
    assert entropy < gap_coded_bits(mask) / int(mask.sum()) <= published


@pytest.mark.parametrize(("k", "ratio"), [(2, 30.5), (4, 15.6), (16, 7.9)])
def test_published_ratios_of_lenet300(k, ratio):
    """One codebook per layer (Carreira-Perpinan and Idelbayev, Part II)."""
    model = lenet300()
    algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(k)), mu=[1.0])
    next(algorithm.steps())
    assert algorithm.size().ratio == pytest.approx(ratio, abs=0.06)


def test_rank_selection_warm_equals_cold(rng):
    v = torch.randn(60, 20, generator=rng) @ torch.randn(20, 90, generator=rng) + 0.1 * torch.randn(
        60, 90, generator=rng
    )
    warm = lc.RankSelection(1.0)
    for step, mu in enumerate([0.0, 0.05, 0.1, 0.1, 0.2, 20.0, 400.0, 1e4]):
        moved = v + 0.01 * step * torch.randn(60, 90, generator=rng)
        got = warm.fit([moved], mu=mu)[0]
        if mu:
            rank, objective, dense = ops.rank_select_reference(moved, 1.0 / mu)
            cost = 60 * 90 if dense else warm.summary()["rank"] * 150
            assert warm.summary()["rank"] == rank
            assert cost / mu + float((moved - got).square().sum()) / 2 <= objective * (1 + 1e-3)
