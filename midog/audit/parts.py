"""The parts of the audit: their names, in reading order, and their modules."""

from __future__ import annotations

import importlib
from typing import Any

PARTS = (
    "domains",
    "baselines",
    "small_cnn",
    "calibration",
    "symmetry",
    "field",
    "corruption",
    "attacks",
    "leakage",
    "left_out",
    "robustness",
    "low_data",
    "cost",
)
"""In reading order; each is a module with `TITLE`, `measure`, `headline` and `section`."""
TRAINING = ("small_cnn",)
"""Parts that train: they run where they are named alone, each in a folder of its name, and continue there."""
FROZEN = ("baselines", "leakage", "left_out", "robustness", "low_data")
"""Parts that ask the backbone as it was before training, so their numbers depend on its pretrained weights."""


def part(name: str) -> Any:
    """The part's module."""
    return importlib.import_module(f"midog.audit.{name}")


def lines(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """One line for each part that was asked for: its headline, or why it did not run."""
    return {
        name: part(name).headline(content["found"]) if "found" in content else f"not run: {content['not_run']}"
        for name, content in parts.items()
    }
