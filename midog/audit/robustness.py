"""The robustness card: do the features follow the figure, or the scanner? See `midog.robustness`."""

from __future__ import annotations

from typing import Any

from midog.audit.figures import said
from midog.audit.measure import ONCE, Settings, estimate
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.errors import DataError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section, Value, table_html
from midog.report.text import cell_text
from midog.robustness.features import Features
from midog.robustness.performance_drop import Protocol
from midog.robustness.report import Effort, report

TITLE = "Robustness of features"
BYS = ("scanner", "tumour")
EFFORT = Effort(
    repeats=3,
    limit=50,
    clusters=tuple(range(2, 11)),
    starts=2,
    runs=5,
    protocol=Protocol(splits=4, repeats=2, strengths=(1e-3, 1e-1, 10.0)),
)
"""Less than `midog features` spends: the card must fit into an audit of minutes."""
NAMES = {"paired": "robustness index, pairs", "index": "robustness index, all", "clustering": "clustering score"}
DROPS = {"in_domain": "performance drop, same domains", "out_of_domain": "performance drop, others"}
TEXT = (
    "The robustness index asks whose neighbours are nearer: same label from another scanner, or other label from "
    "the same. Read each dot against its ring, which is chance for these patches: right of it the label counts more "
    "than the scanner, which is good; left of it the scanner does. Performance drop: what a probe loses when label "
    "and scanner go together in its training; good is an interval that touches 0."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Robustness index with chance and support, clustering score and performance drop, by scanner and tumour."""
    features, problem = subject.features(patches.draw(ONCE * settings.limit, settings.seed))
    found: dict[str, Any] = {}
    for by in BYS:
        try:
            found[by] = card(features, by, settings.seed)
        except DataError as error:
            found[by] = {"problem": error.render()}
    if all("problem" in one for one in found.values()):
        raise DataError("no confounder can be measured", "see each reason", [one["problem"] for one in found.values()])
    return {"by": found, "frozen_problem": problem, "n": len(features)}


def card(features: Features, by: str, seed: int = 0) -> dict[str, Any]:
    """rows: array, measure, its estimate, chance and what it was measured on; problems: what could not be."""
    whole = report(features, confounder=by, only=("paired", "index", "clustering", "drop"), seed=seed, effort=EFFORT)
    rows, problems = [], []
    for name, measures in whole["arrays"].items():
        for key in ("paired", "index", "clustering", "drop"):
            value = measures[key]
            if "problem" in value:
                problems.append(f"{by}, {name}, {key}: {value['problem']}".replace("\n", " "))
            elif key == "drop":
                rows += [
                    {"features": name, "measure": words, "chance": 0.0, "of": f"{' / '.join(value['domains'])}",
                     **estimate(value[place]["average_performance_drop"], value[place]["interval"])}
                    for place, words in DROPS.items() if value[place]
                ]  # fmt: skip
            else:
                score = value["score"] if key == "clustering" else value["robustness_index"]
                of = f"n {value['n']}" + (
                    "" if key == "clustering" else f", k {value['k']}, support {value['support']:.2f}"
                )
                chance = 0.0 if key == "clustering" else value["chance"]
                rows.append(
                    {"features": name, "measure": NAMES[key], "chance": chance, "of": of}
                    | estimate(score, value["interval"])
                )
    return {"rows": rows, "problems": problems}


def headline(found: dict[str, Any]) -> str:
    parts = []
    for by, one in found["by"].items():
        for row in one.get("rows", ()):
            if row["features"] == "adapted" and row["measure"] == NAMES["paired"] and row["value"] is not None:
                parts.append(f"against {by} {said(row)}, chance {cell_text(row['chance'])}")
    return "robustness index of adapted features " + (", ".join(parts) or "undefined")


def section(found: dict[str, Any]) -> Section:
    """Robustness index against chance for each confounder, and the other measures as a table."""
    drawings, rows, problems = [], [], []
    for by, one in found["by"].items():
        if "problem" in one:
            problems.append(f"- {by}: {one['problem']}".replace("\n", " "))
            continue
        problems += [f"- {text}" for text in one["problems"]]
        index = [row for row in one["rows"] if row["measure"] in (NAMES["paired"], NAMES["index"])]
        dots = [
            Dot(
                f"{row['features']}, {row['measure'].rpartition(', ')[2]}", row["value"], row["low"], row["high"],
                row["chance"], row["features"] == "adapted",
            )
            for row in index
        ]  # fmt: skip
        if dots:
            drawings.append(
                Drawing(interval_plot(dots, "robustness index"), f"Against {by}; ring: chance for these patches.")
            )
        rows += [
            {
                "against": by,
                "features": row["features"],
                "measure": row["measure"],
                "value": Value(row["value"], row["low"], row["high"]),
                "chance": row["chance"],
                "of": row["of"],
            }
            for row in one["rows"]
        ]
    problems += [f"- frozen features: {found['frozen_problem']}"] if found["frozen_problem"] else []
    return Section(TITLE, TEXT, tuple(drawings), table_html(rows, free=("of",)), "\n".join(problems))
