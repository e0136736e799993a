"""The examples of the docstrings run, and every public name has one; so do the pages that no other test runs."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lc
import lc_ext
from lc_ext import nn as layers
from lc_ext import ops

# Public names whose documentation needs no example of its own, and why.
RESULTS = (tuple, dict)  # what returns them shows them
EXEMPT = {
    "shown by a page that the tests run": (
        {"Algorithm", "Compression", "compensate", "load", "post_train", "profile", "save"}
        | {
            "LUTLinear",
            "NMLinear",
            "SparseLinear",
            "check_csr",
            "csr_to_dense",
            "dense_to_csr",
            "lut_decode",
            "lut_linear",
        }
        | {"sparse_linear", "check_nm", "nm_linear", "nm_pack", "nm_unpack"}
        | {"LUTConv1d", "LUTConv2d", "LUTEmbedding", "LowRankConv1d", "LowRankConv2d", "SparseConv1d", "SparseConv2d"}
        | {"SumConv1d", "SumConv2d", "packed_conv"}
    ),
    "bases and records of what has examples": {
        *("LayerProfile", "PackedConv", "PackedLayer", "PackedLinear", "Profile", "Size", "StepRecord"),
    },
}


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
    exempt = set().union(*EXEMPT.values())
    bare = []
    for name in package.__all__:
        value = getattr(package, name)
        result = inspect.isclass(value) and issubclass(value, RESULTS)
        if callable(value) and not result and not name.endswith("_reference") and name not in exempt:
            if ">>>" not in (inspect.getdoc(value) or ""):
                bare.append(name)
    assert not bare, f"no example in the docstrings of {bare}"


def pages():
    """Pages with Python of which no other test speaks, save benchmarking.md, whose op is yet to be written."""
    here = Path(__file__)
    others = "".join(path.read_text() for path in here.parent.glob("test_*.py") if path != here)
    for page in sorted(here.parent.parent.glob("docs/*.md")):
        found = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        if found and page.name not in others and page.name != "benchmarking.md":
            yield found


def test_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for snippets in pages():
        torch.manual_seed(0)
        namespace = {}
        for source in snippets:  # they follow on one another
            exec(source, namespace)
