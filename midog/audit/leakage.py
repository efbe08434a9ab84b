"""Can scanner or tumour be told from the features? 0 = no better than chance, 1 = always."""

from __future__ import annotations

from typing import Any

from midog.audit.figures import said
from midog.audit.measure import ONCE, Settings, estimate
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.errors import DataError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section, Value, table_html
from midog.robustness.features import Features
from midog.robustness.report import report

TITLE = "Domain leakage"
BYS = ("scanner", "tumour", "laboratory")
TEXT = (
    "A logistic regression is asked for the scanner, the tumour or the laboratory of cases that it never saw. Look for "
    "dots far to the right: the features know the domain, so a decision could lean on it. Good is an interval that "
    "touches 0; adapted features left of the frozen ones mean that training took some of it out."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """How well each confounder is told from the first fold model's features and its frozen backbone's."""
    features, problem = subject.features(patches.draw(ONCE * settings.limit, settings.seed))
    found = {by: told(features, by, settings.seed) for by in BYS}
    if all("problem" in row for rows in found.values() for row in rows.values()):
        reasons = [f"{by}: {row['problem']}" for by, rows in found.items() for row in rows.values()]
        raise DataError("no confounder can be asked for", "see each reason", list(dict.fromkeys(reasons)))
    return {"by": found, "frozen_problem": problem, "n": len(features)}


def told(features: Features, by: str, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Each array's balanced accuracy for `by`, rescaled so that guessing is 0: (BA − chance)/(1 − chance)."""
    try:
        arrays = report(features, confounder=by, only=("confounder",), seed=seed)["arrays"]
    except DataError as error:
        return {name: {"problem": error.render()} for name in features.arrays}
    result = {}
    for name, measures in arrays.items():
        card = measures["confounder"]
        if "problem" in card:
            result[name] = card
            continue
        chance, interval = card["chance"], card["interval"]
        ends = {key: (value - chance) / (1 - chance) for key, value in interval.items()} if interval else None
        rescaled = (card["balanced_accuracy"] - chance) / (1 - chance)
        result[name] = {**estimate(rescaled, ends), **{key: card[key] for key in ("balanced_accuracy", "chance")}}
        result[name]["levels"] = len(card["recall"])
    return result


def headline(found: dict[str, Any]) -> str:
    known = [f"{by} {said(rows['adapted'])}" for by, rows in found["by"].items() if "problem" not in rows["adapted"]]
    return f"told from adapted features, 0 = chance: {', '.join(known)}"


def section(found: dict[str, Any]) -> Section:
    """How well scanner and tumour are told from the features, adapted and frozen."""
    dots, rows, problems = [], [], []
    for by, arrays in found["by"].items():
        for name, card in arrays.items():
            if "problem" in card:
                problems.append(f"- {by}, {name}: {card['problem']}".replace("\n", " "))
                continue
            dots.append(Dot(f"{by}, {name}", card["value"], card["low"], card["high"], strong=name == "adapted"))
            rows.append(
                {
                    "told": by,
                    "from": name,
                    "rescaled": Value(card["value"], card["low"], card["high"]),
                    "balanced accuracy": card["balanced_accuracy"],
                    "chance": card["chance"],
                    "levels": card["levels"],
                }
            )
    problems += [f"- frozen features: {found['frozen_problem']}"] if found["frozen_problem"] else []
    caption = (
        f"{found['n']:,} patches that the fold model may answer for; folds by case, 95 % case-bootstrap intervals."
    )
    drawing = Drawing(interval_plot(dots, "told from features, 0 = chance", 0.0), caption)
    return Section(TITLE, TEXT, (drawing,), table_html(rows), "\n".join(problems))
