"""The host emulation of CUDA: it computes what CUDA does, and it catches the defects that it promises to catch.

The program tests/native/emu_main.cc is built three times: plain, under ASan and UBSan, and with fibers by ucontext
instead of assembly.
"""

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
PLANTED = CSRC / "cuda" / "planted_bugs.cu"
SOURCES = [CSRC / "cuda" / "emu.cc", CSRC / "cuda" / "assign.cu", PLANTED, ROOT / "tests" / "native" / "emu_main.cc"]

CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-DLC_EMU", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
BUILDS = ["plain", "sanitized", "ucontext"]
SEEDS = [0, 1, 2, 7]  # ascending, descending, two shuffles

POISON = "cbcbcbcb"
# How each planted bug shows. "reported": an lc::emu::Error, under every seed and in every build, whose text has this;
# "sanitizer": ASan or UBSan stops the program with this; "poison": the output has words of shared memory that was
# never written; "schedules": the output depends on the seed.
REPORTED = {
    "barrier_in_some_threads": "a thread ends while [0-9]+ threads of its block wait at __syncthreads|"
    "__syncthreads .* is reached after [0-9]+ threads of the block have ended",
    "barrier_in_each_branch": "divergent barrier: a thread arrives at __syncthreads .* wait at __syncthreads",
    "return_before_barrier": "a thread ends while [0-9]+ threads of its block wait at __syncthreads|"
    "__syncthreads .* is reached after [0-9]+ threads of the block have ended",
    "return_before_shuffle": "lane [0-9]+ ends while lanes 0x[0-9a-f]+ wait for it at __shfl_down_sync|"
    "__shfl_down_sync .*: mask 0xffffffff names lanes 0x[0-9a-f]+ that have ended",
    "shuffle_in_each_branch": "divergent warp: lane [0-9]+ calls __shfl_xor_sync .* wait at __shfl_xor_sync",
    "shuffle_caller_not_in_mask": "__shfl_xor_sync .*: lane [0-9]+ is not in its own mask 0xffff",
    "shuffle_source_not_in_mask": "__shfl_sync .*: lane [0-9]+ reads lane 20, which does not take part",
    "deadlock": "deadlock in block .*: 16 threads wait at __shfl_sync .*; 48 threads wait at __syncthreads ",
    "too_much_static_shared": "65536 bytes of static shared memory: more than 48 KiB",
    "too_much_dynamic_shared": "233472 bytes of dynamic shared memory: more than 232448",
    "empty_grid": r"impossible grid \(0,1,1\)",
    "too_many_threads": r"impossible block \(1025,1,1\)",
}
SANITIZED = {
    "static_shared_out_of_bounds": "index 64 out of bounds for type 'float",
    "dynamic_shared_out_of_bounds": "AddressSanitizer: use-after-poison",
    "dynamic_shared_written_into_static": "AddressSanitizer: use-after-poison",
    "global_out_of_bounds": "AddressSanitizer: heap-buffer-overflow",
    "misaligned_float4": "misaligned address .* for type 'const struct float4'",
    "int_overflow": "signed integer overflow: 65536",
}
POISONED = ["missing_barrier", "missing_syncwarp", "uninitialised_shared", "shared_of_the_block_before"]
SCHEDULES = ["missing_barrier", "missing_second_barrier", "missing_syncwarp", "blocks_write_the_same"]


def compiles(flags, folder):
    probe = folder / "probe.cc"
    probe.write_text("int main() {}")
    return subprocess.run([CXX, *flags, probe, "-o", folder / "probe"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The program of each build that this machine can make."""
    if shutil.which(CXX) is None:
        pytest.skip(f"needs a C++ compiler: {CXX} is not found")
    folder = tmp_path_factory.mktemp("emulation")
    extra = {"plain": [], "ucontext": ["-DLC_EMU_UCONTEXT"]}
    if compiles(SANITIZE, folder):
        extra["sanitized"] = SANITIZE
    # Only emu.cc knows how fibers are switched: the ucontext build takes its other objects from the plain one.
    objects = {(b, s): folder / f"{s.name}.{b}.o" for b in extra for s in SOURCES if b != "ucontext" or s == SOURCES[0]}

    def compile_one(build, source):
        command = [CXX, *FLAGS, *extra[build], "-x", "c++", "-c", source, "-o", objects[build, source]]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda key: compile_one(*key), objects):
            assert done.returncode == 0, done.stderr
    for build in extra:
        linked = [objects.get((build, s), objects["plain", s]) for s in SOURCES]
        subprocess.run([CXX, *extra[build], *linked, "-o", folder / build], check=True)
    return {build: folder / build for build in extra}


@pytest.fixture
def run(programs):
    """run(build, *arguments): what the program of a build did."""

    def run(build, *arguments):
        if build not in programs:
            pytest.skip(f"needs ASan and UBSan: {CXX} cannot link them")
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # the stacks of a failed launch are not unwound
        command = [programs[build], *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    return run


@pytest.fixture
def run_bug(run):
    """run_bug(build, name, seed): the same for a planted bug."""
    names = run("plain", "bugs").stdout.split()
    return lambda build, name, seed: run(build, "bug", names.index(name), seed)


def outputs(run_bug, name):
    """The output of a planted bug under each seed."""
    runs = [run_bug("plain", name, seed) for seed in SEEDS]
    assert all(r.returncode == 0 and r.stdout.startswith("output: ") for r in runs), [r.stdout for r in runs]
    return [r.stdout.split()[1:] for r in runs]


def lines_of_kernel(name):
    """The lines of planted_bugs.cu that hold a kernel."""
    text = PLANTED.read_text()
    start = text.index(f"void {name}(")
    first = text.count("\n", 0, start) + 1
    return range(first, first + text[start : text.index("\n}", start)].count("\n") + 1)


def test_each_planted_bug_is_expected_to_show(run):
    listed = run("plain", "bugs").stdout.split()
    assert sorted(listed) == sorted({*REPORTED, *SANITIZED, *POISONED, *SCHEDULES})


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", REPORTED)
def test_bug_is_reported(run_bug, build, name):
    for seed in SEEDS:
        done = run_bug(build, name, seed)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert re.search(f"^reported: .*({REPORTED[name]})", done.stdout), f"seed {seed}: {done.stdout}"
        where, launched_at = done.stdout.split("[launched at ")
        assert re.search(r"planted_bugs.cu:\d+\]", launched_at)
        # The places are those of the calls in the kernel.
        lines = [int(line) for line in re.findall(r"planted_bugs\.cu:(\d+)", where)]
        assert all("_sync" in PLANTED.read_text().split("\n")[line - 1] for line in lines), where
        assert all(line in lines_of_kernel(name) for line in lines), where
        assert len(set(lines)) == (2 if "_in_each_branch" in name or name == "deadlock" else bool(lines))


@pytest.mark.parametrize("name", SANITIZED)
def test_bug_is_stopped_by_a_sanitizer(run_bug, name):
    for seed in SEEDS:
        done = run_bug("sanitized", name, seed)
        assert done.returncode != 0
        assert re.search(SANITIZED[name], done.stderr), f"seed {seed}: {done.stderr}"
        assert re.search(r"planted_bugs\.cu:\d+", done.stderr)


@pytest.mark.parametrize("name", POISONED)
def test_bug_shows_as_poison(run_bug, name):
    for output in outputs(run_bug, name):
        assert POISON in output


@pytest.mark.parametrize("name", SCHEDULES)
def test_bug_shows_as_a_difference_between_schedules(run_bug, name):
    seen = outputs(run_bug, name)
    assert len({tuple(output) for output in seen}) > 1
    assert seen == outputs(run_bug, name), "a seed gives the same schedule each time"


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_assign_is_right(run, build, seed):
    done = run(build, "assign", seed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_emulated_features_do_as_the_manual_says(run, build, seed):
    done = run(build, "features", seed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
