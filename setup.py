"""Builds the native modules with CMake; everything else is in pyproject.toml.

Options come from the environment, since pip has no simple way to pass them: LC_EXT_CUDA=ON|OFF|AUTO, LC_EXT_EMU=ON,
LC_EXT_SANITIZE=ON, LC_EXT_BUILD_DIR, and CMAKE_ARGS for anything else.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OPTIONS = ("LC_EXT_CUDA", "LC_EXT_CUDA_ARCHS", "LC_EXT_EMU", "LC_EXT_SANITIZE")


class CMakeBuild(build_ext):
    """One CMake project makes every module; its build folder is kept, so that a second build is quick."""

    def run(self):
        import cmake
        import ninja
        import pybind11

        build = os.environ.get("LC_EXT_BUILD_DIR", ROOT / "build" / f"cmake-{sys.implementation.cache_tag}")
        target = ROOT / "lc_ext" if self.inplace else Path(self.build_lib).resolve() / "lc_ext"
        settings = {
            "CMAKE_MAKE_PROGRAM": Path(ninja.BIN_DIR) / "ninja",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        } | {name: os.environ[name] for name in OPTIONS if name in os.environ}
        run_cmake = [str(Path(cmake.CMAKE_BIN_DIR) / "cmake")]
        subprocess.run(
            [*run_cmake, "-S", ROOT, "-B", build, "-G", "Ninja"]
            + [f"-D{name}={value}" for name, value in settings.items()]
            + shlex.split(os.environ.get("CMAKE_ARGS", "")),
            check=True,
        )
        subprocess.run([*run_cmake, "--build", build], check=True)
        subprocess.run([*run_cmake, "--install", build, "--prefix", target], check=True)

    def get_source_files(self):
        return []


setup(ext_modules=[Extension("lc_ext._C", [])], cmdclass={"build_ext": CMakeBuild})
