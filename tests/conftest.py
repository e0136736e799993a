"""Fixtures: every kernel test runs on each instruction set of this machine, on emulated CUDA, and on a GPU if any."""

from __future__ import annotations

import contextlib
import importlib.util

import pytest
import torch

from lc_ext import _native

ALL_ISAS = _native.supported_isas()
ISAS = [name for name in ALL_ISAS if name != "vnni"]  # avx512, but in the tests of lut_linear, which ask for it
EMULATED = importlib.util.find_spec("lc_ext._C_emu") is not None
DEVICES = ISAS + [f"emulated-{seed}" for seed in (0, 1, 7) if EMULATED] + ["cuda"] * torch.cuda.is_available()


def pytest_report_header(config):
    absent = sorted({"scalar", "avx2", "avx512", "wide", "neon"} - set(ISAS))
    return [
        f"lc_ext kernels run on: {', '.join(DEVICES)}",
        f"absent here: {', '.join(absent + ['CUDA emulation'] * (not EMULATED) + ['cuda'] * (DEVICES[-1] != 'cuda'))}",
    ]


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed, new for each test."""
    return torch.Generator().manual_seed(1234)


@contextlib.contextmanager
def forced_isa(name):
    before = _native.active_isa()
    _native.set_isa(name)
    assert _native.active_isa() == name
    try:
        yield
    finally:
        _native.set_isa(before)


@pytest.fixture(params=ISAS)
def isa(request):
    """Force one instruction set, and confirm that it is the one in use: for ops that have no CUDA kernel."""
    with forced_isa(request.param):
        yield request.param


@pytest.fixture(params=ALL_ISAS)
def lut_isa(request):
    """:func:`isa`, and `vnni`, for which only the kernels of lut_linear have code of their own."""
    with forced_isa(request.param):
        yield request.param


@pytest.fixture(params=DEVICES)
def device(request):
    """The torch device to make tensors on: for ops that have a CPU and a CUDA kernel."""
    name = request.param
    if name == "cuda":
        yield torch.device("cuda")
        return
    emulated = name.startswith("emulated")
    with _native.emulated_cuda(seed=int(name.split("-")[1])) if emulated else forced_isa(name):
        yield torch.device("cpu")
