"""The snippets of the documentation run, and do what the text around them says."""

import re
from pathlib import Path

import pytest
import torch

import lc
from lc.models import lenet300

ROOT = Path(__file__).parent.parent


def snippets(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


def test_adding_a_compression():
    (source,) = snippets("docs/adding_a_compression.md")
    namespace = {}
    exec(source, namespace)
    symmetric = namespace["SymmetricInt"]
    assert len(source.split("class")[1].splitlines()) < 30
    torch.manual_seed(0)
    model = lenet300()
    tasks = [lc.Task("0", symmetric(4)), lc.Task("2", symmetric(4) + lc.Prune(0.01))]
    algorithm = lc.LCAlgorithm(model, tasks, mu=[1.0], multipliers=False)
    for _ in algorithm.steps():
        assert algorithm.history.steps[0].gap < 0.2
        algorithm.penalty()
    assert model[0].weight.unique().numel() <= 15
    x = torch.randn(3, 784)
    torch.testing.assert_close(lc.pack(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_readme_main_example():
    """The example of the README, on a small problem that stands for the reader's own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    x = torch.randn(64, 8)
    y = x[:, :3].argmax(1)
    loader = [(x, y)] * 5
    main, ops, layers = snippets("README.md")[:3]
    namespace = {
        "model": model,
        "loader": loader,
        "accuracy": lambda m: float((m(x).argmax(1) == y).float().mean()),
        "make_the_same_network": lambda: torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
        ),
    }
    cwd = Path.cwd()
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(main, namespace)
            exec(ops, {"weight": torch.randn(50, 60), "weights": [torch.randn(5, 6), torch.randn(7)]})
            exec(layers, {"linear": torch.nn.Linear(6, 5), "x": torch.randn(2, 6)})
        finally:
            os.chdir(cwd)
    assert namespace["history"].steps[-1].gap < namespace["history"].steps[0].gap
    assert torch.equal(namespace["again"](x), namespace["packed"](x))


def test_driver_page(tmp_path, monkeypatch):
    """Its snippets follow on one another."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {}
    for source in snippets("docs/driver.md"):
        exec(source, namespace)
    x, packed = namespace["x"], namespace["packed"]
    torch.testing.assert_close(packed(x), namespace["model"](x), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "run.ckpt").exists()


def test_post_training_page():
    """Its snippets follow on one another."""
    torch.manual_seed(0)
    namespace = {}
    for source in snippets("docs/post_training.md"):
        exec(source, namespace)
    x, model = namespace["x"], namespace["model"]
    assert namespace["algorithm"].size().ratio > 1.5
    torch.testing.assert_close(namespace["packed"](x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda p: p.name)
def test_relative_links_and_named_files_exist(path):
    text = path.read_text()
    assert text.strip()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named = re.findall(r"`((?:csrc|lc_ext|python|tests|benchmarks|docs)/[\w./]+\.\w+)`", text)
    for target in [*links, *named]:
        if "/f." not in target and "test_f." not in target and "bench_f." not in target:
            assert (path.parent / target).exists() or (ROOT / target).exists(), target
