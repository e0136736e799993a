"""post_train: layers fitted to their outputs on a few inputs, without training."""

import copy

import pytest
import torch
from torch import nn

import lc


class Block(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(d, f), nn.Linear(d, f, bias=False), nn.Linear(f, d)

    def forward(self, x, scale=1.0):
        return x + scale * self.out(self.left(x) * self.right(x).tanh())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inlet, self.blocks = nn.Linear(6, 16), nn.ModuleList(Block(16, 24) for _ in range(3))

    def forward(self, x, scale=1.0):
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x, scale=scale)
        return x


def problem():
    torch.manual_seed(0)
    mix = torch.randn(6, 6)
    batches = [{"x": torch.randn(5, 20, 6) @ mix + 1, "scale": 0.5} for _ in range(4)]
    return Net(), batches, {"x": torch.randn(200, 6) @ mix + 1, "scale": 0.5}


def error(net, other, x):
    with torch.no_grad():
        return float((net(**x) - other(**x)).square().mean())


COMPRESSIONS = [
    lc.Quantize(4, per="row") + lc.Prune(0.02),
    lc.Prune(0.02) + lc.Quantize(4),
    lc.Quantize(4),
    lc.Ternary(per="row"),
    lc.Prune(0.5),
    lc.NMPrune(2, 4),
]


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=repr)
def test_second_order_and_sequence_lower_the_error(compression):
    net, batches, x = problem()
    tasks = lc.Task("re:blocks.*weight", compression)
    errors = []
    for options in ({"sequential": False, "second_order": False, "bias_correction": False}, {}):
        small = copy.deepcopy(net)
        algorithm = lc.post_train(small, tasks, batches, **options)
        for task in algorithm.tasks:
            assert torch.equal(task.parameters[0], task.compression.decompress()[0])
        errors.append(error(net, small, x))
    assert errors[1] < errors[0]
    assert algorithm.size().ratio > 1.3
    assert small.training and not any(m._forward_pre_hooks for m in small.modules())


def test_blocks_one_by_one_give_what_the_whole_model_gives():
    net, batches, _ = problem()
    one, two = copy.deepcopy(net), copy.deepcopy(net)
    tasks = lc.Task("re:blocks.*weight", lc.Quantize(4, per="row") + lc.Prune(0.02))
    lc.post_train(one, tasks, batches)
    lc.post_train(two, tasks, batches, blocks=list(two.blocks))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_it_can_be_finetuned_and_packed():
    net, batches, x = problem()
    small = copy.deepcopy(net)
    lc.post_train(small, lc.Task("re:blocks.*weight", lc.Quantize(4) + lc.Prune(0.05)), batches)
    before = error(net, small, x)
    torch.testing.assert_close(lc.pack(small)(**x), small(**x), rtol=1e-4, atol=1e-4)
    tuned = lc.Finetuning(small)
    optimizer = torch.optim.Adam(tuned.parameters(), 1e-3)
    for _ in range(20):
        for batch in batches:
            optimizer.zero_grad()
            (tuned(**batch) - net(**batch)).square().mean().backward()
            optimizer.step()
    tuned.finish()
    assert error(net, small, x) < before


def test_the_mean_error_of_the_outputs_is_gone():
    net, batches, _ = problem()
    layer, x = net.inlet, torch.cat([b["x"].flatten(0, 1) for b in batches])
    wanted = layer(x).mean(0)
    lc.post_train(net, lc.Task("inlet", lc.Quantize(2)), batches)
    torch.testing.assert_close(layer(x).mean(0), wanted, rtol=1e-4, atol=1e-4)


def test_what_compensate_does_not_know_stays():
    torch.manual_seed(0)
    v, c = torch.randn(8, 8), lc.LowRank(2)
    fitted = c.fit([v])[0]
    assert torch.equal(lc.compensate(c, v, torch.eye(8)), fitted)
    c = lc.Quantize(3, per=4)
    fitted = c.fit([v])[0]
    assert torch.equal(lc.compensate(c, v, torch.eye(8)), fitted)


def test_what_is_wrong_is_named():
    net, batches, _ = problem()
    task = lc.Task("re:blocks.*weight", lc.Quantize(2))
    conv = nn.Sequential(nn.Conv1d(1, 2, 3))
    with pytest.raises(TypeError, match="Linear"):
        lc.post_train(conv, lc.Task("0", lc.Quantize(2)), [torch.randn(1, 1, 5)])
    with pytest.raises(ValueError, match="joint"):
        lc.post_train(net, lc.Task("re:blocks.*weight", lc.Quantize(2), joint=True), batches)
    with pytest.raises(TypeError, match="mu"):
        lc.post_train(net, lc.Task("inlet", lc.L0Penalty(1.0)), batches)
    with pytest.raises(ValueError, match="none of the blocks"):
        lc.post_train(net, lc.Task("re:.*weight", lc.Quantize(2)), batches, blocks=list(net.blocks))
    with pytest.raises(ValueError, match="modules of the model"):
        lc.post_train(net, task, batches, blocks=[nn.Linear(2, 2)])
    for sequential in (True, False):
        with pytest.raises(ValueError, match=r"at least one batch|never reach"):
            lc.post_train(net, task, [], sequential=sequential)
    with pytest.raises(ValueError, match="damping"):
        lc.post_train(net, task, batches, damping=0.0)
    net.unused = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"never reach.*unused"):
        lc.post_train(net, lc.Task("unused", lc.Quantize(2)), batches)
