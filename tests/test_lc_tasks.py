"""Tasks find exactly what they name, and say so when they do not."""

import pytest
import torch
from torch import nn

import lc
from lc.tasks import bind


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Sequential(nn.Conv1d(5, 3, 2), nn.Linear(3, 2)))


def names(model, *targets, joint=False):
    return [task.names for task in bind(model, lc.Task(list(targets), lc.Quantize(2), joint=joint))]


def test_targets_by_name_pattern_module_and_parameter():
    model = net()
    assert names(model, "0.weight") == [["0.weight"]]
    assert names(model, "0") == [["0.weight"]]
    assert names(model, "0.bias") == [["0.bias"]]
    assert names(model, model[2]) == [["2.0.weight"], ["2.1.weight"]]
    assert names(model, model[0].weight) == [["0.weight"]]
    assert names(model, r"re:2\..*") == [["2.0.weight"], ["2.1.weight"]]
    assert names(model, model) == [["0.weight"], ["2.0.weight"], ["2.1.weight"]]
    assert names(model, "re:.*", joint=True) == [["0.weight", "2.0.weight", "2.1.weight"]]


def test_each_group_learns_on_its_own():
    model = net()
    compression = lc.Quantize(2)
    bound = bind(model, lc.Task(model, compression))
    assert len({id(task.compression) for task in bound} | {id(compression)}) == 4


def test_tied_weights_are_compressed_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert names(model, "re:.*") == [["0.weight"]]
    with pytest.raises(ValueError, match="matched twice"):
        names(model, "0.weight", "1.weight")


def test_no_match_names_candidates():
    with pytest.raises(ValueError, match=r"0\.weight"):
        names(net(), "0.weigth")
    with pytest.raises(ValueError, match="matches none of"):
        names(net(), "re:fc.*")
    with pytest.raises(ValueError, match="not a valid pattern"):
        names(net(), "re:(")
    with pytest.raises(ValueError, match="two dimensions"):
        names(net(), "1")
    with pytest.raises(ValueError, match="not one of the model's"):
        names(net(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not one of the model's"):
        names(net(), nn.Parameter(torch.ones(2)))


def test_double_match_frozen_and_wrong_types():
    model = net()
    with pytest.raises(ValueError, match="matched twice"):
        bind(model, [lc.Task("0", lc.Quantize(2)), lc.Task("re:0.*", lc.Prune(1))])
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="does not require a gradient"):
        names(model, "0")
    with pytest.raises(TypeError, match="target"):
        names(model, 3)
    with pytest.raises(TypeError, match="compression"):
        lc.Task("0", "k=2")
    with pytest.raises(ValueError, match="at least one task"):
        bind(model, [])
    with pytest.raises(TypeError, match="tasks"):
        bind(model, ["0"])
