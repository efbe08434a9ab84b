"""What a feature file holds of label and confounder, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midog.report.text import text_table
from midog.robustness.change import RobustnessChange

TITLES = {
    "paired": "robustness index, pairs",
    "index": "robustness index, all",
    "confounder": "confounder told, BA",
    "label": "label told, BA",
    "clustering": "clustering score",
    "drop": "performance drop",
}


def robustness_text(result: Mapping[str, Any]) -> str:
    """A row for each measure of each array of `robustness.report.report`, chance beside it, and what could not be."""
    rows, problems = [], []
    for name, measures in result["arrays"].items():
        for measure, title in TITLES.items():
            value = measures.get(measure)
            if value is None:
                continue
            if "problem" in value:
                problems.append(f"{name}, {title}: {value['problem']}")
            else:
                rows += [{"features": name, **row} for row in _rows(measure, title, value)]
    head = f"{result['n']} patches of {result['cases']} cases, {result['label']} against {result['confounder']}"
    if result["left_out"]:
        head += f"; {result['left_out']} rows without one of the two left out"
    return "\n\n".join([head, text_table(rows), *problems])


def changes_text(changes: Mapping[str, RobustnessChange]) -> str:
    """A row for each run of `fold_features.robustness_of_runs`."""
    rows = []
    for name, found in changes.items():
        card, moved = found.card, found.interval
        rows.append(
            {
                "features": name,
                "robustness index, pairs": card.robustness_index,
                "95 %": (card.interval.low, card.interval.high) if card.interval else None,
                "chance": card.chance,
                "change": found.change,
                "95 % ": (moved.low, moved.high) if moved else None,
                "of": f"k {card.k}, n {card.n}, support {card.support:.2f}",
            }
        )
    return text_table(rows)


def _rows(measure: str, title: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    if measure in ("paired", "index"):
        of = f"k {value['k']}, n {value['n']}, support {value['support']:.2f}"
        return [_row(title, value["robustness_index"], value["interval"], value["chance"], of)]
    if measure in ("confounder", "label"):
        of = f"{len(value['recall'])} levels, {value['folds']} folds by case"
        if value["left_out"]:
            of += f", without {', '.join(value['left_out'])} (one case)"
        return [_row(title, value["balanced_accuracy"], value["interval"], value["chance"], of)]
    if measure == "clustering":
        of = f"{len(value['clusters'])} tables, n {value['n']}, ARI {value['label']:.3f} − {value['confounder']:.3f}"
        return [_row(title, value["score"], value["interval"], 0.0, of)]
    classes, domains = " / ".join(value["classes"]), " / ".join(value["domains"])
    units = {"case": "cases", "patch": "patches"}[value["unit"]]
    of = f"{classes} in {domains}, from {value['half']} {units} a cell"
    places = {", same domains": value["in_domain"], ", others": value["out_of_domain"]}
    return [
        _row(title + place, drop["average_performance_drop"], drop["interval"], 0.0, of)
        for place, drop in places.items()
        if drop
    ]


def _row(
    title: str, value: float | None, interval: Mapping[str, float] | None, chance: float | None, of: str
) -> dict[str, Any]:
    spread = (interval["low"], interval["high"]) if interval else None
    return {"measure": title, "value": value, "95 %": spread, "chance": chance, "of": of}
