"""The CPU kernels without Python: on this machine, under the sanitizers, and on ARM by cross-compilation and QEMU.

The program tests/native/isa_main.cc runs every op on every instruction set and compares with `scalar` and with plain
loops. Its digest covers all results that the headers promise to be the same everywhere, so two architectures are
compared too.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lc_ext import _native

pytestmark = pytest.mark.slow  # three builds of everything: minutes

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
MAIN = ROOT / "tests" / "native" / "isa_main.cc"
KERNELS = sorted((CSRC / "cpu").glob("*.cc"))
HOST_SOURCES = sorted(path for path in CSRC.glob("*.cc") if path.stem != "bind")

# ---- the flags, out of CMakeLists.txt --------------------------------------------------------------------------------
CMAKE = re.sub(r"#[^\n]*", "", (ROOT / "CMakeLists.txt").read_text())
CMAKE_SETS = dict(re.findall(r"\bset\((\w+) ([^)]*)\)", CMAKE))


def flags_of(pattern):
    """The flags in the one place of CMakeLists.txt that the pattern finds."""
    (found,) = re.findall(pattern, CMAKE)
    return found.split()


EVERYWHERE = re.findall(r"\$<\$<COMPILE_LANGUAGE:CXX>:(-[^>\s]+)>", CMAKE)
IN_KERNELS = flags_of(r"target_compile_options\(lc_\$\{name\} PRIVATE ([^$]*)\$\{ARGN\}\)")
ON_ARM_ALONE = flags_of(r"target_compile_options\(lc_\$\{name\} PRIVATE ([^$)]*)\)")
SANITIZE = flags_of(r"add_compile_options\((-fsanitize=[^)]*)\)")
ISAS = {  # name: (lanes, flags)
    name: (lanes, re.sub(r"\$\{(\w+)\}", lambda m: CMAKE_SETS[m[1]], flags).split())
    for name, lanes, flags in re.findall(r"\blc_isa\((\w+) (\d+)([^)]*)\)", CMAKE)
}
STANDARD = [f"-std=gnu++{CMAKE_SETS['CMAKE_CXX_STANDARD']}", "-DNDEBUG", "-fvisibility=hidden", "-fPIC"]
COMMON = [*STANDARD, *EVERYWHERE, "-Wextra", "-Werror", "-fopenmp", f"-I{CSRC}"]

# ---- the builds ------------------------------------------------------------------------------------------------------
CXX = os.environ.get("CXX", "g++")
ARM_CXX, ARM_NM = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-nm"
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
ON_ARM = platform.machine() in ("aarch64", "arm64")
HOST_ISAS = ["scalar", "neon"] if ON_ARM else ["scalar", "avx2", "avx512", "wide"]
BUILDS = ["plain", "sanitized", "arm"]


def builds_flags(flags, folder):
    probe = folder / "probe.cc"
    probe.write_text("int main() {}")
    return subprocess.run([CXX, *flags, probe, "-o", folder / "probe"], capture_output=True).returncode == 0


def missing(build, folder):
    """Why this machine cannot make or run a build, or None."""
    if build == "arm":
        tools = {ARM_CXX: shutil.which(ARM_CXX), ARM_NM: shutil.which(ARM_NM), "qemu-aarch64": QEMU}
        absent = [name for name, found in tools.items() if not found]
        return f"needs {' and '.join(absent)}: not found" if absent else None
    if shutil.which(CXX) is None:
        return f"needs a C++ compiler: {CXX} is not found"
    if build == "sanitized" and not builds_flags(SANITIZE, folder):
        return f"needs ASan and UBSan: {CXX} cannot link them"
    return None


def compilations(build, folder):
    """(object, command) for each object of a build; builds may share some.

    The NEON kernels are compiled as the extension is. The host's own -O3 code is what all other tests run, so here it
    is -O1, and -O0 where that is enough: what this machine can only link, the kernels of `wide` that have the 8 lanes
    of avx2, and what takes the sanitizers longest. The sanitized build shares the main program, and what is -O0 in the
    plain one, with that.
    """
    compiler = ARM_CXX if build == "arm" else CXX
    for source in [*HOST_SOURCES, MAIN]:
        kind = "plain" if source == MAIN and build == "sanitized" else build
        extra = [*SANITIZE, "-O0"] if kind == "sanitized" else ["-O1"]
        yield folder / f"{kind}.{source.stem}.o", [compiler, *COMMON, *extra, "-c", source]
    for source in KERNELS:
        eight_lanes = "simd8.h" in source.read_text()
        vnni = ["vnni"] * source.stem.startswith("lut_linear")  # the others run avx512's there
        for isa in ["scalar", "neon"] if build == "arm" else [*HOST_ISAS, *vnni]:
            runs = build == "arm" or isa in _native.supported_isas()
            again = not runs or (isa == "wide" and eight_lanes)
            kind = "plain" if build == "sanitized" and again else build
            lanes, flags = ISAS[isa]
            slow = source.stem.startswith("lut_linear")
            extra = {
                "arm": ON_ARM_ALONE if isa == "neon" else ["-O1"],
                "plain": ["-O0" if again else "-O1"],
                "sanitized": [*SANITIZE, "-g0", "-O0" if slow else "-O1"],
            }[kind]
            command = [compiler, *COMMON, *IN_KERNELS, *flags, *extra, f"-DLC_ISA={isa}", f"-DLC_LANES={lanes}"]
            yield folder / f"{kind}.{isa}.{source.stem}.o", [*command, "-c", source]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """For each build: the reason why it is missing, or the program, its objects and what it did."""
    folder = tmp_path_factory.mktemp("isa")
    reasons = {build: missing(build, folder) for build in BUILDS}
    makeable = [build for build in BUILDS if reasons[build] is None]
    objects = {build: dict(compilations(build, folder)) for build in makeable}
    commands = {path: command for build in makeable for path, command in objects[build].items()}

    def compile_one(path):
        return subprocess.run([*commands[path], "-o", path], capture_output=True, text=True)

    def run_one(build):
        launcher = [QEMU] if build == "arm" else []
        environment = {name: value for name, value in os.environ.items() if name != "LC_EXT_ISA"}
        command = [*launcher, folder / build]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    # The slowest first, so that no core is left with one at the end.
    order = sorted(commands, key=lambda path: ("lut_linear" not in path.name, "main" not in path.name, path.name))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, done in zip(order, pool.map(compile_one, order), strict=True):
            assert done.returncode == 0, f"{shlex.join(map(str, commands[path]))}\n{done.stderr}"
        for build in makeable:
            compiler, extra = {
                "arm": (ARM_CXX, ["-static"]),
                "plain": (CXX, []),
                "sanitized": (CXX, ["-fsanitize=address,undefined"]),
            }[build]
            subprocess.run([compiler, "-fopenmp", *extra, *objects[build], "-o", folder / build], check=True)
        ran = dict(zip(makeable, pool.map(run_one, makeable), strict=True))
    return reasons, {build: sorted(objects[build]) for build in makeable}, ran


@pytest.fixture
def ran(programs):
    """ran(build): what the program of a build did."""
    reasons, _, done = programs

    def ran(build):
        if reasons[build]:
            pytest.skip(reasons[build])
        return done[build]

    return ran


def listed(done):
    """The instruction sets that the program ran on."""
    return re.search(r"^isas: (.*)$", done.stdout, re.MULTILINE)[1].split()


def test_flags_are_those_of_cmake():
    assert set(ISAS) == {"scalar", "avx2", "avx512", "wide", "vnni", "neon"}
    assert ISAS["neon"] == ("4", []) and ISAS["scalar"] == ("1", [])
    assert "-mavx2" in ISAS["avx2"][1] and "-mavx512f" in ISAS["avx512"][1]
    assert {"-ffp-contract=off", "-Wall"} <= set(EVERYWHERE)
    assert {"-O3", "-fno-exceptions", "-fno-rtti"} <= set(IN_KERNELS)
    assert any("address" in flag and "undefined" in flag for flag in SANITIZE)
    assert not any("fast-math" in flag for flag in [*EVERYWHERE, *IN_KERNELS, *SANITIZE])


@pytest.mark.parametrize("build", BUILDS)
def test_every_op_is_right_on_every_isa(ran, build):
    done = ran(build)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed", done.stdout.splitlines()[-1])
    assert counts, said
    assert int(counts[1]) > 20_000 and int(counts[2]) == 0, said
    assert done.stderr == "", said
    assert listed(done) == (["scalar", "neon"] if build == "arm" else _native.supported_isas())


@pytest.mark.parametrize("build", ["sanitized", "arm"])
def test_results_that_are_promised_exactly_are_the_same_in_every_build(ran, build):
    digests = [re.search(r"^digest: ([0-9a-f]{16})$", ran(b).stdout, re.MULTILINE)[1] for b in ("plain", build)]
    assert digests[0] == digests[1]


def test_neon_objects_define_no_weak_symbol(programs):
    reasons, objects, _ = programs
    if reasons["arm"]:
        pytest.skip(reasons["arm"])
    neon = [path for path in objects["arm"] if path.name.startswith(("arm.neon.", "arm.scalar."))]
    assert len(neon) == 2 * len(KERNELS)
    for path in neon:
        command = [ARM_NM, "--defined-only", "-C", path]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert symbols
        assert [line for line in symbols if line.split()[1] in "WwVvu"] == [], path.name
