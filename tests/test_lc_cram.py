"""CrAM against its formula, its two protocols, its state; and compression in one shot."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem
from torch import nn

import lc

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
OPERATORS = [
    lc.Prune(0.3),
    lc.NMPrune(2, 4),
    lc.Quantize(4),
    lc.Binary(),
    lc.Prune(0.1) + lc.Quantize(2),
    lc.LowRank(2),
]


def closure_of(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def gradients(model, x, y):
    return list(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))


def by_hand(model, x, y, operator, rho, plus, sparse_grad, joint):
    """The gradients that the base optimizer should see."""
    clean = gradients(model, x, y)
    moved = copy.deepcopy(model)
    parameters = list(moved.parameters())
    masks = [torch.ones_like(p) for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, clean, strict=True):
            p.add_(g, alpha=rho)
        where = [i for i, p in enumerate(parameters) if p.dim() > 1]
        for group in [where] if joint else [[i] for i in where]:
            for i, d in zip(group, operator.fresh().fit([parameters[i].detach() for i in group]), strict=True):
                parameters[i].copy_(d)
                if isinstance(operator, (lc.Prune, lc.NMPrune)) and sparse_grad:
                    masks[i] = (d != 0).float()
    there = gradients(moved, x, y)
    return [g * m + (c if plus else 0) for g, m, c in zip(there, masks, clean, strict=True)]


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
@pytest.mark.parametrize(("plus", "sparse_grad"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_is_the_formula(operator, plus, sparse_grad, base):
    joint = not isinstance(operator, lc.LowRank)
    model, x, y = problem()
    options = SGD if base is torch.optim.SGD else {"lr": 1e-2}
    ours = lc.optim.CrAM(
        model.parameters(),
        base,
        compression=operator,
        rho=0.3,
        plus=plus,
        sparse_grad=sparse_grad,
        joint=joint,
        **options,
    )
    other = copy.deepcopy(model)
    plain = base(other.parameters(), **options)
    wanted = by_hand(other, x, y, operator, 0.3, plus, sparse_grad, joint)
    for p, g in zip(other.parameters(), wanted, strict=True):
        p.grad = g
    plain.step()
    loss = ours.step(closure_of(model, ours, x, y))
    assert loss.item() >= 0
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def run(steps, protocol, model, x, y, **options):
    optimizer = lc.optim.CrAM(
        model.parameters(), torch.optim.SGD, compression=[lc.Prune(0.5), lc.Prune(0.1)], model=model, **options, **SGD
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if protocol == "scaler" else None
    for _ in range(steps):
        if protocol == "closure":
            optimizer.step(closure_of(model, optimizer, x, y))
            continue
        for move in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (scaler.scale(loss) if scaler else loss).backward()
            move(scaler)
        if scaler:
            scaler.update()
    return optimizer


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("protocol", ["steps", "scaler"])
def test_protocols_agree(protocol, period):
    (one, x, y), (two, _, _) = problem(), problem()
    run(7, "closure", one, x, y, mask_period=period)
    run(7, protocol, two, x, y, mask_period=period)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plus", [True, False])
def test_a_scaler_skips_a_step_that_overflows(plus):
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = lc.optim.CrAM(model.parameters(), torch.optim.SGD, compression=lc.Prune(0.5), plus=plus, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for move in (optimizer.first_step, optimizer.second_step):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if move == optimizer.first_step:
            model[0].weight.grad[0, 0] = float("inf")
        move(scaler)
    scaler.update()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**9


def test_a_mask_is_kept_for_its_period():
    model, x, y = problem()
    optimizer = lc.optim.CrAM(
        model.parameters(), torch.optim.SGD, compression=lc.Prune(0.2), mask_period=3, rho=1.0, lr=0.5
    )
    masks = []
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.first_step()
        masks.append(torch.cat([(p != 0).flatten() for p in model.parameters() if p.dim() > 1]))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.second_step()
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[3], masks[5])
    assert not torch.equal(masks[2], masks[3])
    assert int(masks[0].sum()) == round(0.2 * masks[0].numel())


def test_state_goes_on_where_it_was():
    (one, x, y), (two, _, _) = problem(), problem()
    first = run(5, "closure", one, x, y, mask_period=2, seed=3)
    two.load_state_dict(one.state_dict())
    second = run(0, "closure", two, x, y, mask_period=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(5):
        first.step(closure_of(one, first, x, y))
        second.step(closure_of(two, second, x, y))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(ValueError, match="CrAM with 2"):
        second.load_state_dict(second.base.state_dict())


def test_batch_normalisation_sees_the_clean_pass_alone():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), torch.randn(32, 4), None
    y = (x[:, 0] > 0).long()
    plain = copy.deepcopy(model)
    plain(x)
    optimizer = lc.optim.CrAM(model.parameters(), torch.optim.SGD, compression=lc.Prune(0.5), model=model, lr=0.1)
    optimizer.step(closure_of(model, optimizer, x, y))
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert torch.equal(model[1].running_var, plain[1].running_var) and model[1].momentum == 0.1


def test_groups_choose_what_is_compressed():
    model, x, y = problem()
    groups = [{"params": model[0].parameters(), "compress": False, "lr": 0.01}, {"params": model[2].parameters()}]
    optimizer = lc.optim.CrAM(groups, torch.optim.SGD, compression=lc.Prune(0.25), lr=0.1)
    closure_of(model, optimizer, x, y)()
    optimizer.first_step()
    assert int(model[2].weight.count_nonzero()) == 24 and int(model[0].weight.count_nonzero()) == 288
    with pytest.raises(RuntimeError, match="twice"):
        optimizer.first_step()
    optimizer.second_step()
    assert int(model[2].weight.count_nonzero()) == 96 and optimizer.param_groups[0]["lr"] == 0.01


def test_a_failed_step_leaves_the_weights():
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = lc.optim.CrAM(model.parameters(), torch.optim.SGD, compression=lc.Prune(0.5), lr=0.1)
    closure_of(model, optimizer, x, y)()
    model[0].weight.grad[0, 0] = float("nan")
    with pytest.raises(ValueError):
        optimizer.first_step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compression": 3}, TypeError, "iterable|compression"),
        ({"compression": []}, TypeError, "compression"),
        ({"compression": lc.L0Penalty(1.0)}, ValueError, "mu"),
        ({"compression": lc.Prune(0.5), "mask_period": 0}, ValueError, "mask_period"),
        ({"compression": lc.Quantize(2), "mask_period": 2}, ValueError, "mask_period"),
        ({"compression": lc.Prune(0.5), "rho": 0.0}, ValueError, "rho"),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        lc.optim.CrAM(nn.Linear(2, 2).parameters(), torch.optim.SGD, lr=0.1, **options)


def test_nothing_to_compress():
    with pytest.raises(ValueError, match="two dimensions"):
        lc.optim.CrAM([nn.Parameter(torch.zeros(3))], torch.optim.SGD, compression=lc.Prune(0.5), lr=0.1)


def test_one_shot_prunes_and_tunes_batch_normalisation():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)), torch.randn(64, 8)
    wanted = lc.Prune(0.25).fit([model[0].weight.detach().clone(), model[2].weight.detach().clone()])
    assert lc.one_shot(model, lc.Prune(0.25), [x]) is model
    assert torch.equal(model[0].weight, wanted[0]) and torch.equal(model[2].weight, wanted[1])
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean(0).detach(), rtol=1e-4, atol=1e-5)
    model.eval()
    torch.testing.assert_close(lc.pack(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_one_shot_takes_tasks():
    model, _, _ = problem()
    lc.one_shot(model, [lc.Task("0", lc.Quantize(2)), lc.Task("2", lc.Prune(0.5))])
    assert model[0].weight.unique().numel() == 2 and int(model[2].weight.count_nonzero()) == 48
