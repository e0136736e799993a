"""What the loop does between L steps: the best iterate, early stopping, batch statistics, metrics, finetuning."""

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem, step
from torch import nn

import lc
from lc.tasks import tasks_of


def run(model, x, y, tasks, *, epochs=10, lr=0.05, **options):
    options.setdefault("mu", lc.exponential(1e-2, 1.8, 10))
    algorithm = lc.LCAlgorithm(model, tasks, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    algorithm.attach(optimizer)

    def l_step(model, n):
        model.train()
        return [step(model, optimizer, x, y) for _ in range(epochs)][-1]

    algorithm.run(l_step)
    return algorithm


@pytest.mark.parametrize(("mode", "wanted"), [("min", 3), ("max", 5)])
def test_the_best_iterate_is_kept_and_can_be_packed(mode, wanted):
    model, x, y = problem()
    seen = []

    def evaluate(m):
        seen.append([p.detach().clone() for p in m.parameters()])
        return {"score": [2.0, 3.0, 4.0, 1.0, 4.0, 5.0, 5.0, 2.0][len(seen) - 1] - (len(seen) == 7)}

    tasks = lc.Task("re:.*weight", lc.Quantize(2))
    algorithm = run(model, x, y, tasks, mu=lc.exponential(0.1, 1.5, 7), evaluate=evaluate, best=("score", mode))
    assert torch.equal(model[0].weight, seen[wanted][0]) and torch.equal(model[2].weight, seen[wanted][2])
    packed = lc.pack(model)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(algorithm.history.steps) == 8


def test_stops_at_the_gap():
    model, x, y = problem()
    algorithm = run(model, x, y, lc.Task("re:.*weight", lc.Quantize(2)), stop_gap=0.3)
    gaps = [s.gap for s in algorithm.history.steps]
    assert gaps[-1] <= 0.3 and len(gaps) < 11 and all(g > 0.3 for g in gaps[1:-1])


def test_batch_statistics_are_those_of_the_compressed_net():
    torch.manual_seed(0)
    x, y = torch.randn(256, 12), torch.randint(0, 4, (256,))
    model = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        step(model, optimizer, x, y)
    means, trained = [], []

    def evaluate(m):
        torch.testing.assert_close(m[1].running_mean, m[0](x).mean(0), rtol=1e-4, atol=1e-5)
        means.append(m[1].running_mean.clone())
        return {}

    algorithm = lc.LCAlgorithm(
        model, lc.Task("0", lc.Prune(0.1)), mu=[0.1, 1.0], evaluate=evaluate, bn_batches=[(x, y)]
    )
    for _ in algorithm.steps():
        trained.append(model[1].running_mean.clone())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        algorithm.attach(optimizer)
        step(model, optimizer, x, y)
    assert not torch.allclose(means[0], trained[0])  # the evaluation left the model's own statistics alone
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean(0), rtol=1e-4, atol=1e-5)
    assert model[1].momentum == 0.1
    with pytest.raises(TypeError, match="bn_batches"):
        lc.LCAlgorithm(model, lc.Task("0", lc.Prune(0.1)), mu=[1.0], bn_batches=iter([x]))
    with pytest.raises(ValueError, match="batches"):
        lc.recalibrate_bn(model, [])


@pytest.mark.parametrize("form", ["prox", "gradient", "loss"])
def test_a_metric_weighs_c_step_penalty_and_multipliers(form):
    model, _, _ = problem()
    h = {"0.weight": torch.rand(24, 12) * 3 + 0.1}
    algorithm = lc.LCAlgorithm(
        model,
        lc.Task("0", lc.Quantize(2)),
        mu=[2.0, 3.0],
        metric=h,
        penalty="prox" if form == "loss" else form,
    )
    task, scaled = algorithm.tasks[0], h["0.weight"] / h["0.weight"].mean()
    weight = model[0].weight
    for n in algorithm.steps():
        target = task.delta[0] + (
            task.multipliers[0] / (2.0 * scaled) if n == 0 else task.multipliers[0] / (3 * scaled)
        )
        optimizer = torch.optim.SGD([weight], lr=0.1)
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        if form == "loss":
            algorithm.penalty().backward()
        else:
            algorithm.attach(optimizer)
        optimizer.step()
        pull = algorithm.mu[n] * 0.1 * scaled
        wanted = (before + pull * target) / (1 + pull) if form == "prox" else before - pull * (before - target)
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-4, atol=1e-5)
        if n == 0:
            trained, old = weight.detach().clone(), task.multipliers[0].clone()
        else:
            break
    wanted = old - 2.0 * scaled * (trained - task.delta[0])
    torch.testing.assert_close(task.multipliers[0], wanted, rtol=1e-4, atol=1e-5)
    codebook = task.compression.codebook_
    v = trained - old / (2.0 * scaled)
    for c in range(2):  # each codeword is the weighted mean of its cell
        cell = task.compression.codes_[0] == c
        torch.testing.assert_close(codebook[c], (scaled * v)[cell].sum() / scaled[cell].sum(), rtol=1e-4, atol=1e-5)
    record = algorithm.history.steps[-1]
    expected = (scaled * (trained - task.delta[0]) ** 2).sum()
    assert record.distortion["0.weight"] == pytest.approx(float(expected), rel=1e-4)


def test_metrics_that_do_not_fit_are_named():
    model, _, _ = problem()
    task = lc.Task("0", lc.Quantize(2))
    for metric, error, named in [
        ({"1.weight": torch.ones(2)}, ValueError, r"1\.weight"),
        ({"0.weight": torch.ones(2)}, ValueError, r"0\.weight"),
        ({"0.weight": torch.zeros(24, 12)}, ValueError, "positive"),
    ]:
        with pytest.raises(error, match=named):
            lc.LCAlgorithm(model, task, mu=[1.0], metric=metric)
    with pytest.raises(TypeError, match="knows no metric"):
        lc.LCAlgorithm(model, lc.Task("0", lc.LowRank(2)), mu=[1.0], metric={"0.weight": torch.ones(24, 12)})


def test_finetuning_moves_what_was_learned_and_nothing_else():
    model, x, y = problem()
    tasks = [lc.Task("0", lc.Quantize(3) + lc.Prune(0.05)), lc.Task("2", lc.LowRank(2))]
    run(model, x, y, tasks, mu=lc.exponential(0.05, 2.0, 4))
    before = F.cross_entropy(model(x), y).item()
    parts = tasks_of(model)[0].compression.parts
    codes, support = parts[0].codes_[0].clone(), parts[1].values_[0] != 0
    tuned = lc.Finetuning(model)
    torch.testing.assert_close(tuned(x), model(x))
    assert sum(p.numel() for p in tuned.parameters()) < sum(p.numel() for p in model.parameters()) + 24 * 12
    optimizer = torch.optim.Adam(tuned.parameters(), 0.005)
    for _ in range(40):
        step(tuned, optimizer, x, y)
    after = F.cross_entropy(tuned(x), y).item()
    assert tuned.finish() is model
    assert after < before
    assert F.cross_entropy(model(x), y).item() == pytest.approx(after, rel=1e-5)
    parts = tasks_of(model)[0].compression.parts
    assert torch.equal(parts[0].codebook_, parts[0].codebook_.sort().values)
    assert torch.equal(parts[0].codes_[0], codes) or parts[0].codebook_.numel() == 3
    assert not ((parts[1].values_[0] != 0) & ~support).any()
    assert not any(p.requires_grad for p in [parts[0].codebook_, parts[1].values_[0]])
    torch.testing.assert_close(lc.pack(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_finetuning_keeps_the_memory_format():
    """With contiguous weights in a channels-last net, convolutions took 1.6 times as long."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    model[0].register_forward_pre_hook(lambda conv, _: strides.append(conv.weight.stride()))
    strides = []
    algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0])
    algorithm.start()
    algorithm.c_step(0.0)
    lc.Finetuning(model)(torch.randn(1, 3, 8, 8)).sum().backward()
    assert strides == [model[0].weight.stride()]


def test_finetuning_sorts_the_codebook():
    compression = lc.Quantize(3)
    compression.fit([torch.tensor([0.0, 1.0, 2.0, 0.1])])
    (codebook,) = compression.start_finetuning()
    with torch.no_grad():
        codebook.copy_(torch.tensor([5.0, 1.0, 2.0]))
    before = compression.decompress()[0].detach().clone()
    compression.finish_finetuning()
    assert compression.codebook_.tolist() == [1.0, 2.0, 5.0]
    assert torch.equal(compression.decompress()[0], before)


def test_best_and_evaluate_go_together():
    model, x, y = problem()
    task = lc.Task("0", lc.Quantize(2))
    with pytest.raises(ValueError, match="best"):
        lc.LCAlgorithm(model, task, mu=[1.0], best=("error", "min"))
    with pytest.raises(ValueError, match="best"):
        lc.LCAlgorithm(model, task, mu=[1.0], best="error", evaluate=lambda m: {})
    with pytest.raises(ValueError, match=r"best names 'error'.*loss"):
        run(model, x, y, task, best=("error", "min"), evaluate=lambda m: {"loss": 1.0})


def test_memory_counts_the_copies():
    model, _, _ = problem()
    plain = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0]).memory()
    taught = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0], distill=True).memory()
    assert plain == 5 * 4 * 24 * 12
    assert taught - plain == sum(4 * p.numel() for p in model.parameters())
