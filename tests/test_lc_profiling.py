"""lc.profile: every packed layer once, with its size and times, and the model left as it was."""

import pytest
import torch
from torch import nn

import lc
from lc_ext import nn as packed


def net(rng):
    conv, linear, unused = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 5), nn.Linear(3, 3)
    for layer in (conv, linear):
        layer.weight.data = torch.randint(0, 3, layer.weight.shape, generator=rng).float()
    parts = [packed.LUTLinear.from_dense(linear), packed.SparseLinear.from_dense(linear)]
    layers = packed.LUTConv2d.from_dense(conv), nn.Dropout(), nn.Flatten(), packed.SumLinear(parts), unused
    model = nn.Sequential(*layers[:4])
    model.unused = packed.LUTLinear(3, 3, 2)
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    return model.train()


def test_the_layers_that_are_called(rng):
    model = net(rng)
    result = lc.profile(model, torch.randn(3, 1, 8, 8, generator=rng), batches=(1, 5), repeats=2)
    assert [(layer.name, layer.kind) for layer in result.layers] == [("0", "LUTConv2d"), ("3", "SumLinear")]
    first = result.layers[0]
    assert first.bytes == model[0].nbytes and first.dense_bytes == 4 * (36 + 4)
    assert set(first.milliseconds) == set(first.dense_milliseconds) == {1, 5}
    assert all(ms > 0 for ms in [*first.milliseconds.values(), *first.dense_milliseconds.values()])
    assert all(m.training for m in model.modules()) and not model[0]._forward_pre_hooks
    text = str(result)
    assert "LUTConv2d" in text and "batch 5" in text and len(text.splitlines()) == 6


def test_what_is_slower_is_named():
    layer = lc.LayerProfile("a", "LUTLinear", 10, 20, {1: 0.5, 8: 2.0}, {1: 1.0, 8: 1.0})
    assert layer.slower_at == [8]
    (row,) = (line for line in str(lc.Profile([layer], [1, 8])).splitlines() if "LUTLinear" in line)
    assert row.count("slower") == 1


def test_a_layer_alone_and_bad_arguments(rng):
    layer = packed.LUTLinear(4, 3, 2)
    assert lc.profile(layer, (torch.randn(2, 4, generator=rng),), batches=[2], repeats=1).layers[0].name == ""
    with pytest.raises(ValueError, match="packed has no layers"):
        lc.profile(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"batches\[1\] must be at least 1, got 0"):
        lc.profile(layer, torch.randn(2, 4), batches=(1, 0))
    with pytest.raises(ValueError, match="batches must hold"):
        lc.profile(layer, torch.randn(2, 4), batches=())
