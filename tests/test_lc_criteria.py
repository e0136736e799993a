"""Criteria for pruning: each against its definition, computed plainly; second-order C steps that never get worse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lc_problem import problem, step
from torch import nn

import lc
from lc import criteria


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained():
    model, x, y = problem()
    return model, x, y


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(36, 5),
    ).eval()  # fmt: skip


def every(model, x, y):
    batches = list(zip(x.split(64), y.split(64), strict=True))
    return {
        "magnitude": criteria.magnitude(model),
        "magnitude per layer": criteria.magnitude(model, per_layer=True),
        "wanda": criteria.wanda(model, batches),
        "apoz": criteria.apoz(model, batches),
        "taylor": criteria.taylor(model, batches, cross_entropy),
        "taylor rows": criteria.taylor(model, batches, cross_entropy, groups="row"),
        "taylor columns": criteria.taylor(model, batches, cross_entropy, groups="column"),
        "fisher": criteria.fisher(model, batches, cross_entropy),
        "obd": criteria.obd(model, batches, cross_entropy),
        "obs": criteria.obs(model, batches),
        "woodfisher": criteria.woodfisher(model, batches, cross_entropy),
    }


def test_all_are_metrics_and_leave_the_model_as_it_was(trained, net):
    images = torch.randn(128, 2, 10, 10)
    for model, x, y in (trained, (net, images, torch.randint(0, 5, (128,)))):
        model.train()
        model[0].eval()
        model.zero_grad()
        before = copy.deepcopy(model.state_dict())
        found = every(model, x, y)
        shapes = {name: p.shape for name, p in model.named_parameters() if p.dim() > 1}
        for name, h in found.items():
            assert {n: t.shape for n, t in h.items()} == shapes, name
            for t in h.values():
                assert t.dtype == torch.float32 and t.is_contiguous() and bool(((t > 0) & t.isfinite()).all()), name
        again = every(model, x, y)
        assert all(torch.equal(t, again[name][n]) for name, h in found.items() for n, t in h.items())
        assert model.training and not model[0].training and all(p.grad is None for p in model.parameters())
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m, b: criteria.wanda(m, []), "at least one batch"),
        (lambda m, b: criteria.apoz(m, []), "at least one batch"),
        (lambda m, b: criteria.obs(m, []), "at least one batch"),
        (lambda m, b: criteria.taylor(m, [], cross_entropy), "at least one batch"),
        (lambda m, b: criteria.obd(m, [], cross_entropy), "at least one batch"),
        (lambda m, b: criteria.woodfisher(m, [], cross_entropy), "at least one batch"),
        (lambda m, b: criteria.wanda(m, b, damping=-1.0), "damping must be .* got -1.0"),
        (lambda m, b: criteria.obs(m, b, damping=0), "damping must be positive"),
        (lambda m, b: criteria.woodfisher(m, b, cross_entropy, damping=0), "damping must be positive"),
        (lambda m, b: criteria.taylor(m, b, cross_entropy, groups="filter"), "groups must be .* got 'filter'"),
        (lambda m, b: criteria.obd(m, b, cross_entropy, samples=0), "samples must be .* got 0"),
    ],
)
def test_bad_arguments_are_named(trained, call, reason):
    model, x, y = trained
    with pytest.raises(ValueError, match=reason):
        call(model, [(x, y)])


def test_wanda_is_the_norm_of_the_input(trained):
    model, x, _ = trained
    h = criteria.wanda(model, [x[:100], x[100:]], damping=0.0)
    hidden = torch.tanh(model[0](x))
    for name, inputs in (("0.weight", x), ("2.weight", hidden)):
        torch.testing.assert_close(h[name], inputs.square().mean(0).expand_as(h[name]), rtol=1e-5, atol=1e-7)
    algorithm = lc.LCAlgorithm(copy.deepcopy(model), lc.Task("0", lc.Prune(0.5, per="row")), mu=[1.0], metric={
        "0.weight": h["0.weight"]})  # fmt: skip
    algorithm.start()
    algorithm.c_step(0.0)
    algorithm.install()
    kept = algorithm.model[0].weight.detach() != 0
    score = model[0].weight.detach().abs() * x.square().sum(0).sqrt()
    want = torch.zeros_like(kept)
    want.scatter_(1, score.topk(6, dim=1).indices, True)
    assert torch.equal(kept, want)


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pruning_per_row(rows, cols, keep, seed):
    v = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    h = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed + 1)) + 0.1
    for weights in (None, [h]):
        got = lc.Prune(keep, per="row").fit([v], weights=weights)[0]
        for i in range(rows):
            alone = lc.Prune(round(keep * cols)).fit([v[i]], weights=None if weights is None else [h[i]])[0]
            assert torch.equal(got[i], alone)


def test_pruning_per_row_takes_fractions_only():
    with pytest.raises(TypeError, match="fraction of each row"):
        lc.Prune(3, per="row")
    with pytest.raises(ValueError, match="per must be"):
        lc.Prune(0.5, per="column")


def test_magnitude_per_layer_is_in_standard_deviations(trained):
    model, *_ = trained
    h = criteria.magnitude(model, per_layer=True)
    for name in ("0.weight", "2.weight"):
        w = model.get_parameter(name).detach()
        torch.testing.assert_close(h[name] * w.square(), (w / w.std(correction=0)).square(), rtol=1e-4, atol=0)
    assert all(bool((t == 1).all()) for t in criteria.magnitude(model).values())


def test_apoz_counts_the_zeros_behind_relu_and_normalisation(net):
    images = torch.randn(40, 2, 10, 10)
    h = criteria.apoz(net, [images[:30], images[30:]], damping=0.0)
    first = net[2](net[1](net[0](images)))
    second = F.relu(net[3](first))
    for name, activations in (("0.weight", first), ("3.weight", second)):
        w = net.get_parameter(name).detach()
        active = 1 - (activations == 0).float().mean((0, 2, 3))
        torch.testing.assert_close((h[name] * w.square()).sum((1, 2, 3)), active, rtol=1e-4, atol=1e-6)
    pruned = lc.GroupPrune(2, groups="row").fit([net[3].weight.detach()], weights=[h["3.weight"]])[0]
    best = (1 - (second == 0).float().mean((0, 2, 3))).topk(2).indices
    assert set(pruned.flatten(1).any(1).nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize("groups", ["row", "column"])
def test_groups_of_zeros_take_usual_weights(net, groups):
    with torch.no_grad():
        net[3].weight[1] = 0
        net[3].weight[:, 2] = 0
    images, labels = torch.randn(10, 2, 10, 10), torch.randint(0, 5, (10,))
    found = [criteria.taylor(net, [(images, labels)], cross_entropy, groups=groups), criteria.apoz(net, [images])]
    for h in found:
        assert float(h["3.weight"].max() / h["3.weight"].median()) < 1e4
        lc.LCAlgorithm(net, lc.Task("3", lc.GroupPrune(2)), mu=[1.0], metric=h)
    net[3].weight.data.zero_()
    assert bool(criteria.apoz(net, [images])["3.weight"].isfinite().all())


def test_apoz_of_an_inplace_relu(net):
    twin = copy.deepcopy(net)
    twin[2].inplace = True
    twin[4].inplace = True
    images = torch.randn(10, 2, 10, 10)
    for name, h in criteria.apoz(net, [images]).items():
        assert torch.equal(h, criteria.apoz(twin, [images])[name])


def test_taylor(trained):
    model, x, y = trained
    batches = list(zip(x.split(64), y.split(64), strict=True))
    w = model[0].weight
    gradients = [torch.autograd.grad(cross_entropy(model, b), w)[0] for b in batches]
    score = criteria.taylor(model, batches, cross_entropy, damping=0.0)["0.weight"] * w.detach().square()
    want = (torch.stack(gradients).abs().mean(0) * w.detach()).square()
    torch.testing.assert_close(score, want, rtol=1e-4, atol=1e-12)
    for groups, dim in (("row", 1), ("column", 0)):
        h = criteria.taylor(model, batches, cross_entropy, groups=groups, damping=0.0)["0.weight"]
        got = (h * w.detach().square()).sum(dim)
        want = torch.stack([(g * w.detach()).sum(dim).square() for g in gradients]).mean(0)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-10)


def test_obd_is_the_diagonal_of_the_hessian():
    """Where the loss is a sum over weights the Hessian is diagonal, and one probe is exact."""
    layer = nn.Linear(3, 2, bias=False)
    c = torch.rand(2, 3) + 0.5
    h = criteria.obd(layer, [None], lambda m, _: (c * m.weight.square()).sum(), samples=1, damping=0.0)["weight"]
    torch.testing.assert_close(h, 2 * c)


def test_obd_estimates_the_diagonal(trained):
    model, x, y = trained
    weight = model[2].weight

    def of(values):
        return F.cross_entropy(F.linear(torch.tanh(model[0](x)), values, model[2].bias), y)

    hessian = torch.autograd.functional.hessian(of, weight.detach()).reshape(weight.numel(), -1)
    h = criteria.obd(model, [(x, y)], cross_entropy, samples=400, damping=0.0)["2.weight"] / 400
    wanted = hessian.diagonal().clamp_min(0).view_as(weight)
    assert float((h - wanted).norm() / wanted.norm()) < 0.3


def test_obs_and_woodfisher_invert_their_matrices(trained):
    model, x, y = trained
    moment = x.double().T @ x.double() / len(x)
    torch.testing.assert_close(
        criteria.input_moments(model, [x[:50], x[50:]])["0.weight"], moment, rtol=1e-5, atol=1e-6
    )
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(12)
    want = 1 / torch.linalg.inv(damped).diagonal()
    torch.testing.assert_close(criteria.obs(model, [x])["0.weight"][3].double(), want, rtol=1e-4, atol=0)

    batches = list(zip(x.split(8), y.split(8), strict=True))
    g = torch.stack([torch.autograd.grad(cross_entropy(model, b), model[2].weight)[0].flatten() for b in batches])
    f = g.T.double() @ g.double() / len(g)
    f += 0.01 * f.diagonal().mean() * torch.eye(len(f))
    want = 1 / torch.linalg.inv(f).diagonal()
    got = criteria.woodfisher(model, batches, cross_entropy)["2.weight"].flatten().double()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=0)


def test_moments_of_convolutions_are_those_of_their_places(net):
    images = torch.randn(7, 2, 10, 10)
    moments = criteria.input_moments(net, [images])
    assert moments["0.weight"].shape == (18, 18) and moments["3.weight"].shape == (2, 27, 27)
    w = torch.randn(6, 18)
    y = F.conv2d(images, w.view(6, 2, 3, 3), stride=2, padding=1)
    torch.testing.assert_close(
        ((w.double() @ moments["0.weight"]) * w).sum(1), y.double().square().mean((0, 2, 3)), rtol=1e-4, atol=1e-6
    )


def error_of(v, delta, m, damping=0.01):
    damped = m + damping * m.diagonal().mean() * torch.eye(len(m))
    r = (v - delta).flatten(1).double()
    return float(((r @ damped) * r).sum())


INNER = {
    "prune": (lambda: lc.Prune(0.4), "sweep"),
    "prune, values": (lambda: lc.Prune(0.4), "values"),
    "rows of weights": (lambda: lc.Prune(0.4, per="row"), "values"),
    "2:4": (lambda: lc.NMPrune(2, 4), "values"),
    "columns": (lambda: lc.GroupPrune(0.5, groups="column"), "values"),
    "codebook": (lambda: lc.Quantize(4), "sweep"),
    "sum": (lambda: lc.Quantize(2) + lc.Prune(0.1), "sweep"),
    "low rank": (lambda: lc.LowRank(2), "sweep"),
}


@pytest.mark.parametrize("name", list(INNER))
def test_second_order_is_never_worse_than_the_fit_or_the_step_before(name, rng):
    make, update = INNER[name]
    x = torch.randn(200, 8, generator=rng) @ torch.randn(8, 8, generator=rng)
    m = (x.T @ x / len(x)).double()
    v = torch.randn(6, 8, generator=rng)
    h = m.diagonal().float() + 0.01 * m.diagonal().mean().float()
    plain = make()
    delta = plain.fit([v], **({"weights": [h.expand_as(v).contiguous()]} if plain.weighted else {}))[0]
    second = criteria.SecondOrder(make(), m, update=update)
    assert not second.learned
    got = second.fit([v])[0]
    assert second.learned and torch.equal(got, second.decompress()[0])
    assert error_of(v, got, m) <= error_of(v, delta, m) * (1 + 1e-9)
    if update == "values":
        assert torch.equal(got != 0, delta != 0) and error_of(v, got, m) < error_of(v, delta, m)
    moved = v + 0.05 * torch.randn(v.shape, generator=rng)
    assert error_of(moved, second.fit([moved])[0], m) <= error_of(moved, got, m) * (1 + 1e-9)
    twin = second.fresh()
    assert not twin.learned and second.learned
    twin.load_state_dict(second.state_dict())
    assert torch.equal(twin.decompress()[0], second.decompress()[0]) and twin.bits() == second.bits()
    torch.testing.assert_close(twin.linear(0, None).dense_weight(), second.decompress()[0])


def test_best_values_solve_the_least_squares(rng):
    x = torch.randn(100, 5, generator=rng)
    v = torch.randn(3, 5, generator=rng)
    second = criteria.SecondOrder(lc.Prune(0.6), x.T @ x / 100, update="values", damping=1e-9)
    got = second.fit([v])[0]
    for row, want in zip(got, v, strict=True):
        kept = row != 0
        solution = torch.linalg.lstsq(x[:, kept].double(), (x @ want).double()[:, None]).solution[:, 0]
        torch.testing.assert_close(row[kept].double(), solution, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (lambda: criteria.SecondOrder(3, torch.eye(2)), TypeError, "compression must be"),
        (lambda: criteria.SecondOrder(lc.Prune(1), [1.0]), TypeError, "moment must be a float tensor"),
        (lambda: criteria.SecondOrder(lc.Prune(1), torch.ones(2, 3)), ValueError, "moment must be of shape"),
        (lambda: criteria.SecondOrder(lc.Prune(1), torch.eye(2), update="x"), ValueError, "update must be"),
        (lambda: criteria.SecondOrder(lc.Quantize(2), torch.eye(2), update="values"), TypeError, "update 'values'"),
        (lambda: criteria.SecondOrder(lc.Prune(1), torch.eye(2), damping=math.nan), ValueError, "damping must be"),
        (lambda: criteria.SecondOrder(lc.Prune(1), torch.eye(2)).fit([torch.ones(2, 3)]), ValueError, "2 inputs"),
    ],
)
def test_second_order_names_bad_arguments(make, kind, reason):
    with pytest.raises(kind, match=reason):
        make()


def one_shot(model, tasks, metric=None):
    algorithm = lc.LCAlgorithm(model, tasks, mu=[0.1, 1.0, 10.0], metric=metric)
    algorithm.start()
    algorithm.c_step(0.0)
    algorithm.install()
    return algorithm


def test_metrics_of_layers_that_no_task_compresses_are_not_used(trained):
    model, x, _ = copy.deepcopy(trained)
    h = criteria.wanda(model, [x])
    algorithm = one_shot(model, lc.Task("2", lc.Prune(0.5)), h)
    assert algorithm.tasks[0].metric is not None and [task.name for task in algorithm.tasks] == ["2.weight"]
    assert int(model[2].weight.count_nonzero()) == 48 and int(model[0].weight.count_nonzero()) == 288
    with pytest.raises(ValueError, match=r"'9.weight'\], which are no parameters"):
        lc.LCAlgorithm(model, lc.Task("2", lc.Prune(0.5)), mu=[1.0], metric={**h, "9.weight": torch.ones(2)})


@pytest.mark.parametrize("update", ["sweep", "values"])
def test_second_order_one_shot_and_in_the_loop(trained, update):
    model, x, y = copy.deepcopy(trained)
    x = x @ torch.randn(12, 12)  # correlated
    moments = criteria.input_moments(model, [x])
    h = criteria.wanda(model, [x])
    before = model[0](x).detach()
    alone = copy.deepcopy(model)
    one_shot(alone, [lc.Task(name, lc.Prune(0.3)) for name in moments], h)
    tasks = [lc.Task(name, criteria.SecondOrder(lc.Prune(0.3), m, update=update)) for name, m in moments.items()]
    algorithm = one_shot(model, tasks, h)
    errors = [float((m[0](x) - before).square().mean().detach()) for m in (model, alone)]
    assert errors[0] <= (0.8 if update == "values" else 1 + 1e-6) * errors[1]
    loss = float(F.cross_entropy(model(x), y).detach())

    def l_step(model, n):
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        algorithm.attach(optimizer)
        for _ in range(20):
            step(model, optimizer, x, y)

    algorithm.run(l_step)
    assert float(F.cross_entropy(model(x), y).detach()) < loss
    torch.testing.assert_close(lc.pack(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["sweep", "values"])
def test_second_order_of_a_convolution(net, update):
    images = torch.randn(5, 2, 10, 10)
    moment = criteria.input_moments(net, [images])["0.weight"]
    algorithm = one_shot(net, lc.Task("0", criteria.SecondOrder(lc.Prune(0.4), moment, update=update)))
    assert 0.59 < algorithm.tasks[0].compression.summary()["sparsity"] < 0.61
    torch.testing.assert_close(lc.pack(net)(images), net(images), rtol=1e-4, atol=1e-5)
    tuned = lc.Finetuning(net)
    tuned(images).square().sum().backward()
    assert all(p.grad is not None for p in tuned.parameters())
    assert 0 < float(tuned.finish()[0].weight.count_nonzero()) <= 0.41 * 108
