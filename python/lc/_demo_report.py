"""The report of the demo: its rows, the table, and the picture of error against size and along the LC steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "plot", "report"]

_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]  # Okabe and Ito: told apart by the colour-blind too


@dataclass
class Row:
    """One line of the report. Errors in percent, sizes in bytes, times in seconds, speeds against the dense model."""

    scheme: str
    error_dc: float
    error_lc: float
    ratio: float
    weights_only_ratio: float
    file_bytes: int
    seconds_l: float
    seconds_c: float
    speed_1: float
    speed_256: float
    curve: list[float]
    history: dict[str, Any]


def report(rows: list[Row], error: float, dense_bytes: int, console: Console) -> None:
    table = Table(title=f"LeNet300 on 5,000 MNIST digits: reference test error {error:.1f} %, {dense_bytes:,} bytes")
    table.add_column("scheme", no_wrap=True)
    for name in ("error %\ndirect", "error %\nLC", "smaller\n(all)", "(weights\nonly)"):
        table.add_column(name, justify="right")
    for name in ("file\nbytes", "file\nsmaller", "L steps\ns", "C steps\ns", "speed\nbatch 1", "speed\nbatch 256"):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            r.scheme,
            f"{r.error_dc:.1f}",
            f"[bold]{r.error_lc:.1f}[/bold]",
            f"{r.ratio:.1f}x",
            f"{r.weights_only_ratio:.1f}x",
            f"{r.file_bytes:,}",
            f"{dense_bytes / r.file_bytes:.1f}x",
            f"{r.seconds_l:.1f}",
            f"{r.seconds_c:.2f}",
            f"{r.speed_1:.2f}x",
            f"{r.speed_256:.2f}x",
        )
    console.print(table)
    console.print(
        "direct: the trained weights projected once. smaller: fixed-length code of the whole model, biases, codebooks "
        "and positions counted. speed: of the packed model against the dense one.",
        style="dim",
    )


def plot(rows: Sequence[Row], error: float, dense_bytes: int, path: Path) -> None:
    """Write the picture to ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    for row, color in zip(rows, _COLORS, strict=True):
        size = row.file_bytes / 1024
        left.plot([size, size], [row.error_dc, row.error_lc], color=color, lw=1, alpha=0.5)
        left.plot(size, row.error_dc, "o", color=color, fillstyle="none", ms=9)
        left.plot(size, row.error_lc, "o", color=color, ms=9, label=row.scheme)
        right.plot(range(len(row.curve)), row.curve, color=color, lw=1.8, label=row.scheme)
    left.plot(dense_bytes / 1024, error, "k*", ms=14, label="reference, dense")
    left.plot([], [], "o", color="gray", fillstyle="none", ms=9, label="direct compression")
    for axes in (left, right):
        axes.axhline(error, color="k", lw=1, ls=":")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:.0e}"[0] in "2357" else ""))
        axes.grid(alpha=0.25, which="both")
        axes.set_ylabel("test error, %")
        axes.set_ylim(bottom=0.85 * error)
    left.set_xscale("log")
    left.set_xticks([30, 50, 100, 200, 500, 1000])
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    left.set_xlabel("size on disk, KiB")
    left.set_title("Error against size: filled after LC, hollow before")
    left.legend(fontsize=9)
    right.set_xlabel("LC step (0: direct compression)")
    right.set_title("Error of the compressed net along the LC steps")
    right.text(0.99, error, "reference", ha="right", va="top", fontsize=9, transform=right.get_yaxis_transform())
    right.set_xticks(range(0, len(rows[0].curve), 5))
    right.legend(fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
