"""Ranges of settings, checked where a settings dataclass is made."""

from __future__ import annotations

import math

from midog.errors import UsageError


def check_probability(name: str, value: float) -> None:
    """Raises: UsageError unless `value` is within 0 to 1."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {value}", "a probability: 0 (never) to 1 (always)")


def check_between(name: str, values: tuple[float, float], low: float, high: float = math.inf) -> None:
    """Raises: UsageError unless `values` is (smallest, largest), in this order and within `low` to `high`."""
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        limits = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
        raise UsageError(f"{name} is {list(values)}", f"[smallest, largest], both within {limits}")


def check_share(name: str, value: float, below: float) -> None:
    """Raises: UsageError unless 0 <= `value` < `below`."""
    if not 0 <= value < below:
        raise UsageError(f"{name} is {value}", f"0 or more and below {below:g}")


def between(values: tuple[float, float], u: float) -> float:
    """The point at share `u` of the way from the first to the second value."""
    return values[0] + u * (values[1] - values[0])
