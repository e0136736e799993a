"""What can be known of the CUDA kernels without a GPU: nvcc compiles them without a warning or a spill, the sources
keep the rules that let the host emulation run them, and without a GPU the caller gets a clear error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
KERNELS = [s for s in SOURCES if s.stem != "planted_bugs"]  # one of its defects is too much shared memory
ARCHS = ["sm_80", "sm_90"]
FLAGS = ["-std=c++20", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs CUDA's compiler: nvcc is not found")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """What nvcc printed for each kernel file and architecture."""
    folder = tmp_path_factory.mktemp("cubins")

    def compile_one(source, arch):
        cubin = folder / f"{source.stem}.{arch}.cubin"
        command = [NVCC, *FLAGS, "-cubin", f"-arch={arch}", "-Xptxas", "-v,-warn-spills", source, "-o", cubin]
        return subprocess.run(command, capture_output=True, text=True)

    cases = [(source, arch) for source in KERNELS for arch in ARCHS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(lambda case: compile_one(*case), cases), strict=True))


def code_of(source):
    """The text of a source file without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source.read_text(), flags=re.DOTALL)


def test_there_are_kernels():
    assert CSRC / "cuda" / "assign.cu" in KERNELS


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", KERNELS, ids=lambda s: s.stem)
def test_kernel_compiles_without_spills(compiled, source, arch):
    done = compiled[source, arch]
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    kernels = said.count("Compiling entry function")
    assert kernels > 0, said
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(frames) >= kernels, said
    assert set(frames) == {("0", "0", "0")}, said


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_kernel_file_keeps_the_rules_of_rt_h(source):
    code = code_of(source)
    assert '#include "rt.h"' in code
    assert "<<<" not in code, "launch with lc::cuda::launch"
    assert "LC_EMU" not in code, "a kernel file does not ask whether it is emulated"
    assert not re.search(r"\b(__)?asm(__)?\b", code), "inline assembly stands in rt.h, with its emulation beside it"
    assert not re.search(r"\b__shared__\b", code), "shared memory is declared with LC_SHARED or LC_DYN_SHARED"


@needs_nvcc
def test_error_without_a_device_is_clear(tmp_path):
    program = tmp_path / "no_device"
    sources = [CSRC / "cuda" / "assign.cu", ROOT / "tests" / "native" / "no_device_main.cc"]
    command = [NVCC, *FLAGS, f"-I{CSRC}", "-arch=sm_80", "-cudart", "static", *sources, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lc::Error: lc_ext: no CUDA device can be used on this machine: " in done.stdout
    assert re.search(r"\(error (35|100), .*assign\.cu:\d+\)", done.stdout), done.stdout
