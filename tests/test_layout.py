"""The layout that CONTRIBUTING.md promises: a kernel is one small set of files of one name."""

import re
from pathlib import Path

import pytest

import lc
import lc_ext
from lc_ext import nn, ops

ROOT = Path(__file__).parent.parent
STEMS = sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cc"))
KERNELS = [stem for stem in STEMS if not any(stem.startswith(f"{other}_") for other in STEMS)]  # f_part.cc is part of f


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_all_its_files(name):
    python = [f"lc_ext/ops/{name}.py", f"tests/test_{name}.py", f"lc_ext/bench/{name}.py"]
    for path in [f"csrc/{name}.h", f"csrc/{name}.cc", *python]:
        assert (ROOT / path).is_file(), path
    assert f"bind_{name}(" in (ROOT / "csrc/bind.cc").read_text()
    assert hasattr(ops, name)
    assert f"{name}_reference" in ops.__all__


@pytest.mark.parametrize("path", sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ids=lambda p: p.stem)
def test_every_cuda_kernel_is_one_of_them(path):
    if path.stem != "planted_bugs":
        assert (ROOT / "csrc" / f"{path.stem}.h").is_file()
        assert f"lc::cuda::{path.stem}(" in (ROOT / "csrc/bind.cc").read_text()
        assert re.search(r"\bdevice\b", (ROOT / f"tests/test_{path.stem}.py").read_text())


def test_native_code_knows_nothing_of_torch():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path


def test_public_names_exist_and_are_documented():
    for module in (lc, lc_ext, ops, nn):
        assert module.__doc__
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name}"
