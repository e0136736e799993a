"""The picture of the demo: error against size, and error along the LC steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .demo import Row

__all__ = ["plot"]

_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]  # Okabe and Ito: told apart by the colour-blind too


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
