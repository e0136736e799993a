"""Deep Compression as a recipe: what survives, what is shared, what moves; and the file it ends in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem, step
from torch import nn

import lc


@pytest.fixture
def start():
    return copy.deepcopy(problem())


def trainer(x, y, log=None):
    def train_epoch(model, optimizer):
        if log is not None:
            log.append((type(optimizer).__name__, optimizer.param_groups[0]["lr"], model.training))
        return step(model, optimizer, x, y)

    return train_epoch


def wrong(model, x, y):
    return float((model(x).argmax(1) != y).float().mean())


def test_rounds_then_shared_values_then_a_small_file(start, tmp_path):
    model, x, y = start
    before = wrong(model, x, y)
    log = []
    algorithm = lc.recipes.deep_compression(
        model,
        trainer(x, y, log),
        lambda m: {"error": wrong(m, x, y)},
        keep=0.4,
        codewords=7,
        rounds=3,
        epochs_per_round=30,
        sharing_epochs=20,
        lr=0.05,
        lr_end=0.005,
        sharing_lr=1e-3,
    )
    steps = algorithm.history.steps
    pruned = [next(iter(record.learned.values()))["sparsity"] for record in steps[:3]]
    assert pruned == pytest.approx([1 - 0.4 ** (n / 3) for n in (1, 2, 3)], abs=0.005)
    assert [record.ratio for record in steps] == sorted(record.ratio for record in steps)
    assert steps[-1].ratio == algorithm.size().ratio > 4
    assert steps[-1].metrics["error"] == wrong(model, x, y) <= before + 0.1
    assert not model.training and all(training for *_, training in log)
    assert [name for name, *_ in log] == ["SGD"] * 90 + ["Adam"] * 20
    rates = [rate for _, rate, _ in log]
    assert rates[:90:30] == [0.05] * 3 and rates[29:90:30] == pytest.approx([0.005] * 3)
    assert rates[90] == 1e-3 and rates[-1] == pytest.approx(1e-4)
    for layer in (model[0], model[2]):
        assert len(layer.weight.unique()) <= 8
    packed = lc.pack(model)
    lc.save(packed, tmp_path / "net.lcz")
    into = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4))
    loaded = lc.load(tmp_path / "net.lcz", into)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    parts = lc.archive_parts(tmp_path / "net.lcz")
    assert sum(parts.values()) == (tmp_path / "net.lcz").stat().st_size
    assert {"header", "0.values", "0.columns", "0.codebook", "0.bias"} < set(parts)
    assert parts["0.codebook"] <= 7 * 4


def test_pruned_weights_stay_zero_and_codes_stay_while_values_are_shared(start):
    model, x, y = start
    seen = []

    def watch(tuned, optimizer):
        with torch.no_grad():
            for task in tuned.tasks:
                for delta in task.compression.decompress():
                    seen.append(delta.clone())
        return step(tuned, optimizer, x, y)

    lc.recipes.deep_compression(model, watch, keep=0.3, codewords=3, rounds=1, epochs_per_round=4, sharing_epochs=5)
    pruned, shared = seen[:8], seen[8:]
    for own in (pruned[0::2], pruned[1::2]):
        assert all(torch.equal(t != 0, own[0] != 0) for t in own) and not torch.equal(own[0], own[-1])
    for own in (shared[0::2], shared[1::2]):
        groups = [own[0] == value for value in own[0].unique()]
        assert len(groups) <= 4
        assert all(len(t[group].unique()) == 1 for t in own for group in groups)
        assert not torch.equal(own[0], own[-1])
        assert all(bool((t[own[0] == 0] == 0).all()) for t in own)


def test_the_gradient_of_a_codeword_is_the_sum_of_its_weights(start):
    model, x, y = start
    lc.recipes.deep_compression(model, trainer(x, y), keep=0.5, codewords=3, rounds=1, epochs_per_round=0)
    model[0].weight.requires_grad_()
    (dense,) = torch.autograd.grad(F.cross_entropy(model(x), y), model[0].weight)
    tuned = lc.Finetuning(model)
    compression = tuned.tasks[0].compression
    codes = compression.codes_[0].long()
    (got,) = torch.autograd.grad(F.cross_entropy(tuned(x), y), compression.codebook_)
    assert got[0] == 0
    for k in range(1, 4):
        torch.testing.assert_close(got[k], dense[codes == k].sum(), rtol=1e-4, atol=1e-6)


def test_rules_by_layer_and_layers_left_alone(start):
    model, x, y = start
    model = nn.Sequential(*model, nn.Tanh(), nn.Linear(4, 4))
    last = model[4].weight.detach().clone()
    algorithm = lc.recipes.deep_compression(
        model,
        trainer(x, y),
        keep={"2": 0.5, "re:0.*": 0.25},
        codewords={"0.weight": 3, "re:.*": 15},
        rounds=2,
        epochs_per_round=1,
        sharing_epochs=1,
    )
    assert [task.name for task in algorithm.tasks] == ["2.weight", "0.weight"]
    assert [task.compression.k for task in algorithm.tasks] == [15, 3]
    assert int(model[0].weight.count_nonzero()) <= 72 and int(model[2].weight.count_nonzero()) <= 48
    assert int(model[4].weight.count_nonzero()) == 16 and not torch.equal(model[4].weight, last)


def test_a_criterion_is_asked_in_each_round(start):
    model, x, y = start
    asked = []

    def criterion(m):
        asked.append(int(m[0].weight.count_nonzero()))
        return lc.criteria.wanda(m, [x])

    lc.recipes.deep_compression(
        model, trainer(x, y), keep={"0": 0.25}, rounds=2, epochs_per_round=1, sharing_epochs=0, criterion=criterion
    )
    assert asked == [288, 144]


def test_taught_by_the_net_as_it_was(start):
    model, x, y = start
    teacher, plain = copy.deepcopy(model), copy.deepcopy(model)
    options = dict(keep=0.2, codewords=7, rounds=2, epochs_per_round=40, sharing_epochs=10)
    lc.recipes.deep_compression(plain, trainer(x, y), **options)
    soft = lc.Distillation(smoothing=0.0)
    lc.recipes.deep_compression(model, trainer(x, y), distill=soft, **options)
    target = F.softmax(teacher(x) / soft.temperature, 1).detach()

    def divergence(m):
        return float(F.kl_div(F.log_softmax(m(x) / soft.temperature, 1), target, reduction="batchmean").detach())

    assert divergence(model) < divergence(plain)
    assert not model._forward_hooks and not soft.active


def test_the_same_seed_gives_the_same_net(start):
    model, x, y = start
    twin = copy.deepcopy(model)
    for m in (model, twin):
        lc.recipes.deep_compression(m, trainer(x, y), keep=0.3, rounds=2, epochs_per_round=3, sharing_epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_convolutions_and_batch_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    x, y = torch.randn(64, 1, 8, 8), torch.randint(0, 3, (64,))
    algorithm = lc.recipes.deep_compression(
        model, trainer(x, y), keep=0.2, codewords=5, rounds=2, epochs_per_round=2, sharing_epochs=2, bn_batches=[x]
    )
    out = model[0](x)
    torch.testing.assert_close(model[1].running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    packed = lc.pack(model)
    assert [type(packed[i]).__name__ for i in (0, 4)] == ["SparseConv2d", "SparseLinear"]
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert algorithm.size().ratio > 5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": 0.0}, "keep must be"),
        ({"keep": 3}, "keep must be"),
        ({"keep": {}}, "keep must be"),
        ({"keep": {"9": 0.5}}, "'9' is no parameter"),
        ({"codewords": 0}, "k must be"),
        ({"codewords": {"0": 7}}, r"no rule for \['2.weight'\]"),
        ({"rounds": 0}, "rounds must be .* got 0"),
        ({"epochs_per_round": -1}, "epochs_per_round must be .* got -1"),
        ({"sharing_epochs": 1.5}, "sharing_epochs must be .* got 1.5"),
        ({"lr_end": 0.0}, "lr_end must be .* got 0.0"),
        ({"init": "random"}, "init must be .* got 'random'"),
    ],
)
def test_bad_arguments_are_named_before_any_training(start, options, reason):
    model, x, y = start
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        lc.recipes.deep_compression(model, trainer(x, y), **options)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_net_without_layers_is_refused():
    with pytest.raises(ValueError, match="no Linear or convolution layers"):
        lc.recipes.deep_compression(nn.Sequential(nn.ReLU()), lambda m, o: None)


# ---- SparseCodebook: where it starts, and codebooks per tensor ------------------------------------------------------


def test_a_linear_start_covers_the_range_of_the_survivors(rng):
    v = torch.cat([0.1 * torch.randn(900, generator=rng), torch.tensor([-4.0, 5.0])])
    linear = lc.SparseCodebook(7, 0.2, init="linear")
    linear.fit([v])
    assert linear.codebook_[1] == -4.0 and linear.codebook_[-1] == 5.0
    kmeans = lc.SparseCodebook(7, 0.2)
    assert float((kmeans.fit([v])[0] - v).square().sum()) <= float((linear.decompress()[0] - v).square().sum())


def test_codebooks_per_tensor_share_one_count(rng):
    v = [3 * torch.randn(20, 30, generator=rng), torch.randn(10, 20, generator=rng)]
    h = [torch.rand(t.shape, generator=rng) + 0.5 for t in v]
    for weights in (None, h):
        compression = lc.SparseCodebook(3, 0.2, per="tensor")
        delta = compression.fit(v, weights=weights)
        joint = lc.Prune(0.2).fit(v, weights=weights)
        assert compression.codebook_.shape == (2, 4) and compression.bits() > compression.weight_bits()
        for i, (t, d, pruned) in enumerate(zip(v, delta, joint, strict=True)):
            count = int(pruned.count_nonzero())
            alone = lc.SparseCodebook(3, count)
            assert torch.equal(d, alone.fit([t], weights=None if weights is None else [h[i]])[0])
            layer = compression.linear(i, None)
            assert torch.equal(layer.dense_weight(), d) and layer.values.dtype == torch.uint8
        again = compression.fit(delta, weights=weights)
        torch.testing.assert_close(again, delta)


def test_codebooks_per_tensor_never_get_worse_from_a_warm_start(rng):
    v = [torch.randn(20, 30, generator=rng), torch.randn(10, 20, generator=rng)]
    compression = lc.SparseCodebook(2, 0.1, per="tensor")
    delta = compression.fit(v)
    for scale in (0.02, 0.1, 0.5):
        v = [t + scale * torch.randn(t.shape, generator=rng) for t in v]
        before = sum(float((t - d).square().sum()) for t, d in zip(v, delta, strict=True))
        delta = compression.fit(v)
        assert sum(float((t - d).square().sum()) for t, d in zip(v, delta, strict=True)) <= before * (1 + 1e-6)
        assert sum(int(d.count_nonzero()) for d in delta) <= 80


@pytest.mark.parametrize("per", [None, "tensor"])
def test_finetuned_codebooks_are_sorted_and_keep_their_weights(rng, per):
    v = [torch.randn(6, 7, generator=rng), torch.randn(5, 4, generator=rng)]
    compression = lc.SparseCodebook(4, 0.5, per=per)
    compression.fit(v)
    (book,) = compression.start_finetuning()
    with torch.no_grad():
        book[..., 1:] = -book[..., 1:] + 0.01 * torch.randn(book[..., 1:].shape, generator=rng)
        book[..., 0] = 7.0  # zero stays zero all the same
    moved = [t.detach() for t in compression.decompress()]
    compression.finish_finetuning()
    assert all(torch.equal(a, b) for a, b in zip(moved, compression.decompress(), strict=True))
    nonzero = compression.codebook_[..., 1:]
    assert torch.equal(nonzero, nonzero.sort(-1).values) and not compression.codebook_.requires_grad
    assert compression.fit(v)[0].shape == (6, 7)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: lc.SparseCodebook(3, 0.1, init="forgy"), "init must be .* got 'forgy'"),
        (lambda: lc.SparseCodebook(3, 0.1, per="row"), "per must be .* got 'row'"),
    ],
)
def test_bad_options_of_a_sparse_codebook(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
