"""The examples of the docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lc
import lc_ext
from lc_ext import nn as layers
from lc_ext import ops

# Public names whose documentation needs no example of its own, and why.
EXEMPT = {
    "results and records, which the examples of what returns them show": (
        lambda name, value: inspect.isclass(value) and (issubclass(value, (tuple, dict)) or name in RECORDS)
    ),
    "the plain-torch meaning of an op, for the tests": lambda name, value: name.endswith("_reference"),
    "shown by a page of its own, which the tests run": lambda name, value: name in {"Algorithm", "Compression"},
    "shown by the pages on packing, which the tests run": lambda name, value: name in {"save", "load"},
    "bases and checks of what has examples": lambda name, value: name in {"PackedLinear", "ConvOptions"},
}
RECORDS = {"Size", "StepRecord"}


def modules():
    for package in (lc, lc_ext):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not info.name.endswith("__main__") and not info.name.rpartition(".")[2].startswith("_C"):
                yield info.name


def names():
    """What the reader of an example has of his own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(64, 8)
    y = x[:, :3].argmax(1)

    def train(model, optimizer, *rest):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return {
        **{"torch": torch, "nn": nn, "F": F, "lc": lc, "ops": ops, "layers": layers},
        **{"model": model, "x": x, "y": y, "batches": [x], "train": train, "train_epoch": train},
    }


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in modules():
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(examples()))
def test_docstring(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test.globs = {**names(), **test.globs}
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed, tried = runner.run(test, out=report.append)
    assert tried and not failed, "".join(report)


@pytest.mark.parametrize("package", [lc, ops, layers], ids=lambda p: p.__name__)
def test_every_public_name_has_an_example(package):
    bare = []
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value) and ">>>" not in (inspect.getdoc(value) or ""):
            if not any(excuse(name, value) for excuse in EXEMPT.values()):
                bare.append(name)
    assert not bare, f"no example in the docstrings of {bare}"
