"""Benchmark cases, and how they are run: verified first, then timed in turns with the peers and the yardsticks."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from . import machine

Function = Callable[..., Any]  # called without arguments; a lambda may keep its variables as defaults
COPY, SINGLE = "copy", "ours, 1 thread"  # yardsticks that are timed in turns with ours
_TURNS = 5  # that a function takes at least,
_SLOW = 5  # unless it has used this many times its time
_MANY = 1 << 14  # calls in a turn at most
_SETTLE_MS = 100  # longer calls need no untimed one before


@dataclass
class Options:
    """What the command line gave; None stands for the defaults of the suite."""

    sizes: list[int] | None = None  # numbers of elements, or sides of square matrices
    k: list[int] | None = None
    dtype: torch.dtype = torch.float32
    threads: int = 1
    peers: bool = True
    quick: bool = False
    mode: str | None = None  # arithmetic of packed layers


@dataclass
class Case:
    """One line of a table.

    Parameters
    ----------
    label : identifying columns, such as ``{"n": 10**6, "k": 16}``.
    ours : one call, into outputs that are there.
    verify : takes the result of ``ours``, asserts that it is right, and returns columns of quality, such as
        ``{"excess": 1e-7}``.
    peers : what does the same, by name: only what is installed, imported lazily.
    quality : the same columns for the result of a peer.
    source : the inputs. Copying them into resident buffers by memcpy, on one thread, is the unit of ``copies``.
    moved : bytes that must move at least: inputs read once and outputs written once.
    flops : floating-point operations that must be done at least.
    """

    label: dict[str, object]
    ours: Function
    verify: Callable[[Any], Mapping[str, float]]
    peers: Mapping[str, Function] = field(default_factory=dict)
    quality: Callable[[Any], Mapping[str, float]] | None = None
    source: Sequence[Tensor] = ()
    moved: int = 0
    flops: float = 0.0


@dataclass
class Clock:
    """How long to time, and by which clock.

    ``cpu`` is :func:`machine.quiet_seconds`, for measuring on a busy machine.
    """

    seconds: float = 0.5  # that each function may use
    cpu: bool = False

    def time(self, function: Function, times: int, threads: int) -> float:
        """Milliseconds of one call, as the mean of ``times`` calls."""
        if self.cpu:
            return machine.quiet_seconds(function, times, threads) * 1e3
        start = time.perf_counter()
        for _ in repeat(None, times):
            function()
        return (time.perf_counter() - start) / times * 1e3


class Timings:
    """Milliseconds of several functions by turn: ``turns[name][turn]``, or None where a function sat out."""

    def __init__(self, names: Sequence[str]) -> None:
        self.turns: dict[str, list[float | None]] = {name: [] for name in names}

    def of(self, name: str) -> dict[str, float]:
        """``min``, ``median`` and number of ``turns``."""
        times = [t for t in self.turns[name] if t is not None]
        return {"min": min(times), "median": statistics.median(times), "turns": len(times)}

    def ratio(self, name: str, other: str) -> dict[str, float]:
        """``name`` over ``other``: the ratio of the minima, and the median of the ratios within a turn."""
        pairs = zip(self.turns[name], self.turns[other], strict=True)
        ratios = [a / b for a, b in pairs if a is not None and b is not None]
        return {"min": self.of(name)["min"] / self.of(other)["min"], "median": statistics.median(ratios)}


def time_in_turns(
    functions: Mapping[str, Function], first: Mapping[str, float], clock: Clock, threads: Mapping[str, int]
) -> Timings:
    """Time functions in turns, so that a change of clock or a noisy neighbour hits all of them alike.

    Parameters
    ----------
    functions : what to time, by name.
    first : milliseconds of a call of each. One that took more than five times its time is not called again.
    clock : the time for each, and the clock.
    threads : the number of threads of each.

    Notes
    -----
    The order rotates. A function is called untimed before each of its turns, for its caches to settle; a quick one is
    then repeated until its turn takes a millisecond, so the clock's own cost is no part of it. Each sits out once its
    time is used, after five turns.
    """
    timings, used, times = Timings(list(functions)), dict.fromkeys(functions, 0.0), dict.fromkeys(functions, 1)
    live = [name for name in functions if first[name] < _SLOW * clock.seconds * 1e3]
    turn, order = 0, list(functions)
    with _no_garbage_collection():
        for name in live:
            torch.set_num_threads(threads[name])
            while times[name] < _MANY and clock.time(functions[name], times[name], threads[name]) * times[name] < 1:
                times[name] *= 2
        while live or turn == 0:
            for name in order:
                if name not in live:
                    timings.turns[name].append(None if turn else first[name])
                    continue
                torch.set_num_threads(threads[name])
                begin = time.perf_counter()
                if first[name] < _SETTLE_MS:
                    functions[name]()
                timings.turns[name].append(clock.time(functions[name], times[name], threads[name]))
                used[name] += time.perf_counter() - begin
            turn, order = turn + 1, [*order[1:], order[0]]
            live = [n for n in live if used[n] < clock.seconds or (turn < _TURNS and used[n] < _SLOW * clock.seconds)]
    return timings


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def reusing(op: Callable[..., Any], *args: object) -> Function:
    """A call of ``op`` into the memory of a previous result, where it has ``out``."""
    if "out" not in inspect.signature(op).parameters:
        return lambda: op(*args)
    out = op(*args)
    return lambda: op(*args, out=out)


class Copy:
    """glibc's memcpy of every tensor of ``source`` into a buffer that is there, on one thread."""

    def __init__(self, source: Sequence[Tensor]) -> None:
        self.source = source
        self.buffers = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in source]
        self._moves = [(b.data_ptr(), t.data_ptr(), t.nbytes) for b, t in zip(self.buffers, source, strict=True)]

    def __call__(self) -> None:
        for to, start, size in self._moves:
            ctypes.memmove(to, start, size)


def run(op: str, case: Case, options: Options, clock: Clock) -> dict[str, Any]:
    """Verify and time a case; its row for the table and the JSON file.

    ``failed`` is the message of an exception of ours or of ``verify``; then there are no timings. A peer that raises is
    dropped, with its message.
    """
    dtype = str(options.dtype).removeprefix("torch.")
    row: dict[str, Any] = {"op": op, "label": case.label, "threads": options.threads, "dtype": dtype}
    torch.set_num_threads(options.threads)
    first: dict[str, float] = {}
    try:
        memory = machine.extra_memory(case.ours, options.threads)
        result, first["ours"] = _trial(case.ours)
        row["quality"] = _floats(case.verify(result))
    except Exception as error:
        return row | {"failed": _message(error)}
    functions, dropped, peer_quality = {"ours": case.ours}, {}, {}
    for name, peer in case.peers.items() if options.peers else ():
        try:
            result, first[name] = _trial(peer)
            if case.quality is not None:
                peer_quality[name] = _floats(case.quality(result))
            functions[name] = peer
        except Exception as error:
            dropped[name] = _message(error)
    peers = [name for name in functions if name != "ours"]
    del result
    if case.source:
        functions[COPY], first[COPY] = Copy(case.source), 0.0
    if options.threads > 1:
        functions[SINGLE], first[SINGLE] = case.ours, options.threads * first["ours"]
    threads = {name: 1 if name in (COPY, SINGLE) else options.threads for name in functions}
    try:
        with machine.limited_pools(options.threads):
            timings = time_in_turns(functions, first, clock, threads)
    except Exception as error:
        return row | {"failed": _message(error)}
    finally:
        torch.set_num_threads(options.threads)
    row |= {"ours": timings.of("ours"), "dropped": dropped, "peer_quality": peer_quality}
    row["peers"] = {name: timings.of(name) | {"ratio": timings.ratio(name, "ours")} for name in peers}
    if case.source:
        row["copy"], row["copies"] = timings.of(COPY), timings.ratio("ours", COPY)
    if options.threads > 1:
        row["speedup"] = timings.ratio(SINGLE, "ours")
    if memory is not None:
        row["memory"] = memory | {"input": sum(t.nbytes for t in case.source)}
    bound = machine.bound(case.moved, case.flops, options.threads)
    if bound is not None:
        row["bound"] = bound | {"ratio": row["ours"]["min"] / bound["ms"]}
    return row


def _trial(function: Function) -> tuple[Any, float]:
    """The result of a call, and its milliseconds."""
    start = time.perf_counter()
    return function(), (time.perf_counter() - start) * 1e3


def _floats(columns: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in columns.items()}


def _message(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def suites() -> dict[str, Callable[[Options], Iterator[Case]]]:
    """The suites of this package by name: its modules that have a function ``cases``."""
    found = {}
    package = __name__.rpartition(".")[0]
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if info.name != "__main__":
            module = importlib.import_module(f"{package}.{info.name}")
            if hasattr(module, "cases"):
                found[info.name] = module.cases
    return found
