"""Every case of every suite at its quick size, for pytest-benchmark: pytest benchmarks --benchmark-only

A case is verified before it is timed. ``python -m lc_ext.bench`` measures in earnest: sizes, peers, limits.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lc_ext.bench.harness import Case, Options, suites


def params() -> Iterator[object]:
    for op, cases in suites().items():
        for case in cases(Options(quick=True)):
            label = "-".join(f"{key}={value}" for key, value in case.label.items())
            yield pytest.param(case, id=f"{op}-{label}")


@pytest.mark.parametrize("case", list(params()))
def test_ours(benchmark, case: Case):
    case.verify(case.ours())
    benchmark(case.ours)
