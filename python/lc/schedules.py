"""Schedules of the penalty parameter mu."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["check_schedule", "exponential"]


def exponential(mu0: float, growth: float, steps: int) -> list[float]:
    """``mu0 * growth**n`` for n = 0, ..., steps - 1.

    Published runs take a growth of 1.1 with about 40 steps, 1.2 to 1.4 with fewer. A good mu0 is small enough that the
    first steps move the weights freely: 1e-3 to 1e-5 times the weight decay scale is a common place to start.

    Raises
    ------
    ValueError : unless mu0 > 0, growth >= 1 and steps >= 1.
    """
    if not (mu0 > 0 and math.isfinite(mu0)):
        raise ValueError(f"mu0 must be positive and finite, got {mu0}")
    if not (growth >= 1 and math.isfinite(growth)):
        raise ValueError(f"growth must be at least 1 and finite, got {growth}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return [mu0 * growth**n for n in range(steps)]


def check_schedule(mu: Iterable[float]) -> list[float]:
    """``mu`` as a non-empty list of positive finite floats that never falls."""
    values = [float(m) for m in mu]
    if not values:
        raise ValueError("mu must hold at least one value, got an empty schedule")
    for before, after in zip([0.0, *values[:-1]], values, strict=True):
        if not (after > 0 and math.isfinite(after) and after >= before):
            raise ValueError(f"mu must be positive, finite and never fall, got {after} after {before}")
    return values
