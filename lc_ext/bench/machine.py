"""What the machine can do, measured on the spot: bandwidth, FLOP rate, memory in use."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import threading
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from .. import _native

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def header(threads: list[int]) -> dict[str, Any]:
    """CPU, instruction set, threads, versions, load and date."""
    versions = {}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "faiss-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "L3 MB": l3_bytes() / 2**20,
        "isa": _native.active_isa(),
        "threads": threads,
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {'-'.join(platform.libc_ver())}",
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def l3_bytes() -> int:
    """Size of the largest cache; 32 MiB where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s.removesuffix("K")) * 1024 for s in sizes if s.endswith("K")), default=32 << 20)


def bandwidth(moved: int, threads: int) -> float:
    """Bytes a second of a stream over a working set of about ``moved`` bytes: the cache's rate where it fits.

    The best of copying, updating in place and summing; bytes read plus bytes written, so it is a bound for any mix.
    """
    working_set = min(max(moved, 1 << 16), 4 * l3_bytes())
    return _bandwidth(working_set.bit_length() - 1, threads)


@functools.cache
def _bandwidth(log2: int, threads: int) -> float:
    torch.set_num_threads(threads)
    size = (1 << log2) * 3 // 2  # the middle of the sizes that share a measurement
    a, b = torch.zeros(size // 8), torch.zeros(size // 8)
    both = torch.zeros(size // 4)
    moves: list[tuple[Callable[[], object], int]] = [
        (lambda: b.copy_(a), size),
        (both.neg_, 2 * size),
        (both.sum, size),
    ]
    return max(_rate(function, moved, threads) for function, moved in moves)


@functools.cache
def flop_rate(threads: int) -> float:
    """Floating-point operations a second in float32: the best of torch's matrix products of sides 1024 and 2048."""
    torch.set_num_threads(threads)
    rates = []
    for n in (1024, 2048):
        a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        rates.append(_rate(functools.partial(torch.mm, a, b, out=c), 2 * n**3, threads))
    return max(rates)


def quiet_seconds(function: Callable[[], object], times: int, threads: int) -> float:
    """Seconds that a call would take on a machine with nothing else to do, as the mean of ``times`` calls.

    The larger of the CPU time of this thread, and of the process over the number of threads.
    """
    this, process = time.thread_time(), time.process_time()
    for _ in repeat(None, times):
        function()
    return max(time.thread_time() - this, (time.process_time() - process) / threads) / times


def _rate(function: Callable[[], object], amount: float, threads: int, seconds: float = 0.05) -> float:
    function()
    best, stop = float("inf"), time.perf_counter() + seconds
    times = 1
    while times < 1024 and quiet_seconds(function, times, threads) * times < 1e-3:
        times *= 2
    for turn in range(1000):
        if turn >= 3 and time.perf_counter() > stop:
            break
        best = min(best, quiet_seconds(function, times, threads))
    return amount / best


def bound(moved: int, flops: float, threads: int) -> dict[str, Any] | None:
    """The least time in ms that the bytes and the operations need, and which of them it is; None for neither."""
    needs = {}
    if moved:
        needs["memory"] = moved / bandwidth(moved, threads) * 1e3
    if flops:
        needs["flops"] = flops / flop_rate(threads) * 1e3
    if not needs:
        return None
    by = max(needs, key=lambda name: needs[name])
    return {"ms": needs[by], "by": by}


def extra_memory(function: Callable[[], object], threads: int) -> dict[str, int] | None:
    """Peak bytes that a call adds to the process: ``cold`` with its workspaces, ``warm`` with them there already.

    Thread-local workspaces start empty in a new thread (and so do those of its OpenMP team), so ``cold`` is a call in
    one. What the call returns counts. The kernel counts pages to within some tenths of a MB. None where it keeps no
    high-water mark (Linux does).
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    peak: dict[str, int] = {}
    failure: list[Exception] = []

    def cold() -> None:
        torch.set_num_threads(threads)
        try:
            peak["cold"] = _peak(function)
        except Exception as error:  # handed to the caller's thread
            failure.append(error)

    function()  # touches what the case holds: memory of an output that was never written is not resident
    thread = threading.Thread(target=cold)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    peak["warm"] = _peak(function)
    return peak | {"cold": max(peak.values())}


def _peak(function: Callable[[], object]) -> int:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the call may use memory that was freed and is still resident
    _CLEAR.write_text("5")
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def limited_pools(threads: int) -> contextlib.AbstractContextManager[Any]:
    """Hold the thread pools of other libraries (BLAS, OpenMP) to ``threads``, where threadpoolctl is installed."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return contextlib.nullcontext()
    return importlib.import_module("threadpoolctl").threadpool_limits(threads)  # type: ignore[no-any-return]
