#!/usr/bin/env bash
# Build the native modules with ASan and UBSan, apart from the ordinary ones, and run the kernel tests on them.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
tree=build/sanitized
rm -rf "$tree"/lc_ext && mkdir -p "$tree"
cp -r lc_ext "$tree"/lc_ext && rm -f "$tree"/lc_ext/*.so
LC_EXT_SANITIZE=ON LC_EXT_EMU=ON LC_EXT_CUDA=OFF LC_EXT_BUILD_DIR="$PWD/build/cmake-sanitized" \
  "$python" setup.py --quiet build_ext --build-lib "$tree" > build/sanitized.log 2>&1 || { cat build/sanitized.log; exit 1; }
# torch leaks by design and loads before the sanitizer's runtime could, hence the preload.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$PWD/$tree:$PWD/python"
tests=$PWD/tests
cd "$tree" # python -m puts the current folder first, so the sanitized package is the one that is found
"$python" - <<'PY'
import os, lc_ext._C as native
assert os.path.realpath(native.__file__).startswith(os.getcwd()), native.__file__
assert b"__asan_init" in open(native.__file__, "rb").read()
PY
# The tests of every kernel, and of the ops that have native code without a kernel of their own.
shopt -s nullglob # a kernel of several files has its tests under the name of the first
files=("$tests"/test_prune_penalties.py "$tests"/test_binary_plus_sparse.py)
for kernel in "$tests"/../csrc/cpu/*.cc; do files+=("$tests/test_$(basename "$kernel" .cc)"*.py); done
exec "$python" -m pytest -p no:cacheprovider -m "not slow" "${files[@]}"
