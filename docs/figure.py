"""Draws docs/scores.png, the figure of the README: python docs/figure.py BLEND

Cross-fitted balanced accuracy and AUROC of a blend, overall and by domain, with 95 % case-bootstrap intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from midog.report.from_blend import blend_findings

METRICS = {"balanced_accuracy": "balanced accuracy", "roc_auc": "AUROC"}
INK, QUIET = "#157f5b", "#444444"


def draw(blend: Path, out: Path) -> Path:
    """Write the figure of `blend` (a blend folder) as PNG; returns `out`."""
    found = blend_findings(blend)
    rows = [row for row in (found.row, *found.domains) if row is not None]
    names = ["all", *(" | ".join(row.name.split(" | ")[1:]) for row in rows[1:])]
    figure = Figure(figsize=(9, 2.9), layout="constrained", dpi=150)
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), METRICS.items(), strict=True):
        for at, row in enumerate(rows):
            value, interval = getattr(row.scores, metric), row.intervals[metric]
            axes.plot(
                [interval.low, interval.high], [at, at], color=INK if at == 0 else QUIET, lw=3 if at == 0 else 1.5
            )
            axes.plot(value, at, "o", color=INK if at == 0 else QUIET)
            axes.annotate(f"{value:.3f}".lstrip("0"), (value, at), (0, 5), textcoords="offset points", ha="center")
        axes.set(xlabel=title, xlim=(0.4, 1.0))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_yticks(range(len(rows)), [f"{name} ({row.scores.n})" for name, row in zip(names, rows, strict=True)])
        axes.tick_params(left=False)
    axes.invert_yaxis()
    figure.savefig(out, metadata={"Software": None})
    return out


if __name__ == "__main__":
    print(f"wrote {draw(Path(sys.argv[1]), Path(__file__).with_name('scores.png'))}")
