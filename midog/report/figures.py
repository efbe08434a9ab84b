"""The report's figures, each a function of arrays that returns an SVG element. Atypical is the positive class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from midog.report.curves import balanced_accuracy_curve, flat_top, roc_points, wilson
from midog.report.drawing import ACCENT, ATYPICAL, INK, MUTED, NORMAL, RULE, SMALL, WIDTH, sheet
from midog.report.text import cell_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

SHORT = 24
"""Characters of a name that fit beside a small plot."""


@dataclass(frozen=True)
class Dot:
    """One row of `interval_plot`: a value with its interval, and an `other` value drawn as a larger ring around it."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    other: float | None = None
    strong: bool = False
    faint: bool = False
    hollow: bool = False


def short(name: str, length: int = SHORT) -> str:
    """`name`, its middle cut out where it is too long: both ends tell members and domains apart."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - half - 1]}…{name[-half:]}"


def domain_names(names: Sequence[str]) -> list[str]:
    """`tumour | scanner | laboratory` as the fewest of its parts that no other has: the scanner alone where it can."""
    parts = [name.split(" | ") for name in names]
    if any(len(part) != 3 for part in parts):
        return list(names)
    ways = [[" | ".join(part[at] for at in chosen) for part in parts] for chosen in ((1,), (1, 2), (0, 1), (0, 1, 2))]
    return [next(way[row] for way in ways if way.count(way[row]) == 1 or way is ways[-1]) for row in range(len(names))]


def learning_curve(
    name: str, folds: Sequence[tuple[ArrayLike, ArrayLike]], epochs: int, top: float, loss: str = "training loss"
) -> str:
    """Loss per epoch of one member, a line per fold. `top` is the upper limit, shared by the small multiples."""
    with sheet(f"learning curves of {name}", 1.7, 1.45) as drawn:
        axes = drawn.axes()
        for at, values in folds:
            x, y = np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64)
            axes.plot(x, y, color=INK, lw=0.9, alpha=0.75)
            axes.plot(x[-1:], y[-1:], "o", color=INK, ms=2.6, mew=0)
        axes.set_xlim(min(1, epochs - 0.5), max(epochs, 1) + 0.04 * epochs)
        axes.set_ylim(0, top)
        axes.set_xticks(sorted({1, epochs}))
        axes.set_yticks([0, top])
        axes.set_yticklabels(["0", f"{top:g}"])
        axes.set_xlabel("epoch", labelpad=-6)
        axes.set_ylabel(loss, labelpad=-6)
        axes.set_title(short(name, 20))
    return drawn.svg


def interval_plot(rows: Sequence[Dot], xlabel: str, chance: float | None = None) -> str:
    """Dots with intervals, first row on top. `chance` is drawn where it is near enough to matter."""
    shown = [v for r in rows for v in (r.value, r.low, r.high, r.other) if v is not None and math.isfinite(v)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    margin = max(0.06 * (high - low), 0.01)
    near = chance is not None and chance > low - 0.12
    low = min(low, chance) if near and chance is not None else low
    spread = " with 95 % intervals" if any(row.low is not None for row in rows) else ""
    with sheet(xlabel + spread, WIDTH, 0.55 + 0.21 * max(len(rows), 1)) as drawn:
        axes = drawn.axes()
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        if near and chance is not None:
            axes.axvline(chance, color=MUTED, lw=0.8, ls=(0, (2, 2)))
            axes.text(chance, -0.62, f"chance {cell_text(chance)}", fontsize=SMALL, color=MUTED, ha="left", va="bottom")
        for at, row in enumerate(rows):
            _dot(axes, at, row)
        axes.set_yticks(range(len(rows)), [short(row.name) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if row.strong else "normal")
        axes.spines["left"].set_visible(False)
        _ticks(axes.xaxis, 6)
        axes.set_xlabel(xlabel)
    return drawn.svg


def _dot(axes: Axes, at: int, row: Dot) -> None:
    axes.axhline(at, color=RULE, lw=0.5, zorder=0)
    if row.value is None:
        axes.text(0.5, at, "undefined", transform=axes.get_yaxis_transform(), fontsize=SMALL, color=MUTED, va="center")
        return
    colour = ACCENT if row.strong else MUTED if row.faint else INK
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [at, at], color=colour, lw=2.0 if row.strong else 1.2)
    if row.other is not None:
        axes.plot([row.other], [at], "o", mfc="none", mec=MUTED, mew=0.9, ms=5.2)
    filled: dict[str, Any] = {"mfc": "none"} if row.hollow else {"mfc": colour}
    axes.plot([row.value], [at], "o", mec=colour, ms=5.0 if row.strong else 4.0, mew=0.9, **filled)


def roc(
    label: ArrayLike,
    score: ArrayLike,
    name: str,
    others: Mapping[str, ArrayLike] | None = None,
    point: tuple[float, float] | None = None,
) -> str:
    """ROC of `score` (bold) and of `others` (thin); `point` is (1 − specificity, sensitivity) of the classes."""
    with sheet(f"ROC of {name}", WIDTH, 3.2) as drawn:
        axes = drawn.axes()
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (2, 2)))
        axes.text(0.66, 0.61, "chance", fontsize=SMALL, color=MUTED, rotation=45, ha="center", va="center")
        for values in (others or {}).values():
            axes.plot(*roc_points(label, values), color=MUTED, lw=0.7, alpha=0.7)
        axes.plot(*roc_points(label, score), color=ACCENT, lw=1.8)
        lines = [(short(name, 24), ACCENT, "bold")]
        lines += [("each member (thin)", MUTED, "normal")] if others else []
        if point is not None:
            axes.plot(*point, "o", color=INK, ms=5)
            lines.append(
                (f"●  sensitivity {cell_text(point[1])}, specificity {cell_text(1 - point[0])}", INK, "normal")
            )
        for at, (text, colour, weight) in enumerate(reversed(lines)):
            axes.text(1, 0.04 + 0.07 * at, text, fontsize=SMALL, color=colour, fontweight=weight, ha="right")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_xlabel("normal called atypical  (1 − specificity)")
        axes.set_ylabel("atypical found  (sensitivity)")
    return drawn.svg


def reliability(label: ArrayLike, confidence: ArrayLike, bins: int = 10) -> str:
    """Share of atypical patches against confidence, with Wilson intervals; below it the count of each bin."""
    y, p = np.asarray(label) == 1, np.asarray(confidence, dtype=np.float64)
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    counts, found = np.bincount(place, minlength=bins), np.bincount(place, weights=y, minlength=bins)
    mean = np.bincount(place, weights=p, minlength=bins) / np.maximum(counts, 1)
    with sheet("reliability: share of atypical patches against confidence", WIDTH, 3.2) as drawn:
        axes, below = drawn.figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (2, 2)))
        axes.text(
            0.03, 0.93, "above the dotted line: too cautious\nbelow it: too sure", fontsize=SMALL, color=MUTED, va="top"
        )
        for at in np.flatnonzero(counts):
            low, high = wilson(found[at], counts[at])
            axes.plot([mean[at], mean[at]], [low, high], color=ACCENT, lw=1.2)
            axes.plot(mean[at], found[at] / counts[at], "o", color=ACCENT, ms=4.5)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_ylabel("share atypical")
        middle = (np.arange(bins) + 0.5) / bins
        below.bar(middle, counts - found, width=0.8 / bins, color=NORMAL)
        below.bar(middle, found, width=0.8 / bins, bottom=counts - found, color=ATYPICAL)
        for x, count in zip(middle, counts, strict=True):
            below.text(x, count, str(count), fontsize=6.2, color=MUTED, ha="center", va="bottom")
        below.set_ylim(0, 1.3 * max(int(counts.max()), 1))
        below.set_yticks([])
        below.spines["left"].set_visible(False)
        below.set_xlim(-0.01, 1.01)
        below.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        below.set_ylabel("patches")
        below.text(
            0.98, 0.97, "atypical", transform=below.transAxes, fontsize=SMALL, color=ATYPICAL, ha="right", va="top"
        )
        below.text(0.98, 0.69, "normal", transform=below.transAxes, fontsize=SMALL, color=NORMAL, ha="right", va="top")
        below.set_xlabel("confidence  (probability of atypical)")
    return drawn.svg


def threshold_curve(
    label: ArrayLike,
    confidence: ArrayLike,
    chosen: float,
    smooth: tuple[ArrayLike, ArrayLike] | None = None,
    word: str = "chosen",
) -> str:
    """Balanced accuracy against threshold, the chosen one marked, its flat top shaded; `smooth` is (threshold, BA)."""
    raw = balanced_accuracy_curve(label, confidence)
    t, a = (np.asarray(part, dtype=np.float64) for part in smooth or raw)
    low, high = flat_top(t, a)
    with sheet("balanced accuracy against threshold", WIDTH, 3.2) as drawn:
        axes = drawn.axes()
        axes.axvspan(low, high, color=RULE, alpha=0.45, lw=0)
        axes.plot(*raw, color=MUTED, lw=0.7, alpha=0.8)
        if smooth is not None:
            axes.plot(t, a, color=ACCENT, lw=1.8)
        at = float(np.interp(chosen, t, a))
        top = max(float(raw[1].max()), at)
        axes.plot([chosen, chosen], [0.5, at], color=INK, lw=0.9)
        axes.plot(chosen, at, "o", color=INK, ms=5)
        left = chosen > 0.6
        axes.text(
            chosen + (-0.02 if left else 0.02), 0.512, f"{word} {cell_text(chosen)}",
            fontsize=SMALL, fontweight="bold", ha="right" if left else "left", va="bottom",
        )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(min(0.5, float(a.min())), top + 0.14 * (top - 0.5) + 0.01)
        note = f"shaded: at most 1 point below the top ({cell_text(low)} to {cell_text(high)})"
        axes.text(0.99, 0.985, note, transform=axes.transAxes, fontsize=SMALL, color=MUTED, ha="right", va="top")
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        _ticks(axes.yaxis, 6)
        axes.set_xlabel("threshold on confidence")
        axes.set_ylabel("balanced accuracy")
    return drawn.svg


def correlation(names: Sequence[str], matrix: ArrayLike) -> str:
    """Correlation of members' logits, lower triangle, a number in each cell; the darker, the more alike."""
    r, m = np.asarray(matrix, dtype=np.float64), len(names)
    known = r[np.tril_indices(m, -1)]
    known = known[np.isfinite(known)]
    floor = float(known.min()) - 0.05 if len(known) else 0.0
    cell = 0.62 if m <= 4 else 0.46 if m <= 6 else 0.36
    slanted = m > 4
    with sheet("correlation of members' out-of-fold logits", *_grid_size(m, cell, slanted)) as drawn:
        axes = drawn.axes()
        for row in range(1, m):
            for column in range(row):
                _cell(axes, row, column, float(r[row, column]), floor)
        axes.set_xlim(0, max(m - 1, 1))
        axes.set_ylim(m, 1)
        axes.set_aspect("equal", anchor="W")
        axes.set_yticks(np.arange(1, m) + 0.5, [short(name) for name in names[1:]])
        turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(np.arange(m - 1) + 0.5, [short(name, 14) for name in names[:-1]], **turned)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[["left", "bottom"]].set_visible(False)
    return drawn.svg


def _grid_size(m: int, cell: float, slanted: bool) -> tuple[float, float]:
    return max(WIDTH, 1.4 + cell * (m - 1)), cell * (m - 1) + (0.85 if slanted else 0.35)


def _cell(axes: Axes, row: int, column: int, value: float, floor: float) -> None:
    if not math.isfinite(value):
        return
    strength = 0.1 + 0.55 * max(value - floor, 0.0) / max(1 - floor, 1e-9)
    corners = [column, column + 1, column + 1, column], [row, row, row + 1, row + 1]
    axes.fill(*corners, color=ACCENT, alpha=strength, lw=0)
    text = f"{value:.2f}".replace("0.", ".", 1)
    axes.text(column + 0.5, row + 0.5, text, fontsize=SMALL, ha="center", va="center")


def weights(names: Sequence[str], values: ArrayLike, fits: ArrayLike | None = None) -> str:
    """Weight of each member in the blend; `fits` (k, m) are those found without each part of the cases, as ticks."""
    w = np.asarray(values, dtype=np.float64)
    with sheet("weights of the blend", WIDTH, 0.6 + 0.24 * len(names)) as drawn:
        axes = drawn.axes()
        axes.axvline(0, color=RULE, lw=0.8)
        axes.axvline(1 / len(names), color=MUTED, lw=0.8, ls=(0, (2, 2)))
        axes.text(1 / len(names), -0.62, "equal", fontsize=SMALL, color=MUTED, ha="center", va="bottom")
        axes.barh(range(len(names)), w, height=0.5, color=ACCENT, alpha=0.55)
        if fits is not None:
            for fit in np.asarray(fits, dtype=np.float64):
                axes.plot(fit, range(len(names)), "|", color=INK, ms=7, mew=0.9)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        _ticks(axes.xaxis, 6)
        axes.set_xlabel("weight")
    return drawn.svg


def _ticks(axis: Axis, count: int) -> None:
    """At most `count` steps, written as everywhere on the page: .8, not 0.80."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 6):g}".replace("0.", ".", 1)))
