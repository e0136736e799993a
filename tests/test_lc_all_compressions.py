"""What every compression promises: a projection that is stable, counted, saved, and at home in sums and in the loop."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem, step
from torch import nn

import lc
from lc_ext import ops

MATRIX = {
    "quantize per row": lambda: lc.Quantize(2, per="row"),
    "quantize per 8": lambda: lc.Quantize(4, per=8),
    "quantize optimal": lambda: lc.Quantize(4, method="optimal"),
    "quantize pinned": lambda: lc.Quantize(4, pinned=0.0),
    "binary": lambda: lc.Binary(),
    "binary per row": lambda: lc.Binary(per="row"),
    "binary unscaled": lambda: lc.Binary(scaled=False),
    "ternary": lambda: lc.Ternary(),
    "powers of two": lambda: lc.PowersOfTwo(4),
    "powers of two scaled": lambda: lc.PowersOfTwo(4, scaled=True, per=8),
    "int 3": lambda: lc.SymmetricInt(3),
    "nf4": lambda: lc.Levels(ops.codebooks.nf4(), per=8),
    "vector": lambda: lc.VectorQuantize(8, 4),
    "prune": lambda: lc.Prune(0.3),
    "l1 ball": lambda: lc.L1Ball(20.0),
    "l2 ball": lambda: lc.L2Ball(3.0),
    "l0 penalty": lambda: lc.L0Penalty(0.02),
    "l1 penalty": lambda: lc.L1Penalty(0.02),
    "l2 penalty": lambda: lc.L2Penalty(0.02),
    "2:4": lambda: lc.NMPrune(2, 4),
    "rows": lambda: lc.GroupPrune(0.5),
    "blocks": lambda: lc.GroupPrune(0.25, groups=(2, 4)),
    "low rank": lambda: lc.LowRank(2),
    "rank selection": lambda: lc.RankSelection(1e-3),
    "sparse codebook": lambda: lc.SparseCodebook(3, 0.25),
    "sum with rows": lambda: lc.Quantize(2, per="row") + lc.Prune(0.05),
    "sum of ternary and low rank": lambda: lc.Ternary() + lc.LowRank(1),
    "sum with 2:4": lambda: lc.LowRank(1) + lc.NMPrune(1, 4),
}
EXACT = {name for name in MATRIX if not name.startswith(("vector", "sum", "l1 p", "l2 p", "low rank", "rank"))}


def fit(compression, v, mu=5.0, **options):
    if compression.penalised:
        options["mu"] = mu
    return compression.fit(v, **options)


def distance(v, delta):
    return sum(float((a - b).square().sum()) for a, b in zip(v, delta, strict=True))


@pytest.fixture
def v(rng):
    return [torch.randn(8, 16, generator=rng)]


@pytest.mark.parametrize("name", list(MATRIX))
def test_fit_decompress_state_and_size(name, v):
    compression = MATRIX[name]()
    before = [t.clone() for t in v]
    delta = fit(compression, v)
    assert [d.shape for d in delta] == [t.shape for t in v] and [d.dtype for d in delta] == [torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(v, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(delta, compression.decompress(), strict=True))
    twin = compression.fresh()
    assert not twin.learned and compression.learned
    twin.load_state_dict(compression.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(twin.decompress(), delta, strict=True))
    assert twin.bits() == compression.bits() >= compression.weight_bits() > 0
    assert all(isinstance(value, (int, float)) for value in compression.summary().values())
    assert repr(compression) == repr(twin)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_a_projection_of_a_projection_is_itself(name, v):
    delta = fit(MATRIX[name](), v)
    again = fit(MATRIX[name](), delta)
    torch.testing.assert_close(again, delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(MATRIX))
def test_a_warm_start_never_gets_worse(name, v, rng):
    compression = MATRIX[name]()
    fit(compression, v)
    moved = [t + 0.05 * torch.randn(t.shape, generator=rng) for t in v]
    before = distance(moved, compression.decompress())
    after = distance(moved, fit(compression, moved))
    if not compression.penalised:
        assert after <= before * (1 + 1e-5)


@pytest.mark.parametrize("name", [n for n in MATRIX if MATRIX[n]().weighted])
def test_weights_of_one_change_nothing_and_others_lower_their_own_distance(name, v, rng):
    plain, ones = MATRIX[name](), MATRIX[name]()
    torch.testing.assert_close(
        fit(plain, v), fit(ones, v, weights=[torch.ones_like(t) for t in v]), rtol=1e-5, atol=1e-6
    )
    h = [torch.rand(t.shape, generator=rng) + 0.05 for t in v]
    weighted = fit(MATRIX[name](), v, weights=h)
    if not plain.penalised and name != "quantize pinned":  # where Lloyd finds one of many optima
        error = [
            sum(float((w * (a - b).square()).sum()) for w, a, b in zip(h, v, d, strict=True))
            for d in (weighted, plain.decompress())
        ]
        assert error[0] <= error[1] * (1 + 1e-5)


def test_codebooks_of_rows_and_groups_are_their_own(v):
    for per, size in (("row", 16), (8, 8)):
        compression = lc.Quantize(2, per=per)
        delta = compression.fit(v)[0]
        runs = v[0].reshape(-1, size)
        for run, got in zip(runs, delta.reshape(-1, size), strict=True):
            torch.testing.assert_close(got, lc.Quantize(2).fit([run])[0], rtol=1e-5, atol=1e-6)
        assert compression.bits() == 128 + 32 * 2 * len(runs)


def test_groups_go_over_several_tensors_and_end_with_the_row(rng):
    v = [torch.randn(3, 10, generator=rng), torch.randn(2, 7, generator=rng)]
    compression = lc.SymmetricInt(4, per=4)
    delta = compression.fit(v)
    assert compression.scale_.numel() == 3 * 3 + 2 * 2
    torch.testing.assert_close(delta[1][1, 4:], lc.SymmetricInt(4).fit([v[1][1, 4:]])[0])


def test_pinned_codewords_stay(v):
    compression = lc.Quantize(4, pinned=0.0)
    compression.fit(v)
    compression.fit([t + 0.1 for t in v])
    assert 0.0 in compression.codebook_.tolist()


def test_sparse_codebook_beats_pruning_first(v):
    together = lc.SparseCodebook(2, 0.3)
    delta = together.fit(v)[0]
    assert delta.count_nonzero() <= round(0.3 * 128) and delta.unique().numel() <= 3
    pruned = lc.Prune(0.3).fit(v)
    support = pruned[0] != 0
    apart = pruned[0].clone()
    apart[support] = lc.Quantize(2).fit([pruned[0][support]])[0]
    assert distance(v, [delta]) <= distance(v, [apart]) * (1 + 1e-6)
    assert together.weight_bits() == int(delta.count_nonzero())


def test_penalties_keep_nothing_at_first_and_more_as_mu_grows(v):
    for make in (lambda: lc.L0Penalty(0.5), lambda: lc.L1Penalty(0.5), lambda: lc.RankSelection(0.05)):
        compression = make()
        kept = []
        for mu in (0.0, 1.0, 5.0, 1e6):
            delta = compression.fit(v, mu=mu)[0]
            kept.append(distance(v, [delta]))
        assert kept[0] == pytest.approx(float(v[0].square().sum())) and kept[-1] < 1e-6
        assert all(a >= b for a, b in itertools.pairwise(kept))


def test_convolutions_as_matrices_of_both_schemes(rng):
    w = [torch.randn(6, 4, 3, 3, generator=rng)]
    errors = {}
    for scheme in (1, 2):
        compression = lc.LowRank(3, scheme=scheme)
        delta = compression.fit(w)
        matrix = ops.conv_as_matrix(w[0], scheme)
        s = torch.linalg.svdvals(matrix.double())
        errors[scheme] = distance(w, delta)
        assert errors[scheme] == pytest.approx(float(s[3:].square().sum()), rel=1e-3)
        assert compression.bits() == 32 * 3 * sum(matrix.shape)
    tucker = lc.Tucker2((4, 3))
    first = distance(w, tucker.fit(w))
    assert distance(w, tucker.fit(w)) <= first * (1 + 1e-5)
    assert tucker.bits() == 32 * (4 * 3 * 9 + 6 * 4 + 4 * 3)
    twin = tucker.fresh()
    twin.load_state_dict(tucker.state_dict())
    assert torch.equal(twin.decompress()[0], tucker.decompress()[0])
    channels = lc.NMPrune(2, 4, dim=1)
    delta = channels.fit(w)[0]
    assert bool(((delta != 0).sum(1) == 2).all())


def test_rank_selection_stays_dense_where_no_factorisation_pays(rng):
    w = [torch.eye(10) + 0.01 * torch.randn(10, 10, generator=rng)]
    compression = lc.RankSelection(1e-3)
    assert torch.equal(compression.fit(w, mu=100.0)[0], w[0])
    assert compression.bits() == 32 * 100 and compression.summary()["rank"] == 10
    low = torch.randn(10, 1, generator=rng) @ torch.randn(1, 10, generator=rng)
    compression.fit([low + 1e-3 * torch.randn(10, 10, generator=rng)], mu=100.0)
    assert compression.summary()["rank"] == 1


@pytest.mark.parametrize("name", list(MATRIX))
def test_in_the_loop_and_packed(name):
    model, x, y = problem()
    tasks = (
        [lc.Task("0", MATRIX[name]())] if "blocks" not in name else [lc.Task("0", lc.GroupPrune(0.25, groups=(2, 4)))]
    )
    if name == "vector":
        tasks = [lc.Task("0", lc.VectorQuantize(16, 4))]
    algorithm = lc.LCAlgorithm(model, tasks, mu=lc.exponential(0.3, 2.0, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    algorithm.attach(optimizer)
    for _ in algorithm.steps():
        for _ in range(8):
            step(model, optimizer, x, y)
    assert algorithm.history.steps[-1].gap < algorithm.history.steps[0].gap + 1e-6
    assert F.cross_entropy(model(x), y) < 1.35
    packed = lc.pack(model)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in MATRIX if MATRIX[n]().trainable and "penalty" not in n])
def test_finetuning_every_compression(name):
    model, x, y = problem()
    compression = MATRIX[name]()
    algorithm = lc.LCAlgorithm(model, lc.Task("0", compression), mu=[2.0, 8.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    algorithm.attach(optimizer)
    for _ in algorithm.steps():
        step(model, optimizer, x, y)
    bits = algorithm.tasks[0].compression.bits()
    tuned = lc.Finetuning(model)
    before = F.cross_entropy(tuned(x), y).item()
    optimizer = torch.optim.Adam(tuned.parameters(), 0.003)
    for _ in range(15):
        step(tuned, optimizer, x, y)
    tuned.finish()
    assert F.cross_entropy(model(x), y).item() < before
    assert algorithm.tasks[0].compression.bits() <= bits
    assert all(
        torch.equal(a, b)
        for a, b in zip(algorithm.tasks[0].compression.decompress(), [model[0].weight.detach()], strict=True)
    )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: lc.Quantize(2, per="column"), "per"),
        (lambda: lc.Quantize(2, per=1), "per"),
        (lambda: lc.Quantize(2, method="dp"), "method"),
        (lambda: lc.Levels([1.0]), "levels"),
        (lambda: lc.Levels([1.0, 0.0]), "levels"),
        (lambda: lc.Binary(scaled=False, per="row"), "per"),
        (lambda: lc.VectorQuantize(8, 3), "d must"),
        (lambda: lc.VectorQuantize(1, 2), "k must"),
        (lambda: lc.VectorQuantize(8, 4).fit([torch.ones(3, 3)]), "d=4"),
        (lambda: lc.L1Ball(-1.0), "radius"),
        (lambda: lc.L2Ball(float("inf")), "radius"),
        (lambda: lc.L0Penalty(0.0), "alpha"),
        (lambda: lc.NMPrune(4, 4), "n and m"),
        (lambda: lc.NMPrune(2, 4).fit([torch.ones(3, 6)]), "multiple of m"),
        (lambda: lc.GroupPrune(1.5), "keep"),
        (lambda: lc.LowRank(2, scheme=3), "scheme"),
        (lambda: lc.RankSelection(0.0), "alpha"),
        (lambda: lc.Tucker2((0, 1)), "ranks"),
        (lambda: lc.Tucker2((1, 1)).fit([torch.ones(3, 3)]), "convolution"),
        (lambda: lc.SparseCodebook(0, 0.1), "k must"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_auto_mu_refuses_penalties():
    model, x, y = problem()
    with pytest.raises(ValueError, match="auto_mu"):
        lc.auto_mu(model, lc.Task("0", lc.L0Penalty(1.0)), lambda m: F.cross_entropy(m(x), y))


def test_embeddings_and_recurrent_weights_train():
    torch.manual_seed(0)
    model = nn.ModuleDict({"e": nn.Embedding(9, 8), "r": nn.GRU(8, 6, batch_first=True), "out": nn.Linear(6, 3)})
    tokens, y = torch.randint(0, 9, (32, 5)), torch.randint(0, 3, (32,))
    algorithm = lc.LCAlgorithm(model, lc.Task(["e", "r"], lc.Quantize(4)), mu=[1.0, 10.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    algorithm.attach(optimizer)
    for _ in algorithm.steps():
        optimizer.zero_grad()
        hidden, _ = model["r"](model["e"](tokens))
        F.cross_entropy(model["out"](hidden[:, -1]), y).backward()
        optimizer.step()
    assert model["e"].weight.unique().numel() <= 4 and model["r"].weight_hh_l0.unique().numel() <= 4
