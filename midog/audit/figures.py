"""Two figures that only an audit has: a score along a scale, and a matrix of who harms whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.report.drawing import ACCENT, INK, MUTED, SMALL, WIDTH, sheet
from midog.report.figures import short
from midog.report.markup import Drawing
from midog.report.text import cell_text

SMALL_WIDTH = 1.7
COLOURS = (ACCENT, MUTED, INK)


def curve(
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    xlabel: str,
    at: Sequence[float],
    words: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
    width: float = WIDTH,
    mark: float | None = None,
) -> str:
    """Balanced accuracy along a scale, its 95 % interval as a band; the first of `lines` is bold, others dashed.

    Args:
        lines: name to estimates ({value, low, high}) at `at`; None is a gap. words: what stands below each of `at`.
        limits: of the y axis, shared by small multiples. mark: place on the x axis of the patches as they are.
    """
    with sheet(f"balanced accuracy against {xlabel} {title}".strip(), width, 1.5 if width < WIDTH else 2.3) as drawn:
        axes = drawn.axes()
        x = np.asarray(at, dtype=np.float64)
        axes.axhline(0.5, color=MUTED, lw=0.8, ls=(0, (2, 2)))
        if mark is not None:
            axes.axvline(mark, color=MUTED, lw=0.6)
        for colour, rows in zip(COLOURS, lines.values(), strict=False):
            value, low, high = (np.array([_number(row[key]) for row in rows]) for key in ("value", "low", "high"))
            first = colour == ACCENT
            axes.fill_between(x, low, high, color=colour, alpha=0.16 if first else 0.1, lw=0)
            axes.plot(x, value, color=colour, lw=1.8 if first else 1.1, ls="-" if first else (0, (3, 2)))
            axes.plot(x, value, "o", color=colour, ms=3.2 if first else 2.2, mew=0)
        axes.set_ylim(*(limits or span(lines)))
        axes.set_xticks(x, list(words) if words is not None else [f"{v:g}" for v in x])
        axes.yaxis.set_major_formatter(lambda value, _: f"{round(value, 6):g}".replace("0.", ".", 1))
        axes.set_xlabel(xlabel)
        axes.set_title(title)
        if width >= WIDTH:
            axes.set_ylabel("balanced accuracy")
    return drawn.svg


def span(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[float, float]:
    """Limits that hold every interval, and chance."""
    shown = [row[key] for rows in lines.values() for row in rows for key in ("value", "low", "high") if row[key]]
    low, high = min([0.5, *shown]), max([0.6, *shown])
    return low - 0.02, min(1.0, high) + 0.02


def curves(panels: Mapping[str, Mapping[str, Any]], xlabel: str) -> tuple[Drawing, ...]:
    """Small multiples with one y axis. A panel: lines, at, and what else `curve` takes."""
    spans = [span(panel["lines"]) for panel in panels.values()]
    limits = min(low for low, _ in spans), max(high for _, high in spans)
    return tuple(
        Drawing(curve(**{"xlabel": xlabel, "limits": limits, "title": name, "width": SMALL_WIDTH, **panel}))
        for name, panel in panels.items()
    )


def matrix(rows: Sequence[str], columns: Sequence[str], values: ArrayLike, label: str) -> str:
    """Numbers in cells, the darker the larger; not finite: empty."""
    numbers = np.asarray(values, dtype=np.float64)
    top = max(float(np.nanmax(np.abs(numbers), initial=0.0)), 1e-9)
    with sheet(label, max(WIDTH, 1.5 + 0.55 * len(columns)), 0.9 + 0.3 * len(rows)) as drawn:
        axes = drawn.axes()
        for row, column in np.ndindex(*numbers.shape):
            value = float(numbers[row, column])
            if np.isfinite(value):
                corners = [column, column + 1, column + 1, column], [row, row, row + 1, row + 1]
                axes.fill(*corners, color=ACCENT, alpha=0.04 + 0.5 * max(value, 0.0) / top, lw=0)
                text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)  # adding 0 makes −0 a 0
                axes.text(column + 0.5, row + 0.5, text, fontsize=SMALL, ha="center", va="center")
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [short(name) for name in rows])
        turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(np.arange(len(columns)) + 0.5, [short(name, 16) for name in columns], **turned)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[["left", "bottom"]].set_visible(False)
    return drawn.svg


def said(found: Mapping[str, Any]) -> str:
    """An estimate in a sentence: `.812 (.790–.834)`."""
    if found["value"] is None:
        return "undefined"
    if found["low"] is None:
        return cell_text(found["value"])
    return f"{cell_text(found['value'])} ({cell_text((found['low'], found['high']))})"


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
