"""The callbacks, driven by stand-ins that call the hooks in the order that Lightning and transformers do."""

import sys
import types

import pytest
import torch
from lc_problem import problem, step

import lc
import lc.callbacks

MU = lc.exponential(0.05, 2.0, 4)


@pytest.fixture
def lightning(monkeypatch):
    module = types.ModuleType("lightning.pytorch")
    module.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)


@pytest.fixture
def transformers(monkeypatch):
    module = types.ModuleType("transformers")
    module.TrainerCallback = type("TrainerCallback", (), {})
    monkeypatch.setitem(sys.modules, "transformers", module)


def fit_lightning(algorithm, make, optimizer, epoch, epochs):
    trainer = types.SimpleNamespace(optimizers=[optimizer], should_stop=False)
    callback = make(algorithm, 2)
    callback.on_train_start(trainer, None)
    ran = 0
    while ran < epochs and not trainer.should_stop:
        epoch()
        ran += 1
        callback.on_train_epoch_end(trainer, None)
    callback.on_train_end(trainer, None)
    return ran


def fit_transformers(algorithm, make, optimizer, epoch, epochs):
    wrapped = types.SimpleNamespace(optimizer=optimizer)  # as accelerate does
    control = types.SimpleNamespace(should_training_stop=False)
    callback = make(algorithm, 2)
    callback.on_train_begin(None, None, control, model=algorithm.model, optimizer=wrapped)
    ran = 0
    while ran < epochs and not control.should_training_stop:
        epoch()
        ran += 1
        callback.on_epoch_end(None, None, control)
    callback.on_train_end(None, None, control)
    return ran


FITS = {
    "lightning": (fit_lightning, lc.callbacks.lightning_callback),
    "transformers": (fit_transformers, lc.callbacks.transformers_callback),
}


@pytest.mark.parametrize("name", list(FITS))
def test_a_trainer_runs_the_schedule_and_stops(name, lightning, transformers):
    fit, make = FITS[name]
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task("re:.*weight", lc.Quantize(2)), mu=MU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    epochs = fit(algorithm, make, optimizer, lambda: [step(model, optimizer, x, y) for _ in range(5)], 100)
    assert epochs == 2 * len(MU) and len(algorithm.history.steps) == len(MU) + 1
    assert model[0].weight.unique().numel() == 2
    by_hand, x, y = problem()
    twin = lc.LCAlgorithm(by_hand, lc.Task("re:.*weight", lc.Quantize(2)), mu=MU)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    twin.attach(optimizer)
    for _ in twin.steps():
        for _ in range(10):
            step(by_hand, optimizer, x, y)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand.parameters(), strict=True))


@pytest.mark.parametrize("name", list(FITS))
def test_a_training_that_is_too_short_is_an_error(name, lightning, transformers):
    fit, make = FITS[name]
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task("re:.*weight", lc.Quantize(2)), mu=MU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(RuntimeError, match=r"after 3 epochs.*takes 8"):
        fit(algorithm, make, optimizer, lambda: step(model, optimizer, x, y), 3)
    with pytest.raises(ValueError, match="no optimizer of the trainer"):
        other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        fit(algorithm, make, other, lambda: None, 3)
    with pytest.raises(ValueError, match="epochs_per_step"):
        make(algorithm, 0)


def test_history_goes_to_csv_and_tensorboard(tmp_path):
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(
        model, [lc.Task("0", lc.Prune(0.25)), lc.Task("2", lc.LowRank(2))], mu=MU, evaluate=lambda m: {"a": 1.5}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    algorithm.attach(optimizer)
    for _ in algorithm.steps():
        step(model, optimizer, x, y)
    algorithm.history.to_csv(tmp_path / "h.csv")
    lines = (tmp_path / "h.csv").read_text().splitlines()
    assert len(lines) == len(MU) + 2 and "metrics/a" in lines[0]
    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(row["learned/0.weight/sparsity"]) == 0.75 and row["learned/2.weight/rank"] == "2"
    total = float(row["distortion/0.weight"]) + float(row["distortion/2.weight"])
    assert float(row["penalty"]) == pytest.approx(MU[-1] / 2 * total)
    scalars = []
    writer = types.SimpleNamespace(add_scalar=lambda name, value, step: scalars.append((name, value, step)))
    algorithm.history.to_tensorboard(writer)
    assert ("lc/metrics/a", 1.5, 3) in scalars and all(value is not None for _, value, _ in scalars)
