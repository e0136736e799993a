"""No code built for one instruction set may be linked into another's path.

An inline function or template that a kernel file pulls in is a weak symbol, and the linker keeps one copy for the whole
program: if that is the AVX-512 one, a machine without AVX-512 dies of SIGILL far from any kernel. So the objects of
the kernels define nothing weak.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OBJECTS = sorted(ROOT.glob("build/cmake-*/CMakeFiles/lc_*.dir/csrc/cpu/*.o"))


@pytest.mark.skipif(not OBJECTS, reason="no build folder beside the tests")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: f"{p.parents[2].name}-{p.stem}")
def test_kernel_objects_define_no_weak_symbol(path):
    symbols = subprocess.run(["nm", "--defined-only", "-C", path], capture_output=True, text=True, check=True).stdout
    assert symbols
    weak = [line for line in symbols.splitlines() if line.split()[1] in "WwVvu"]
    assert not weak
