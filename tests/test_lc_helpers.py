"""The helpers around the loop: schedules, calibration, rules, the call that does it all, SAM."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem, step
from torch import nn

import lc


def test_auto_mu_starts_soft_and_ends_hard():
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    task = lc.Task("re:.*weight", lc.Quantize(2))
    mu = lc.auto_mu(model, task, lambda m: F.cross_entropy(m(x), y), steps=12)
    assert len(mu) == 12 and all(b >= a for a, b in itertools.pairwise(mu))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    algorithm = lc.LCAlgorithm(model, task, mu=mu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    algorithm.attach(optimizer)
    for _ in algorithm.steps():
        for _ in range(20):
            step(model, optimizer, x, y)
    first = algorithm.history.steps[1]
    assert first.gap > 0.1 and algorithm.history.steps[-1].gap < 0.02
    with pytest.raises(ValueError, match="loss must be finite"):
        lc.auto_mu(model, task, lambda m: m(x).sum() * float("nan"))


def test_auto_mu_leaves_the_gradients_alone():
    model, x, y = problem()
    model.zero_grad()
    lc.auto_mu(model, lc.Task("0", lc.Prune(0.1)), lambda m: F.cross_entropy(m(x), y))
    assert all(p.grad is None for p in model.parameters())


def test_activation_metric_is_the_second_moment_of_the_inputs():
    model, x, _ = problem()
    h = lc.calibrate(model, [x[:100], (x[100:], None)], damping=0.0, clip=1.0)
    assert sorted(h) == ["0.weight", "2.weight"]
    torch.testing.assert_close(h["0.weight"], x.square().mean(0).expand(24, 12))
    torch.testing.assert_close(h["2.weight"], model[:2](x).square().mean(0).expand(4, 24).detach())


def test_fisher_metric_is_the_sum_of_squared_gradients():
    model, x, y = problem()
    model.zero_grad()
    h = lc.calibrate(
        model, [(x, y)], kind="fisher", loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), damping=0.0, clip=1.0
    )
    wanted = torch.zeros(4, 24)
    for i in range(len(x)):
        (g,) = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / len(x), model[2].weight)
        wanted += g.square()
    torch.testing.assert_close(h["2.weight"], wanted, rtol=1e-4, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())
    assert model.training and all(m._forward_hooks == {} for m in model.modules())


CONVS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    (nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, padding_mode="circular"), (2, 4, 7, 7)),
    (nn.Conv1d(3, 5, 2), (2, 3, 9)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVS, ids=lambda v: type(v).__name__)
def test_metrics_of_convolutions(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    for kind in ("activation", "fisher"):
        h = lc.calibrate(layer, [x], kind=kind, loss=lambda m, b: m(b).square().mean(), damping=0.0, clip=1.0)
        assert h["weight"].shape == layer.weight.shape and bool((h["weight"] >= 0).all())
    per_channel = x.square().mean([d for d in range(x.dim()) if d != 1])
    got = lc.calibrate(layer, [x], damping=0.0, clip=1.0)["weight"]
    if isinstance(layer, nn.ConvTranspose2d):
        torch.testing.assert_close(got[:, 0, 0, 0], per_channel)
    elif layer.groups == 1:
        torch.testing.assert_close(got[0].flatten(1)[:, 0], per_channel)
    else:
        torch.testing.assert_close(got[0, :, 0, 0], per_channel[:2])
        torch.testing.assert_close(got[-1, :, 0, 0], per_channel[2:])


def test_fisher_of_a_convolution_sums_squares_over_positions():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3, padding=1, bias=False), torch.randn(2, 2, 4, 4)
    h = lc.calibrate(layer, [x], kind="fisher", loss=lambda m, b: m(b).sin().sum(), damping=0.0, clip=1.0)["weight"]
    g = layer(x).detach().cos()  # the gradient of the outputs
    columns = F.unfold(x, 3, padding=1)
    wanted = torch.einsum("bop,bcp->oc", g.flatten(2).square(), columns.square()).view(3, 2, 3, 3)
    torch.testing.assert_close(h, wanted)


def test_calibrate_damps_clips_and_names_what_is_wrong():
    model, x, _ = problem()
    x = x.clone()
    x[:, 0] *= 1000
    h = lc.calibrate(model, [x], damping=0.1, clip=0.9)["0.weight"]
    assert h.max() < 100 and h.min() > 0
    with pytest.raises(ValueError, match="kind"):
        lc.calibrate(model, [x], kind="hessian")
    with pytest.raises(ValueError, match="loss"):
        lc.calibrate(model, [x], kind="fisher")
    with pytest.raises(ValueError, match="batches"):
        lc.calibrate(model, [])
    with pytest.raises(ValueError, match="clip"):
        lc.calibrate(model, [x], clip=0.0)


def test_first_match_takes_the_first_rule():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 5), nn.Linear(5, 6), nn.BatchNorm1d(6))
    tasks = lc.first_match(
        model, [("2", None), (nn.Conv2d, lc.Quantize(4)), ("re:.*", lc.Prune(0.5)), (model[0], lc.LowRank(1))]
    )
    algorithm = lc.LCAlgorithm(model, tasks, mu=[1.0])
    assert [(t.name, type(t.compression).__name__) for t in algorithm.tasks] == [
        ("0.weight", "Quantize"),
        ("1.weight", "Prune"),
    ]
    with pytest.raises(ValueError, match="Conv1d matches no weights"):
        lc.first_match(model, [(nn.Conv1d, lc.Quantize(2))])
    with pytest.raises(TypeError, match="class of modules"):
        lc.first_match(model, [(int, lc.Quantize(2))])


def test_weights_of_recurrent_attention_and_parametrized_modules():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "embedding": nn.Embedding(5, 4),
            "transposed": nn.ConvTranspose1d(2, 3, 2),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        }
    )
    names = ["lstm", "attention", "embedding", "transposed", "normed.parametrizations.weight.original1"]
    algorithm = lc.LCAlgorithm(model, lc.Task(names, lc.Quantize(2)), mu=[1.0])
    found = [name for task in algorithm.tasks for name in task.names]
    assert found == [
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "embedding.weight",
        "transposed.weight",
        "normed.parametrizations.weight.original1",
    ]
    with pytest.raises(ValueError, match="parametrization"):
        lc.LCAlgorithm(model, lc.Task("normed", lc.Quantize(2)), mu=[1.0])


def test_compress_is_the_whole_job(tmp_path):
    model, x, y = problem()
    epochs = []

    def train_epoch(m, optimizer):
        epochs.append(optimizer.param_groups[0]["lr"])
        return [step(m, optimizer, x, y) for _ in range(4)][-1]

    algorithm = lc.compress(
        model,
        lc.Task("re:.*weight", lc.Quantize(2)),
        train_epoch,
        lambda m: {"error": float((m(x).argmax(1) != y).float().mean())},
        budget_epochs=31,
        epochs_per_step=3,
        loss=lambda m: F.cross_entropy(m(x), y),
        checkpoint=tmp_path / "run.ckpt",
    )
    assert len(epochs) == 31 and len(algorithm.history.steps) == 11
    assert epochs[0] == pytest.approx(0.05) and epochs[-1] == pytest.approx(0.02)
    assert model[0].weight.unique().numel() == 2 and not model.training
    assert algorithm.history.steps[-1].gap < 0.5 * algorithm.history.steps[0].gap
    with pytest.raises(ValueError, match="budget_epochs"):
        lc.compress(model, lc.Task("0", lc.Quantize(2)), train_epoch, budget_epochs=0)
    with pytest.raises(ValueError, match=r"needs mu, or loss"):
        lc.compress(model, lc.Task("0", lc.Quantize(2)), train_epoch)


@pytest.mark.parametrize("closure", [True, False])
def test_sam_takes_the_gradient_at_the_worst_point_nearby(closure):
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    sam = lc.optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2)

    def loss():
        sam.zero_grad()
        value = F.cross_entropy(model(x), y)
        value.backward()
        return value

    if closure:
        sam.step(loss)
    else:
        loss(), sam.first_step(), loss(), sam.second_step()
    twin, _, _ = problem()
    gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), twin.parameters())
    norm = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for p, g in zip(twin.parameters(), gradients, strict=True):
            p.add_(0.2 * g / norm)
    perturbed = torch.autograd.grad(F.cross_entropy(twin(x), y), twin.parameters())
    for p, b, g in zip(model.parameters(), before, perturbed, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.1 * g)
    with pytest.raises(RuntimeError, match="first_step"):
        sam.first_step(), sam.first_step()


def test_sam_works_in_an_l_step_and_leaves_batch_statistics_alone():
    torch.manual_seed(0)
    x, y = torch.randn(64, 12), torch.randint(0, 4, (64,))
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=lc.exponential(0.1, 2.0, 6))
    sam = lc.optim.SAM(torch.optim.AdamW(model.parameters(), 0.01), model=model)
    algorithm.attach(sam)

    def closure():
        sam.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for n in algorithm.steps():
        for _ in range(10):
            sam.step(closure)
        assert model[1].num_batches_tracked == 20 * (n + 1) and model[1].momentum == 0.1
    assert algorithm.history.steps[-1].gap < algorithm.history.steps[0].gap
    sam.load_state_dict(sam.state_dict())
    with pytest.raises(ValueError, match="rho"):
        lc.optim.SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.0)
    with pytest.raises(TypeError, match="base"):
        lc.optim.SAM(model)
