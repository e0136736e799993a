# Every target does its own set-up in .venv and is quick when nothing has changed. Needs python3, a C++ compiler, make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS := --quiet --disable-pip-version-check
SOURCES := $(wildcard csrc/*.h csrc/*.cc csrc/cpu/* csrc/cuda/*) CMakeLists.txt setup.py

.PHONY: demo test lint bench build sanitize clean
.DEFAULT_GOAL := build

build: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/python -m lc.demo

test: $(VENV)/.built
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell git ls-files 'csrc/*.h' 'csrc/*.cc' 'csrc/*.cu' 'tests/native/*.cc')

# make bench BENCH="kmeans1d --threads 1,2" JSON=before.json
BENCH ?=
JSON ?= build/bench.json
bench: $(VENV)/.built
	$(BIN)/python -m lc_ext.bench $(BENCH) --json $(JSON)

# The kernel tests again, on a build with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(VENV)/.built
	tests/run_sanitized.sh $(BIN)/python
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build demo lc_ext/*.so *.egg-info

# torch first, at one version: an unpinned one may bring gigabytes of CUDA. No build isolation here, so that the build
# folder can be used again; tests/check_package.sh builds with isolation.
$(VENV)/.installed: pyproject.toml Makefile
	@echo "setting up .venv: torch, tools, native modules (minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "python3 cannot make a virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -c 'import sysconfig, pathlib, sys; \
	  sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' \
	  || { echo "Python.h is not there: on Debian, apt-get install python3-dev"; exit 1; }
	@$(BIN)/python -m pip install $(PIP_OPTIONS) --upgrade "pip>=24"
	@$(BIN)/python -m pip install $(PIP_OPTIONS) "$(TORCH)" "setuptools>=77" "pybind11>=2.13" "cmake>=3.24" ninja
	@LC_EXT_EMU=ON $(BIN)/python -m pip install $(PIP_OPTIONS) --no-build-isolation -e '.[demo,test,lint]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@mkdir -p build
	@LC_EXT_EMU=ON $(BIN)/python setup.py --quiet build_ext --inplace > build/build.log 2>&1 || { cat build/build.log; exit 1; }
	@touch $@
