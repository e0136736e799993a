"""The benchmark runner: verified first, timed in turns, compared by ratios."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lc_ext.bench import __main__, harness, machine, report
from lc_ext.bench.harness import Case, Clock, Options

TINY = ["--quick", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case(**changes):
    x = torch.arange(1000.0)
    fields = {
        "label": {"n": 1000, "kind": "ramp"},
        "ours": lambda: x.sum(),
        "verify": lambda total: {"error": abs(float(total) - 499500)},
        "peers": {"numpy": lambda: x.numpy().sum()},
        "quality": lambda total: {"error": abs(float(total) - 499500)},
        "source": [x],
        "moved": 4000,
    }
    return Case(**fields | changes)


def use_suite(monkeypatch, *cases):
    monkeypatch.setattr(harness, "suites", lambda: {"toy": lambda options: iter(cases)})


@pytest.mark.parametrize("op", harness.suites())
def test_every_suite_finds_its_results_right(op):
    labels = []
    for c in harness.suites()[op](Options(quick=True)):
        assert isinstance(c.verify(c.ours()), dict)
        labels.append(json.dumps(c.label))
    assert 0 < len(labels) == len(set(labels))


def test_json_holds_what_was_measured(capsys, tmp_path):
    path = tmp_path / "new" / "bench.json"
    command = [*TINY, "assign", "decode", "--sizes", "64,1e4", "--no-peers", "--markdown"]
    assert __main__.main([*command, "--json", str(path)]) == 0
    found = report.read(path)
    assert {"cpu", "isa", "threads", "torch", "load", "date"} <= found["header"].keys()
    assert {row["op"] for row in found["rows"]} == {"assign", "decode"}
    for row in found["rows"]:
        assert row["ours"]["min"] <= row["ours"]["median"]
        assert not row["peers"]
    shown = capsys.readouterr().out
    assert "assign" in shown and " 10000 |" in shown


def test_two_threads_peers_and_a_pattern(capsys, tmp_path):
    path = tmp_path / "bench.json"
    command = [*TINY, "as*", "--sizes", "1e3", "--k", "4,16", "--threads", "1,2", "--isa", "scalar"]
    assert __main__.main([*command, "--dtype", "bfloat16", "--clock", "cpu", "--json", str(path)]) == 0
    found = report.read(path)
    assert found["header"]["isa"] == "scalar"
    assert [(row["label"]["k"], row["threads"]) for row in found["rows"]] == [(4, 1), (16, 1), (4, 2), (16, 2)]
    assert all("torch.bucketize" in row["peers"] and row["copies"]["min"] > 0 for row in found["rows"])
    assert ["speedup" in row for row in found["rows"]] == [False, False, True, True]
    assert "speed-up" in capsys.readouterr().out


def test_list_names_the_suites_and_an_unknown_one_is_refused(capsys):
    assert __main__.main(["--list"]) == 0
    assert "assign" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nonesuch"):
        __main__.main(["nonesuch"])
    with pytest.raises(SystemExit):
        __main__.main(["assign", "--sizes", "1.5"])


def test_a_wrong_result_fails_and_is_not_timed(monkeypatch, capsys, tmp_path):
    def verify(total):
        raise AssertionError("off by one")

    def never():
        raise RuntimeError("ours is broken")

    calls = []

    def works_for_a_while():
        calls.append(1)
        return 499500.0 if len(calls) < 7 else never()

    later = case(ours=works_for_a_while, label={"n": 3})
    use_suite(monkeypatch, case(verify=verify), case(ours=never, label={"n": 2}), later, case())
    path = tmp_path / "bench.json"
    assert __main__.main([*TINY, "--json", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "AssertionError: off by one" in shown
    assert "RuntimeError: ours is broken" in shown
    rows = report.read(path)["rows"]
    assert ["ours" in row for row in rows] == [False, False, False, True]


def test_a_suite_that_breaks_between_cases_fails(monkeypatch, capsys):
    def cases(options):
        yield case()
        raise OSError("no data")

    monkeypatch.setattr(harness, "suites", lambda: {"toy": cases})
    assert __main__.main(TINY) == 1
    assert "no data" in capsys.readouterr().out


def test_a_broken_peer_is_dropped_with_its_message(monkeypatch, capsys):
    def broken():
        raise RuntimeError("needs another version\nof something")

    label = {"n": 1000, "shape": [3, 4], "kind": "[b]"}  # nothing that rich should read as markup
    use_suite(monkeypatch, case(peers={"broken": broken, "numpy": lambda: 499500.0}, label=label))
    assert __main__.main(TINY) == 0
    shown = capsys.readouterr().out
    assert "dropped broken" in shown and "needs another version" in shown and "of something" not in shown
    assert "numpy" in shown and "[3, 4]" in shown and "[b]" in shown


def rows_with(copies, peer=2.0):
    times = {"min": copies, "median": copies}
    ratio = {"min": peer, "median": peer}
    row = {"op": "toy", "label": {"n": 1000}, "threads": 1, "dtype": "float32", "ours": times, "quality": {}}
    return [row | {"copies": times, "peers": {"numpy": times | {"ratio": ratio}}}]


def test_compare_goes_by_the_ratio_to_the_yardstick():
    old = rows_with(1.0)
    assert report.compare(old, rows_with(1.1), 1.15)[1] == 0
    table, slower = report.compare(old, rows_with(1.3), 1.15)
    assert (slower, table.row_count) == (1, 1)
    table, slower = report.compare(old, rows_with(0.5), 1.15)
    assert (slower, table.row_count) == (0, 1)  # better, and said
    noisy = rows_with(1.3)
    noisy[0]["copies"] = {"min": 1.3, "median": 1.0}
    assert report.compare(old, noisy, 1.15)[1] == 0  # the two ratios do not agree on it
    assert report.compare([*old, {"op": "toy", "failed": "", "label": {}}], old, 1.15)[1] == 0
    assert report.compare([], old, 1.15)[1] == 0


def test_compare_takes_the_best_peer_of_both_runs_where_there_is_no_copy():
    old, new = rows_with(1.0, peer=2.0), rows_with(1.0, peer=1.5)
    for row in (*old, *new):
        del row["copies"]
    assert report.compare(old, new, 1.15)[1] == 1
    assert report.compare(new, old, 1.15)[1] == 0
    new[0]["peers"] = {}
    assert report.compare(old, new, 1.15)[1] == 0


def test_command_line_flags_a_doctored_regression(monkeypatch, capsys, tmp_path):
    use_suite(monkeypatch, case())
    path = tmp_path / "old.json"
    assert __main__.main([*TINY, "--json", str(path)]) == 0
    assert __main__.main([*TINY, "--compare", str(path), "--tolerance", "100"]) == 0
    assert "no change beyond 100x" in capsys.readouterr().out
    old = report.read(path)
    old["rows"][0]["copies"] = {"min": 1e-4, "median": 1e-4}
    path.write_text(json.dumps(old))
    assert __main__.main([*TINY, "--compare", str(path), "--tolerance", "100"]) == 1
    assert "REGRESSION" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was measured by wall time"):
        __main__.main([*TINY, "--clock", "cpu", "--compare", str(path)])
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold a header and rows"):
        __main__.main([*TINY, "--compare", str(path)])


def test_turns_are_interleaved_and_a_slow_function_sits_out():
    calls = []

    def note(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    functions = {name: lambda name=name: note(name, 0.002) for name in ("a", "b")}
    functions["slow"] = lambda: note("slow", 1.0)
    first = {"a": 2.0, "b": 2.0, "slow": 1000.0}
    timings = harness.time_in_turns(functions, first, Clock(seconds=0.01), dict.fromkeys(functions, 1))
    assert "slow" not in calls
    assert timings.of("slow") == {"min": 1000.0, "median": 1000.0, "turns": 1}
    assert timings.of("a")["turns"] >= 5
    assert timings.ratio("slow", "a")["median"] > 100
    assert 0.5 < timings.ratio("a", "b")["min"] < 2
    assert "a" in calls[calls.index("b") :]


def test_quick_functions_are_repeated_within_a_turn():
    calls = []
    harness.time_in_turns({"f": lambda: calls.append(1)}, {"f": 0.0}, Clock(seconds=0.01), {"f": 1})
    assert len(calls) > 1000


def test_bound_is_the_larger_of_bytes_and_operations():
    assert machine.bound(0, 0.0, 1) is None
    memory, flops = machine.bound(1 << 20, 1.0, 1), machine.bound(1, 1e9, 1)
    assert (memory["by"], flops["by"]) == ("memory", "flops")
    assert memory["ms"] > 0 and flops["ms"] > 0


@pytest.mark.skipif(not machine._CLEAR.exists(), reason="only Linux keeps a high-water mark")
def test_extra_memory_counts_what_a_call_needs_at_its_peak():
    def call():
        torch.zeros(4_000_000)  # 16 MB, gone after it
        return torch.zeros(1_000_000)

    found = machine.extra_memory(call, 1)
    assert 15e6 < found["warm"] <= found["cold"] < 25e6
    with pytest.raises(RuntimeError, match="broken"):
        machine.extra_memory(lambda: (_ for _ in ()).throw(RuntimeError("broken")), 1)


def test_copies_are_of_every_tensor_of_the_source():
    source = [torch.arange(5.0), torch.arange(3, dtype=torch.uint8)]
    copy = harness.Copy(source)
    copy()
    assert all(torch.equal(a, b) for a, b in zip(copy.buffers, source, strict=True))


COMMON = "NT = 1\ndef bench(rows, **options): return {name: row for name, row in rows.items()}"
PEERS = """
import common
from common import bench
import flash1dkmeans, numpy as np
fl = lambda w, k: flash1dkmeans.kmeans_1d(np.linspace(0, 1, 9), k)
COLD = {"flash1dkmeans (peer)": (fl, 1e12), "zeros": (lambda w, k: (np.zeros(k), np.zeros(w.size)), 1e12)}
WARM = {}
if __name__ == "__main__":
    import sys
    fl(None, 2)
    w, K = np.linspace(-1, 1, 100, dtype=np.float32), 4
    for name, row in bench({name: (lambda f=f: f(w, K)) for name, (f, limit) in COLD.items()}).items():
        try:
            print(sys.argv[1:], name, len(row()[0]), len(row()[1]))
        except ModuleNotFoundError as error:
            print(error)
    Ls, BC = [w, w[:50]], {"zeros": lambda: None}
    print([len(codes) for _, codes in bench(BC, reps=1)["lc_ext k-means, list"]()])
"""


def test_our_rows_go_into_the_peers_scripts(tmp_path):
    (tmp_path / "common.py").write_text(COMMON)
    (tmp_path / "toy.py").write_text(PEERS)
    adapter = Path(__file__).parent.parent / "benchmarks" / "peers_adapter.py"
    command = [sys.executable, str(adapter), "--peers", str(tmp_path), "toy", "cold"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *rows, batch = done.stdout.splitlines()
    assert rows[0] == "['cold'] lc_ext k-means 4 100"
    assert "flash1dkmeans" in rows[1] and (importlib.util.find_spec("flash1dkmeans") or "not installed" in rows[1])
    assert rows[2] == "['cold'] zeros 4 100"
    assert batch == "[100, 50]"
