"""Our rows in the peers' own benchmark scripts, which are run as they are.

    python benchmarks/peers_adapter.py --peers ../shared/peers bench1_kmeans cold
    NT=1 python benchmarks/peers_adapter.py --peers ../shared/peers bench2_topk

Such a script has dictionaries of rows, name to function, and times them under ``if __name__ == "__main__"``. Between
the two our rows go in; those of tables that are made while it runs go in at its calls of ``bench(rows, ...)``. What
follows the script's name is for the script, as are its environment variables. A peer that is not installed becomes a
failed row.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OPTIONAL = ("sklearn", "faiss", "flash1dkmeans", "ckmeans", "kmeans1d", "fbpca")
Rows = dict[str, Callable[[], Any]]


class Absent(types.ModuleType):
    """Stands in for a peer that is not installed: it can be imported, and its functions do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def stand_in_for_absent() -> list[str]:
    """The names of the optional peers that are not installed, each with a stand-in."""
    absent = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    for name in absent:
        for module in (name, f"{name}.cluster", f"{name}.utils", f"{name}.utils.extmath"):
            sys.modules[module] = Absent(module)
    return absent


def ours(script: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], Callable[[Mapping[str, object]], Rows]]:
    """Rows for the dictionaries of the script, by name of the dictionary; and a function of rows for those that it
    makes while it runs, out of its variables at that time."""
    import torch

    from lc_ext import ops

    def reusing(op: Callable[..., Any]) -> Callable[..., Any]:
        """``op`` into the memory of its previous result for the tensors at the same addresses."""
        previous: dict[object, Any] = {}

        def call(x: Any, *args: Any, **kwargs: Any) -> Any:
            tensors = x if isinstance(x, list) else [x]
            key = (tuple((t.data_ptr(), t.shape) for t in tensors), args)
            if key not in previous:
                previous.clear()
                previous[key] = op(x, *args, **kwargs)
            return op(x, *args, **kwargs, out=previous[key])

        return call if "out" in (op.__kwdefaults__ or {}) else op

    kmeans1d, topk_prune = reusing(ops.kmeans1d), reusing(ops.topk_prune)

    def cluster(w: Any, k: int, init: Any = None) -> tuple[Any, Any]:
        start = None if init is None else torch.from_numpy(init)
        result = kmeans1d(torch.from_numpy(w), k, init=start)
        return result.codebook.numpy(), result.codes.numpy()

    def cluster_all(ws: list[Any], k: int, init: Any = None) -> list[tuple[Any, Any]]:
        start = None if init is None else torch.stack([torch.from_numpy(c) for c in init])
        result = kmeans1d([torch.from_numpy(w) for w in ws], k, init=start)
        return [(c.numpy(), codes.numpy()) for c, codes in zip(result.codebook, result.codes, strict=True)]

    tables: dict[str, dict[str, Any]] = {
        "COLD": {"lc_ext k-means": (cluster, 1e12)},
        "WARM": {"lc_ext k-means, warm": (lambda w, c: cluster(w, len(c), c), 1e12)},
        "LIST": {"lc_ext topk_prune": lambda ts, k: topk_prune(ts, k).values},
        "ROWS": {"lc_ext topk_prune": lambda w, k: topk_prune(w, k).values},
        "M24": {},
    }
    if "mask" in (ops.topk_prune.__kwdefaults__ or {}):
        with_bits = reusing(ops.topk_prune)
        for table in ("LIST", "ROWS"):
            tables[table]["lc_ext topk_prune, bit mask"] = lambda x, k: with_bits(x, k, mask="bits").values
    if hasattr(ops, "nm_prune"):
        nm_prune = reusing(ops.nm_prune)
        tables["M24"] = {"lc_ext nm_prune": lambda w: nm_prune(w, 2, 4).values}
    if "VALS" in script:
        tables["ROWS"] = {"lc_ext truncated_svd": lambda a, r: tuple(ops.truncated_svd(a, r))}
    if "ort_row" in script:
        tables["ROWS"] = low_bit_rows()
    if "sp" in script:
        tables["ROWS"] = sparse_rows()

    def made_while_running(rows: Mapping[str, object]) -> Rows:
        now = types.SimpleNamespace(**script)
        if rows is script.get("BC"):
            return {"lc_ext k-means, list": lambda: cluster_all(now.Ls, now.K)}
        if rows is script.get("BW"):
            return {"lc_ext k-means, list, warm": lambda: cluster_all(now.W2, now.K, now.opts)}
        if "V0" in script and any("WARM" in name for name in rows):
            vh = now.V0.T.contiguous()
            return {"lc_ext truncated_svd, warm": lambda: tuple(ops.truncated_svd(now.A, now.r, warm=vh))}
        return {}

    return tables, made_while_running


def low_bit_rows() -> dict[str, Any]:
    """Weights of a codebook by k-means, 1 to 8 bits, in each arithmetic. Their error is that of the codebook, too."""
    from lc_ext import ops
    from lc_ext.nn import LUTLinear

    def maker(bits: int, mode: str) -> Callable[[Any], dict[str, Any]]:
        def make(weight: Any) -> dict[str, Any]:
            codebook, codes, *_ = ops.kmeans1d(weight, 2**bits)
            layer = LUTLinear.from_codes(codes.view(weight.shape), codebook, bits=bits, mode=mode)
            return {"run": layer, "bytes": layer.nbytes}

        return make

    return {
        f"lc_ext {bits} bits, {mode}": maker(bits, mode)
        for bits in (1, 2, 3, 4, 8)
        for mode in ("exact", "fast", "int8")
    }


def sparse_rows() -> dict[str, Any]:
    """The same weights, exactly."""
    import torch

    from lc_ext.nn import NMLinear, SparseLinear

    def maker(layer: Any) -> Callable[[Any], dict[str, Any]]:
        def make(weight: Any) -> dict[str, Any]:
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = torch.nn.Parameter(weight)
            packed = layer.from_dense(linear)
            return {"run": packed, "bytes": packed.nbytes}

        return make

    return {"lc_ext SparseLinear": maker(SparseLinear), "lc_ext NMLinear 2:4": maker(NMLinear)}


def failing(name: str) -> Callable[[], Any]:
    def row() -> None:
        raise ModuleNotFoundError(f"{name} is not installed")

    return row


def run(peers: Path, name: str, arguments: list[str], results: Path) -> None:
    """Run the script ``name`` of the folder ``peers`` with our rows in it."""
    sys.path.insert(0, str(peers))
    common = importlib.import_module("common")  # first: it sets the environment of the thread pools
    common.RES = str(results)
    absent = stand_in_for_absent()
    path = peers / f"{name}.py"
    tree = ast.parse(path.read_text(), str(path))
    at = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.If) and "__main__" in ast.dump(node.test))
    script: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    sys.argv = [str(path), *arguments]
    exec(compile(ast.Module(tree.body[:at], []), str(path), "exec"), script)
    tables, made_while_running = ours(script)
    for table, rows in tables.items():
        if table in script:
            script[table] = rows | script[table]

    def bench(rows: Mapping[str, Callable[[], Any]], **options: Any) -> Any:
        missing = {row: peer for row in rows for peer in absent if peer in row and not row.startswith("lc_ext")}
        complete = made_while_running(rows) | {
            row: failing(missing[row]) if row in missing else rows[row] for row in rows
        }
        return common.bench(complete, **options)

    script["bench"] = bench
    importlib.import_module("torch").set_num_threads(common.NT)
    os.chdir(peers)  # one script imports a module that lies beside it
    exec(compile(ast.Module(tree.body[at:], []), str(path), "exec"), script)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the scripts")
    parser.add_argument("--results", type=Path, default=Path("build/peers"), help="the folder for their JSON lines")
    parser.add_argument("script", help="bench1_kmeans, bench2_topk, bench3_svd, bench4_lowbit or bench5_sparse")
    parser.add_argument("arguments", nargs="*", help="for the script")
    args = parser.parse_args()
    run(args.peers.resolve(), args.script.removesuffix(".py"), args.arguments, args.results.resolve())


if __name__ == "__main__":
    main()
