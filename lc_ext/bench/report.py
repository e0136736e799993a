"""Rows as tables, as JSON, and beside those of another run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

Row = Mapping[str, Any]
_RESOLVED = 2_000_000  # bytes of input from which the memory column is not mostly the resolution of the measurement


def table(title: str, rows: Sequence[Row], markdown: bool = False) -> Table:
    """The rows of one suite. A column that none of them fills is left out."""
    labels = list(dict.fromkeys(name for row in rows for name in row["label"]))
    several = len({row["threads"] for row in rows}) > 1
    quality = list(dict.fromkeys(name for row in rows for name in row["quality"]))
    fill: dict[str, Callable[[Row], str]] = {name: _label_of(name) for name in labels}
    fill |= {
        "threads": lambda r: str(r["threads"]) if several else "-",
        "min ms": lambda r: _number(r["ours"]["min"]),
        "med": lambda r: _number(r["ours"]["median"]),
        "ns/element": lambda r: _number(r["ours"]["min"] * 1e6 / r["label"]["n"]),
        "speed-up": lambda r: _number(r["speedup"]["min"]),
        "best peer": lambda r: best_peer(r)[0],
        "its ms": lambda r: _number(best_peer(r)[1]["min"]),
        "peer / ours": lambda r: _number(best_peer(r)[1]["ratio"]["min"]),
        "copies": lambda r: _number(r["copies"]["min"]),
        "copies med": lambda r: _number(r["copies"]["median"]),
        "bound ms": lambda r: f"{_number(r['bound']['ms'])} {r['bound']['by'][0]}",
        "/ bound": lambda r: _number(r["bound"]["ratio"]),
    }
    for name in quality:
        fill |= {name: _quality_of(name), f"peer {name}": _peer_quality_of(name)}
    fill |= {
        "extra MB": lambda r: _number(r["memory"]["cold"] / 1e6),
        "warm": lambda r: _number(r["memory"]["warm"] / 1e6),
        "x input": lambda r: _number(r["memory"]["cold"] / r["memory"]["input"]) if _large(r) else "-",
    }
    columns = {name: [_cell(cell, row) for row in rows] for name, cell in fill.items()}
    columns = {name: cells for name, cells in columns.items() if any(c != "-" for c in cells)}
    result = _table(title, markdown)
    for name in columns:
        result.add_column(name, justify="left" if name == "best peer" else "right", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        result.add_row(*map(escape, cells))
    return result


def _table(title: str, markdown: bool = False) -> Table:
    if markdown:
        return Table(box=box.MARKDOWN)  # the caller prints the title: above this box rich would pad it with blanks
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _label_of(name: str) -> Callable[[Row], str]:
    return lambda row: _label(row["label"][name])


def _quality_of(name: str) -> Callable[[Row], str]:
    return lambda row: _number(row["quality"][name])


def _peer_quality_of(name: str) -> Callable[[Row], str]:
    return lambda row: _number(row["peer_quality"][best_peer(row)[0]][name])


def _cell(cell: Callable[[Row], str], row: Row) -> str:
    try:
        return cell(row) or "-"
    except (KeyError, ZeroDivisionError):
        return "-"


def best_peer(row: Row) -> tuple[str, Row]:
    """Name and timing of the peer with the least minimum; KeyError if there is none."""
    if not row["peers"]:
        raise KeyError("peers")
    name = min(row["peers"], key=lambda peer: row["peers"][peer]["min"])
    return name, row["peers"][name]


def _large(row: Row) -> bool:
    return bool(row["memory"]["input"] >= _RESOLVED)


def _label(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and float(f"{value:g}") == value:
        return f"{value:g}".replace("e+0", "e")
    return str(value)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.1e}"
    digits = 4 if abs(value) < 0.1 else 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}"


def write(path: Path, header: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Header and rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"header": dict(header), "rows": list(rows)}, indent=1, default=str) + "\n")


def read(path: Path) -> dict[str, Any]:
    """What :func:`write` wrote: ``header`` and ``rows``."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or not {"header", "rows"} <= found.keys():
        raise ValueError(f"{path} must hold a header and rows, as --json writes them")
    return found


def compare(old: Sequence[Row], new: Sequence[Row], tolerance: float) -> tuple[Table, int]:
    """The cases of both runs whose ratio to a yardstick changed beyond ``tolerance``, and how many got slower.

    Milliseconds of two runs differ by what else the machine does; the ratio to a copy, or to the best peer of both
    where a case has no copy, was taken within one run. A change counts if the ratio of the minima and the median ratio
    agree on it.
    """
    before = {_key(row): row for row in old if "failed" not in row}
    result = _table(f"changes beyond {tolerance:g}x")
    for name in ("op", "case", "threads", "yardstick", "old", "new", "new / old", ""):
        result.add_column(name, justify="right")
    slower = 0
    for row in new:
        was = before.get(_key(row))
        yardstick = None if was is None or "failed" in row else _yardstick(was, row)
        if was is None or yardstick is None:
            continue
        name, a, b = yardstick
        changes = [b[kind] / a[kind] for kind in ("min", "median")]
        if min(changes) <= tolerance and max(changes) >= 1 / tolerance:
            continue
        worse = min(changes) > tolerance
        slower += worse
        case = ", ".join(f"{k} {_label(v)}" for k, v in row["label"].items())
        cells = [_number(a["min"]), _number(b["min"]), f"{changes[0]:.2f}", "REGRESSION" if worse else "better"]
        result.add_row(row["op"], escape(case), str(row["threads"]), escape(name), *cells)
    return result, slower


def _key(row: Row) -> str:
    return json.dumps([row["op"], row["label"], row["threads"], row["dtype"]], sort_keys=True, default=str)


def _yardstick(old: Row, new: Row) -> tuple[str, Row, Row] | None:
    """A name, and ours over it in both runs: of the minima, and the median."""
    if "copies" in old and "copies" in new:
        return "copy", old["copies"], new["copies"]
    both = [name for name in old["peers"] if name in new["peers"]]
    if not both:
        return None
    name = min(both, key=lambda peer: old["peers"][peer]["min"])
    inverse = [{kind: 1 / row["peers"][name]["ratio"][kind] for kind in ("min", "median")} for row in (old, new)]
    return name, inverse[0], inverse[1]
