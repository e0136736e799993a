"""One OpenMP runtime, and torch's thread count: our ops and torch's alternate without a second pool."""

import re
import subprocess
import sys

import pytest

PROBE = """
{imports}
import torch
from lc_ext import ops
torch.set_num_threads(2)
x = torch.randn(300_000)
for _ in range(3):
    ops.topk_prune(x, 0.1)
    torch.mm(torch.randn(300, 300), torch.randn(300, 300))
print("threads", len(__import__("os").listdir("/proc/self/task")))
torch.set_num_threads(1)
ops.topk_prune(x, 0.1)
print("maps", sorted({{line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "iomp" in line}}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("imports", ["import torch", "import lc_ext.ops", "import lc_ext._native, torch"])
def test_one_openmp_runtime_is_mapped_in_either_import_order(imports):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(imports=imports)], capture_output=True, text=True, check=True
    )
    runtimes = re.search(r"maps (\[.*\])", done.stdout)[1]
    assert len(eval(runtimes)) == 1, done.stdout
    # One pool of two threads; torch may keep threads of its own that sleep, but not a second pool of ours.
    assert int(re.search(r"threads (\d+)", done.stdout)[1]) <= 4, done.stdout
