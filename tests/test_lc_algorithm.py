"""The LC loop: it converges, ends compressed, touches nothing it should not, and repeats itself exactly."""

import json

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem, step
from torch import nn

import lc

MU = lc.exponential(1e-2, 1.5, 14)


def run(compression, *, form="prox", make=None, joint=False, dtype=torch.float32, seed=0, **kwargs):
    model, x, y = problem(seed, dtype)
    make = make or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    algorithm = lc.LCAlgorithm(
        model,
        lc.Task("re:.*weight", compression, joint=joint),
        mu=MU,
        evaluate=lambda m: {"loss": F.cross_entropy(m(x), y).item(), "error": (m(x).argmax(1) != y).float().mean()},
        penalty="prox" if form == "loss" else form,
        **kwargs,
    )

    def l_step(model, n):
        optimizer = make(model.parameters())
        if form != "loss":
            algorithm.attach(optimizer)
        extra = algorithm.penalty if form == "loss" else lambda: 0.0
        return [step(model, optimizer, x, y, extra) for _ in range(25)][-1]

    return model, algorithm, algorithm.run(l_step), (x, y)


COMPRESSIONS = {
    "quantize": lambda: lc.Quantize(2),
    "prune": lambda: lc.Prune(0.2),
    "low rank": lambda: lc.LowRank(2),
    "sum": lambda: lc.Quantize(2) + lc.Prune(0.05),
}


@pytest.mark.parametrize("name", list(COMPRESSIONS))
@pytest.mark.parametrize("form", ["prox", "gradient", "loss"])
def test_converges_to_a_compressed_net_better_than_direct_compression(name, form):
    model, algorithm, history, (x, y) = run(COMPRESSIONS[name](), form=form)
    assert len(history.steps) == len(MU) + 1
    assert history.steps[-1].gap < 0.05 < history.steps[0].gap
    assert history.steps[-1].metrics["loss"] < history.steps[0].metrics["loss"]
    for task in algorithm.tasks:  # w = Delta(Theta), exactly
        for p, delta in zip(task.parameters, task.compression.decompress(), strict=True):
            assert torch.equal(p.detach(), delta)
    assert F.cross_entropy(model(x), y).item() == pytest.approx(history.steps[-1].metrics["loss"], rel=1e-6)


def test_direct_compression_is_step_zero():
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(2)), mu=[1.0])
    for _ in algorithm.steps():
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        record = algorithm.history.steps[0]
        assert record.step == 0 and record.mu == 0 and record.loss is None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        algorithm.attach(optimizer)
        step(model, optimizer, x, y)
    expected = lc.Quantize(2).fit([before[0]])[0]
    assert record.distortion["0.weight"] == pytest.approx(float((before[0] - expected).square().sum()), rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
        lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, dampening=0.9),
        lambda p: torch.optim.RMSprop(p, lr=0.005),
        lambda p: torch.optim.Adagrad(p, lr=0.05),
        lambda p: torch.optim.Adamax(p, lr=0.01),
        lambda p: torch.optim.NAdam(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True, amsgrad=True),
    ],
    ids=["sgd", "adam", "adamw", "tensor lr", "dampening", "rmsprop", "adagrad", "adamax", "nadam", "fused"],
)
def test_works_over_any_optimizer(make):
    _, _, history, _ = run(lc.Prune(0.2), make=make)
    assert history.steps[-1].gap < history.steps[0].gap


def test_prox_is_the_exact_proximal_step():
    """With a gradient of zero, one step moves w to argmin (1/2a) ||w - w0||^2 + (mu/2) ||w - t||^2."""
    model = nn.Linear(3, 2, bias=False)
    algorithm = lc.LCAlgorithm(model, lc.Task("weight", lc.Quantize(2)), mu=[4.0])
    for _ in algorithm.steps():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
        algorithm.attach(optimizer)
        before, target = model.weight.detach().clone(), algorithm.tasks[0].delta[0].clone()
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        pull = 4.0 * 0.25 / (1 - 0.5)
        torch.testing.assert_close(model.weight.detach(), (before + pull * target) / (1 + pull))


def test_gradient_form_equals_the_penalty_in_the_loss():
    (a, *_), (b, *_) = (run(lc.Quantize(2), form=f) for f in ("gradient", "loss"))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_prox_is_stable_at_any_mu():
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(2)), mu=[1e6])
    for _ in algorithm.steps():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        algorithm.attach(optimizer)
        for _ in range(10):
            step(model, optimizer, x, y)
    assert algorithm.history.steps[-1].gap < 1e-4


def test_multipliers_follow_the_formula():
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task("0.weight", lc.Quantize(2)), mu=[0.5, 1.0])
    task = algorithm.tasks[0]
    trained = []
    for n in algorithm.steps():
        if n == 1:  # lambda starts at zero; the first step has mu = 0.5
            torch.testing.assert_close(task.multipliers[0], -0.5 * (trained[0] - task.delta[0]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        algorithm.attach(optimizer)
        step(model, optimizer, x, y)
        trained.append(model[0].weight.detach().clone())
    _, quadratic, _, _ = run(lc.Quantize(2), multipliers=False)
    assert all(not m.any() for task in quadratic.tasks for m in task.multipliers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_what_they_are(dtype):
    model, _, history, _ = run(lc.Quantize(2) + lc.Prune(0.05), dtype=dtype)
    assert all(p.dtype == dtype for p in model.parameters())
    assert history.steps[-1].gap < history.steps[0].gap


def test_same_seed_same_result_for_any_threads():
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model, _, history, _ = run(lc.Quantize(2) + lc.Prune(0.05), joint=True)
        results.append(([p.detach().clone() for p in model.parameters()], [s.gap for s in history.steps]))
    torch.set_num_threads(before)
    assert all(torch.equal(p, q) for p, q in zip(results[0][0], results[1][0], strict=True))
    assert results[0][1] == results[1][1]


def test_a_forgotten_attach_is_an_error_that_names_the_parameter():
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(2)), mu=MU)
    with pytest.raises(RuntimeError, match=r"0\.weight.*2\.weight.*attach"):
        algorithm.run(lambda m, n: step(m, torch.optim.SGD(m.parameters(), lr=0.1), x, y))
    algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(2)), mu=MU)

    def half(m, n):
        optimizer = torch.optim.SGD(m[0].parameters(), lr=0.1)
        algorithm.attach(optimizer)
        step(m, optimizer, x, y)

    with pytest.raises(RuntimeError, match=r"\['2\.weight'\]"):
        algorithm.run(half)


def test_divergence_is_an_error_that_names_the_task():
    model, _, _ = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(2)), mu=MU)
    with pytest.raises(ValueError, match=r"0\.weight contain NaN or Inf"):
        for _ in algorithm.steps():
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            algorithm.attach(optimizer)
            optimizer.step()
            with torch.no_grad():
                model[0].weight.fill_(float("nan"))


def test_evaluation_sees_the_compressed_net_in_eval_mode_and_undoes_it():
    model, x, y = problem()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    seen = []

    def evaluate(m):
        seen.append((m.training, m[0].weight.unique().numel()))
        return {"a": torch.tensor(1.0)}

    algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0], evaluate=evaluate)
    for _ in algorithm.steps():
        assert model[0].weight.unique().numel() > 2
        assert [m.training for m in model.modules()] == modes
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        algorithm.attach(optimizer)
        step(model, optimizer, x, y)
    assert seen == [(False, 2), (False, 2)]
    assert algorithm.history.steps[0].metrics == {"a": 1.0}


def test_history_goes_to_json_and_back(tmp_path):
    _, _, history, _ = run(lc.Quantize(2))
    text = history.to_json(tmp_path / "h.json")
    assert (tmp_path / "h.json").read_text() == text and list(tmp_path.iterdir()) == [tmp_path / "h.json"]
    assert lc.History.from_json(text) == history
    assert len(json.loads(text)["steps"]) == len(MU) + 1
    with pytest.raises(ValueError, match="format_version"):
        lc.History.from_json('{"format": "lc.history", "format_version": 2}')


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda m: lc.LCAlgorithm(m, lc.Task("0", lc.Quantize(2)), mu=[]), ValueError, "mu"),
        (lambda m: lc.LCAlgorithm(m, lc.Task("0", lc.Quantize(2)), mu=[1.0, 0.5]), ValueError, "mu"),
        (lambda m: lc.LCAlgorithm(m, lc.Task("0", lc.Quantize(2)), mu=[1.0], penalty="l2"), ValueError, "penalty"),
        (lambda m: lc.exponential(0, 1.1, 3), ValueError, "mu0"),
        (lambda m: lc.exponential(1, 0.9, 3), ValueError, "growth"),
        (lambda m: lc.exponential(1, 1.1, 0), ValueError, "steps"),
        (lambda m: lc.LCAlgorithm(m, lc.Task("0", lc.Quantize(2)), mu=[1.0]).attach(m), TypeError, "optimizer"),
        (
            lambda m: lc.LCAlgorithm(m, lc.Task("0", lc.Quantize(2)), mu=[1.0]).attach(
                torch.optim.SGD(m[2].parameters(), lr=0.1)
            ),
            ValueError,
            "optimizer",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make(problem()[0])


def prox_factor(make, form="prox", steps=1):
    """How far a run of steps without a gradient carries the weight towards its target: 0 not at all, 1 all the way."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False)
    algorithm = lc.LCAlgorithm(model, lc.Task("weight", lc.Quantize(2)), mu=[1.0], penalty=form)
    for _ in algorithm.steps():
        before, target = model.weight.detach().clone(), algorithm.tasks[0].delta[0].clone()
        make(algorithm, model, steps)
        moved = (model.weight.detach() - before) / (target - before)
    return moved.median().item()


def test_attaching_again_changes_nothing():
    """One optimizer for all L steps, attached in each, was pulled once more in every step."""

    def once_more(times):
        def make(algorithm, model, steps):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            handles = {id(algorithm.attach(optimizer)) for _ in range(times)}
            assert len(handles) == 1
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()

        return make

    assert prox_factor(once_more(1)) == prox_factor(once_more(5)) == pytest.approx(0.1 / 1.1, rel=1e-4)


def test_a_removed_hook_can_be_attached_again():
    def make(algorithm, model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        algorithm.attach(optimizer).remove()
        algorithm.attach(optimizer)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()

    assert prox_factor(make) == pytest.approx(0.1 / 1.1, rel=1e-4)


def test_both_ways_at_once_is_an_error():
    def make(algorithm, model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        algorithm.attach(optimizer)
        algorithm.penalty().backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match="applied twice"):
        prox_factor(make)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_form_survives_a_gradient_scaler(fused):
    """A fused optimizer divides the gradients by the scale itself, and the pull with them."""

    def make(algorithm, model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        algorithm.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
        scaler.scale((model.weight * 0).sum()).backward()
        scaler.step(optimizer)

    assert prox_factor(make, "gradient") == pytest.approx(0.1, rel=1e-3)


def test_a_step_that_a_scaler_skips_does_not_pull():
    def make(algorithm, model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        algorithm.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
        scaler.scale((model.weight * float("inf")).sum()).backward()
        scaler.step(optimizer)
        algorithm._penalty.reached[model.weight] = "hook"

    assert prox_factor(make) == 0


def test_before_and_after_a_run_an_attached_optimizer_is_its_own():
    """The pull stayed on after a loop that was left early, and an attached warm-up before the run failed."""
    for form in ("prox", "gradient"):
        model, _, _ = problem()
        algorithm = lc.LCAlgorithm(model, lc.Task(model, lc.Quantize(2)), mu=[1.0, 1.0], penalty=form)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        algorithm.attach(optimizer)

        def still(optimizer=optimizer, model=model):
            optimizer.zero_grad()
            before = model[0].weight.detach().clone()
            optimizer.step()
            return torch.equal(before, model[0].weight)

        assert still() and algorithm.penalty() == 0
        for _ in algorithm.steps():
            assert form == "gradient" or not still()
            break
        assert still() and algorithm.penalty() == 0


def test_errors_in_a_c_step_name_the_task():
    model, _, _ = problem()
    with pytest.raises(ValueError, match=r"task 2\.weight: rank must be below 4"):
        next(lc.LCAlgorithm(model, lc.Task("2", lc.LowRank(4)), mu=[1.0]).steps())
    with pytest.raises(RuntimeError, match="nothing has been compressed yet"):
        lc.LCAlgorithm(model, lc.Task("2", lc.LowRank(2)), mu=[1.0]).size()
