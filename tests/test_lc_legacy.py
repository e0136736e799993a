"""Scripts of the older toolkit (UCMerced's LC-model-compression) run with lc instead, and its defects are absent.

The defects are those found by running it: each has a test here that tells its story.
"""

import copy
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lc_problem import problem
from torch import nn

import lc
from lc import compression_types as ct
from lc.torch import AsIs, AsVector
from lc.torch import ParameterTorch as Param

DEVICE = torch.device("cpu")
MU = [0.02 * 1.6**n for n in range(8)]


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return problem()


@pytest.fixture
def net(trained):
    return copy.deepcopy(trained[0])


def getters(net):
    return [lambda x=x: getattr(x, "weight") for x in net.modules() if isinstance(x, nn.Linear)]  # noqa: B009


def script(trained, net, tasks, mu=MU, evaluation=None, algorithm=lc.Algorithm, epochs=8, **options):
    """What a user of the toolkit writes."""
    _, x, y = trained

    def my_l_step(model, lc_penalty, step):
        params = list(filter(lambda p: p.requires_grad, model.parameters()))
        optimizer = torch.optim.SGD(params, lr=0.1 * 0.98**step, momentum=0.9, nesterov=True)
        for _ in range(epochs):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y) + lc_penalty()
            loss.backward()
            optimizer.step()

    return algorithm(
        model=net,
        compression_tasks=tasks,
        l_step_optimization=my_l_step,
        mu_schedule=mu,
        evaluation_func=evaluation or (lambda model: None),
        **options,
    )


def error(trained, net):
    _, x, y = trained
    return float((net(x).argmax(1) != y).float().mean())


# ---- its examples ----------------------------------------------------------------------------------------------------

EXAMPLES = {
    "pruning": lambda g: {Param(g, DEVICE): (AsVector, ct.ConstraintL0Pruning(kappa=60), "pruning")},
    "quantize_all": lambda g: {
        Param(w, DEVICE): (AsVector, ct.AdaptiveQuantization(k=2), f"t{i}") for i, w in enumerate(g)
    },
    "all_mixed": lambda g: {
        Param(g[0], DEVICE): (AsIs, ct.LowRank(target_rank=4, conv_scheme=None), "low-rank"),
        Param(g[1], DEVICE): (AsVector, ct.AdaptiveQuantization(k=4), "quantization"),
    },
    "low_rank_with_selection": lambda g: {
        Param(w, DEVICE): (AsIs, ct.RankSelection("scheme_1", 1e-3, "storage", False, w), f"t{i}")
        for i, w in enumerate(g)
    },
    "additive": lambda g: {
        Param(g, DEVICE): [
            (AsVector, ct.ConstraintL0Pruning(kappa=20), "pruning"),
            (AsVector, ct.AdaptiveQuantization(k=2), "quant"),
        ]
    },
    "ternary": lambda g: {Param(g, DEVICE): (AsVector, ct.ScaledTernaryQuantization(), "t")},
    "binary": lambda g: {Param(w, DEVICE): (AsVector, ct.ScaledBinaryQuantization(), f"t{i}") for i, w in enumerate(g)},
    "optimal": lambda g: {Param(g, DEVICE): (AsVector, ct.OptimalAdaptiveQuantization(k=3), "t")},
    "l1": lambda g: {Param(g, DEVICE): (AsVector, ct.ConstraintL1Pruning(kappa=60.0), "t")},
    "l0_penalty": lambda g: {Param(g, DEVICE): (AsVector, ct.PenaltyL0Pruning(alpha=1e-2), "t")},
    "l1_penalty": lambda g: {Param(g, DEVICE): (AsVector, ct.PenaltyL1Pruning(alpha=1e-2), "t")},
    "mapper": lambda g: {
        Param(g, DEVICE): (AsIs, ct.Mapper([ct.LowRank(4), ct.ScaledTernaryQuantization()]), "t"),
    },
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_ends_with_compressed_weights(trained, net, name):
    """Story: run() of the toolkit ends with the uncompressed weights (200 distinct values where there should be 2)."""
    errors = []
    algorithm = script(
        trained, net, EXAMPLES[name](getters(net)), evaluation=lambda m: errors.append(error(trained, m))
    )
    algorithm.run()
    assert len(errors) == 1 + len(MU)
    assert errors[-1] <= errors[0]
    assert errors[-1] < 0.2
    assert errors[-1] == error(trained, net)
    for param in algorithm.lc_parameters:
        held = torch.cat([get().detach().reshape(-1) for get in param.w_view.list]).numpy()
        np.testing.assert_array_equal(held, param.delta_theta)
    assert 0 < algorithm.count_param_bits() <= 32 * 384
    if name == "quantize_all":
        assert net[0].weight.unique().numel() == net[2].weight.unique().numel() == 2
        assert algorithm.count_params() == 384 + 4
        assert algorithm.count_param_bits() == 384 + 4 * 32
    if name == "pruning":
        assert sum(int(w().count_nonzero()) for w in getters(net)) == 60
        assert algorithm.count_params() == 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    """Story: bf16 models end in a TypeError, and float64 ones become float32."""
    model, x, y = problem(dtype=dtype)
    script((model, x, y), model, EXAMPLES["additive"](getters(model))).run()
    assert model[0].weight.dtype == dtype
    assert error((model, x, y), model) < 0.3


def test_sums_over_several_params_beside_a_plain_task(trained):
    """Story: with two Params a sum ends in "AsVector object is not callable", beside a plain task it cannot unpack."""
    model = copy.deepcopy(trained[0])
    model.append(nn.Linear(4, 4, bias=False))
    nn.init.eye_(model[3].weight)
    first, second, third = getters(model)

    def two():
        return [(AsVector, ct.ConstraintL0Pruning(5), "p"), (AsVector, ct.AdaptiveQuantization(2), "q")]

    tasks = {Param(first, DEVICE): two(), Param(second, DEVICE): two(), Param(third): [(AsIs, ct.LowRank(2), "one")]}
    before = dict(tasks)
    algorithm = script(trained, model, tasks)
    algorithm.run()
    assert tasks == before  # story: the constructor of the toolkit rewrites the caller's dictionary
    assert model[0].weight.unique().numel() <= 2 + 5
    assert int(torch.linalg.matrix_rank(model[3].weight)) == 2


def test_a_parameter_is_as_good_as_a_function(trained, net):
    script(
        trained, net, {Param([net[0].weight, net[2].weight], DEVICE): (AsVector, ct.BinaryQuantization(), "b")}, MU[:2]
    ).run()
    assert set(net[0].weight.unique().tolist()) == {-1.0, 1.0}


def test_nothing_is_printed(trained, net, capsys, caplog):
    """Story: the toolkit prints 64,000 characters for ten steps on a net of 250 weights."""
    with caplog.at_level(logging.INFO, logger="lc"):
        script(trained, net, EXAMPLES["additive"](getters(net)), MU[:1]).run()
    assert capsys.readouterr().out == ""
    assert "C step 0" in caplog.text


def test_weights_keep_their_storage(trained, net):
    """Story: the toolkit assigns tensor.data, which breaks aliases and the buckets of DistributedDataParallel."""
    before = net[0].weight.data_ptr()
    script(trained, net, EXAMPLES["ternary"](getters(net)), MU[:1]).run()
    assert net[0].weight.data_ptr() == before


def test_the_modes_of_the_steps(trained, net):
    """Story: the toolkit leaves the mode to the user, and its LeNet example trains in evaluation mode."""
    seen = []
    net.eval()
    algorithm = script(trained, net, EXAMPLES["ternary"](getters(net)), MU[:2], lambda m: seen.append(m.training))
    user = algorithm.l_step_optimization
    algorithm.l_step_optimization = lambda m, p, s: (seen.append(m.training), user(m, p, s))
    algorithm.run()
    assert seen == [False, True, False, True, False]
    assert not net.training


def test_batch_statistics_can_be_recalibrated():
    """Story: batch normalisation is never told of the compressed weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    x = torch.randn(64, 6)
    tasks = {Param(lambda: net[0].weight): (AsVector, ct.ScaledBinaryQuantization(), "b")}
    lc.Algorithm(net, tasks, [], lambda *_: None, lambda m: None, bn_batches=[x]).run()
    torch.testing.assert_close(net[1].running_mean, net[0](x).mean(0))


def test_an_empty_schedule_is_direct_compression(trained, net):
    expected = ct.ScaledBinaryQuantization().compress(net[0].weight.detach())
    script(trained, net, {Param(getters(net)[0]): (AsVector, ct.ScaledBinaryQuantization(), "b")}, mu=[]).run()
    assert torch.equal(net[0].weight, expected)


def test_the_result_can_be_packed(trained, net):
    """Story: the toolkit exports nothing."""
    script(trained, net, EXAMPLES["quantize_all"](getters(net)), MU[:2]).run()
    packed = lc.pack(net)
    torch.testing.assert_close(packed(trained[1]), net(trained[1]), rtol=1e-4, atol=1e-5)
    assert type(packed[0]).__name__ == "LUTLinear"


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        (lambda g: {"weight": (AsVector, ct.BinaryQuantization(), "b")}, "ParameterTorch"),
        (lambda g: {Param(g): (AsVector, "binary", "b")}, "a task must be"),
        (lambda g: {Param(g): []}, "one task at least"),
        (lambda g: {Param(g): (AsVector, ct.LowRank(2), "b")}, "takes one tensor"),
    ],
)
def test_wrong_tasks(trained, net, tasks, match):
    with pytest.raises((TypeError, ValueError), match=match):
        script(trained, net, tasks(getters(net)), MU[:1]).run()


# ---- scripts that take the steps by hand -----------------------------------------------------------------------------


class Holder(nn.Module):
    """A model that takes more attributes than a Sequential."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


class OwnAlgorithm(lc.Algorithm):
    """As examples/cvpr2020/modified_lc.py: other steps, an own loop, and save and restore."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        targets = [get for param in self.lc_parameters for get in param.d_theta_list]
        self.model.lc_param_list = nn.ParameterList(get() for get in targets)
        self.found = []

    def multipliers_step(self):
        for param in self.lc_parameters:
            if param.bn_after and self.compression_tasks[param][1].selected_rank == 0:
                continue
            param.lambda_ -= self.mu * (param.w - param.delta_theta)

    def lc_penalty(self):
        loss = 0.0
        for param in self.lc_parameters:
            loss += self.mu * 0.5 * param.lc_penalty()
        return loss

    def l_step(self, step):
        for param in self.lc_parameters:
            param.target = param.delta_theta + (0 if self.mu == 0 else 1 / self.mu * param.lambda_)
        self.release()
        self.l_step_optimization(self.model, self.lc_penalty, step)
        self.retrieve()

    def evaluate(self):
        self.compression_eval()
        self.found.append(self.evaluation_func(self.model))
        self.compression_train()

    def save(self):
        tasks = {name: (c.state_dict, c.info, p.lambda_) for p, (_, c, name) in self.compression_tasks.items()}
        return {"model": copy.deepcopy(self.model.state_dict()), "tasks": tasks}

    def restore(self, saved):
        self.model.load_state_dict(saved["model"])
        for param, (view, compression, name) in self.compression_tasks.items():
            state, compression.info, lambda_ = saved["tasks"][name]
            compression.load_state_dict(state)
            param.retrieve(full=True)
            param.lambda_ = lambda_
            param.delta_theta = param.compression_view_to_vector(compression.uncompress_state(), view)

    def run(self, steps, restored=None):
        if restored is None:
            self.mu = 0
            self.c_step(step_number=-1)
            for param in self.lc_parameters:
                param.lambda_ *= 0
            self.evaluate()
        else:
            self.restore(restored)
        for step in steps:
            self.mu = self.mu_schedule[step]
            self.l_step(step)
            self.c_step(step)
            self.multipliers_step()
            self.evaluate()


@pytest.mark.parametrize("name", ["low_rank_with_selection", "quantize_all", "pruning", "all_mixed"])
def test_a_loop_of_the_scripts_own_equals_run(trained, name):
    nets = [Holder(copy.deepcopy(trained[0])) for _ in range(3)]
    plain = script(trained, nets[0], EXAMPLES[name](getters(nets[0])), MU[:4])
    plain.run()
    own = script(trained, nets[1], EXAMPLES[name](getters(nets[1])), MU[:4], lambda m: error(trained, m), OwnAlgorithm)
    own.run(range(2))
    saved = own.save()
    own.run(range(2, 4), saved)
    resumed = script(trained, nets[2], EXAMPLES[name](getters(nets[2])), MU[:4], algorithm=OwnAlgorithm)
    resumed.run(range(2, 4), saved)
    for a, b, c in zip(plain.lc_parameters, own.lc_parameters, resumed.lc_parameters, strict=True):
        np.testing.assert_allclose(a.delta_theta, b.delta_theta, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(b.delta_theta, c.delta_theta, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a.lambda_, b.lambda_, rtol=1e-3, atol=1e-4)
    assert len(own.found) == 5
    assert error(trained, nets[1]) <= own.found[-1]  # by hand, the trained weights are left in place
    own.compression_eval()
    assert error(trained, nets[1]) == own.found[-1]


def test_vectors_of_a_param(net):
    param = Param(getters(net), DEVICE)
    algorithm = lc.Algorithm(
        net, {param: (AsVector, ct.ConstraintL0Pruning(50), "p")}, MU, lambda *_: None, lambda m: m
    )
    assert algorithm.lc_parameters == [param]
    before = param.w
    assert before.shape == (384,)
    algorithm.c_step(0)
    algorithm.compression_eval()
    algorithm.compression_eval()
    assert np.count_nonzero(param.delta_theta) == 50
    assert int(net[0].weight.count_nonzero() + net[2].weight.count_nonzero()) == 50
    np.testing.assert_array_equal(param.w, before)
    assert algorithm.evaluate() is net
    assert int(net[0].weight.count_nonzero() + net[2].weight.count_nonzero()) == 50  # as it was before evaluate()
    algorithm.compression_train()
    np.testing.assert_array_equal(param.w_view.pack(), before)
    param.w = before + 1
    np.testing.assert_array_equal(net[0].weight.detach().reshape(-1), (before + 1)[: net[0].weight.numel()])
    param.lambda_ += 2
    assert set(param.lambda_) == {2.0}
    param.target = before
    algorithm.mu = 3.0
    torch.testing.assert_close(algorithm.lc_penalty(), torch.tensor(1.5 * 384))
    with pytest.raises(ValueError, match="384 elements"):
        param.w = before[1:]


def test_a_compression_of_the_scripts_own(trained, net):
    class Round(ct.CompressionTypeBase):
        def compress(self, data):
            assert isinstance(data, np.ndarray)
            self._state = {"codes": np.round(data * 4)}
            return self._state["codes"] / 4

        def load_state_dict(self, state_dict):
            self._state = state_dict

        def uncompress_state(self):
            return self._state["codes"] / 4

        def count_params(self):
            return self._state["codes"].size

        def count_param_bits(self):
            return 8 * self._state["codes"].size

    first, second = getters(net)
    tasks = {
        Param(first): (AsVector, Round(), "r"),
        Param(second): [(AsIs, Round(), "r"), (AsVector, ct.ConstraintL0Pruning(3), "p")],
    }
    algorithm = script(trained, net, tasks, MU[:3])
    algorithm.run()
    assert bool((net[0].weight * 4 == (net[0].weight * 4).round()).all())
    assert int((net[2].weight * 4 != (net[2].weight * 4).round()).sum()) <= 3
    assert algorithm.count_param_bits() > 8 * 384


@pytest.mark.parametrize("metric", [False, True])
def test_the_drivers_steps_one_by_one(trained, metric):
    """What Algorithm is made of gives what the driver's own loop gives."""
    nets = [copy.deepcopy(trained[0]) for _ in range(2)]
    h = {"0.weight": torch.rand(24, 12, generator=torch.Generator().manual_seed(0)) + 0.5} if metric else None
    loop, hand = (
        lc.LCAlgorithm(net, lc.Task("re:.*weight", lc.Quantize(2)), mu=MU[:3], metric=h, penalty="gradient")
        for net in nets
    )

    def move(task, targets):
        for p in task.parameters:
            p.data.lerp_(targets[p], 0.3)

    for n in loop.steps():
        for task in loop.tasks:
            move(task, loop.targets(MU[n]))
        loop.penalty()
    hand.start()
    distortion = hand.c_step(0.0)
    assert distortion == loop.history.steps[0].distortion
    for n, mu in enumerate(MU[:3]):
        for task in hand.tasks:
            move(task, hand.targets(mu))
        assert hand.c_step(mu) == loop.history.steps[n + 1].distortion
        hand.multipliers_step(mu)
    for a, b in zip(loop.tasks, hand.tasks, strict=True):
        assert torch.equal(a.delta[0], b.delta[0]) and torch.equal(a.multipliers[0], b.multipliers[0])


def test_a_view_of_the_scripts_own(trained, net):
    class Paired(AsIs):
        """Two rows of the matrix beside one another."""

        def pack_(self, tensors):
            return super().pack_(tensors).reshape(12, 24)

    weight = getters(net)[0]
    algorithm = script(trained, net, {Param(weight): (Paired, ct.LowRank(1), "low-rank")}, MU[:2])
    algorithm.run()
    assert int(torch.linalg.matrix_rank(weight().detach().view(12, 24), rtol=1e-4)) == 1
    assert int(torch.linalg.matrix_rank(weight().detach(), rtol=1e-4)) == 2
    assert next(iter(algorithm.compression_tasks.values()))[1].info.keys() == {0, 1}
    assert algorithm.count_params() == 12 + 24


def test_a_sum_goes_on_from_a_loaded_state(trained, net):
    make = EXAMPLES["additive"]
    first = script(trained, net, make(getters(net)), MU[:2])
    first.run()
    other = copy.deepcopy(net)
    second = script(trained, other, make(getters(other)), [])
    for old, new in zip(*(next(iter(a.compression_tasks.values())) for a in (first, second)), strict=True):
        new[1].load_state_dict(old[1].state_dict)
    second.c_step(0)  # of weights that are compressed already
    np.testing.assert_allclose(second.lc_parameters[0].delta_theta, first.lc_parameters[0].delta_theta, atol=1e-6)


def test_the_page_about_it():
    """The snippet of docs/older_toolkit.md, and the names it lists."""
    page = (Path(__file__).parent.parent / "docs/older_toolkit.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", page, re.S)
    torch.manual_seed(0)
    namespace = {}
    exec(source, namespace)
    net, packed, x = namespace["net"], namespace["packed"], namespace["x"]
    assert 17 < namespace["ratio"] < 19
    torch.testing.assert_close(packed(x), net(x), rtol=1e-4, atol=1e-5)
    for name in set(ct.__all__):
        assert f"`{name}`" in page
        assert getattr(ct, name).__doc__
    for name in re.findall(r"`(\w+)`", page[page.index("| `lc` |") : page.index("| `lc.torch` |")])[2:]:
        assert hasattr(lc.Algorithm, name) or hasattr(namespace["algorithm"], name)
