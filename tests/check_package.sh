#!/usr/bin/env bash
# Build a wheel with build isolation (so without torch), install it apart from the checkout, and use it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git clone --quiet . "$scratch/clone"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch" "$scratch/clone"
"$python" -m pip install --quiet --no-deps --target "$scratch/site" "$scratch"/lc_ext-*.whl
cd "$scratch"
PYTHONPATH="$scratch/site" "$python" - <<'PY'
import torch
import lc, lc_ext
from lc_ext import ops
assert "/site/" in lc_ext.__file__ and "/site/" in lc.__file__, (lc_ext.__file__, lc.__file__)
assert ops.kmeans1d(torch.tensor([0.0, 1.0, 5.0]), 2).codebook.tolist() == [0.5, 5.0]
from lc_ext.bench import harness
assert "assign" in harness.suites()
print("wheel: built without torch, installed and used")
PY
if ldd "$scratch"/site/lc_ext/_C*.so | grep -E 'torch|c10|cuda'; then
  echo "the native module links torch or CUDA"; exit 1
fi
