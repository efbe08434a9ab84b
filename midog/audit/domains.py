"""Scores by scanner and tumour, and what the threshold costs in a domain that it has never seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from midog.audit.figures import said
from midog.audit.measure import ONCE, Settings, groups, score
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.report.figures import Dot, domain_names, interval_plot
from midog.report.markup import Drawing, Marked, Section, Value, table_html
from midog.report.text import cell_text

TITLE = "Domains"
BYS = ("scanner", "tumour")
TEXT = (
    "Look for domains whose interval lies left of the others in both figures: there the ranking itself is worse. "
    "Left in balanced accuracy alone means that the threshold sits wrong. Good is one column of overlapping "
    "intervals. Hollow: fewer than 30 atypical patches, shown but not ranked."
)
UNSEEN = (
    "In the third figure shift, temperature and threshold were fitted without the domain. The ring is the best that "
    "any threshold reaches there, so good is a dot inside its ring."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores overall and by group, the weakest group that may be ranked, and the leave-one-domain-out thresholds."""
    many = patches.draw(ONCE * settings.limit, settings.seed)
    found = subject.answer(many)
    everything = ("all", "all", np.ones(len(many), dtype=np.bool_))
    rows = [
        {
            "by": by,
            "group": group,
            **score(many.labels[chosen], found.p[chosen], found.called[chosen], many.cases[chosen]),
        }
        for by, group, chosen in (everything, *groups({by: many.column(by) for by in BYS}))
    ]
    return {
        "rows": rows,
        "weakest": {by: weakest(rows, by) for by in BYS},
        "thresholds": dict(subject.thresholds),
        "rule": subject.rule,
    }


def weakest(rows: list[dict[str, Any]], by: str) -> str | None:
    """The group of lowest balanced accuracy among those with 30 atypical patches; None with fewer than two of them."""
    ranked = [
        row for row in rows if row["by"] == by and not row["few"] and row["balanced_accuracy"]["value"] is not None
    ]
    return min(ranked, key=lambda row: row["balanced_accuracy"]["value"])["group"] if len(ranked) > 1 else None


def headline(found: dict[str, Any]) -> str:
    rows = {(row["by"], row["group"]): row["balanced_accuracy"] for row in found["rows"]}
    weak = [f"weakest {by} {name}: {said(rows[by, name])}" for by, name in found["weakest"].items() if name is not None]
    return "; ".join([f"BA {said(rows['all', 'all'])}", *weak])


def section(found: dict[str, Any]) -> Section:
    """Scores by domain, and what the threshold costs in one that it has never seen."""
    rows = found["rows"]
    drawings = [
        Drawing(interval_plot([_dot(row, metric) for row in rows], words, 0.5), f"{words}, 95 % intervals by case.")
        for metric, words in (("balanced_accuracy", "balanced accuracy"), ("roc_auc", "AUROC"))
    ]
    text, thresholds, rule = TEXT, found["thresholds"], found["rule"]
    if "domains" in thresholds:
        text = f"{TEXT} {UNSEEN}"
        names = domain_names([row["domain"] for row in thresholds["domains"]])
        dots = [
            Dot(name, row["left_out"][rule]["balanced_accuracy"], other=row["best"])
            for name, row in zip(names, thresholds["domains"], strict=True)
            if row["best"] is not None
        ]
        caption = f"Threshold ({rule}) that never saw the domain, on the stored out-of-fold logits."
        drawings += [Drawing(interval_plot(dots, "balanced accuracy", 0.5), caption)] if dots else []
    table = [
        {
            "": Marked(row["group"], "few" if row["few"] else ""),
            "patches": row["n"],
            "atypical": row["n_atypical"],
            "balanced accuracy": Value(**row["balanced_accuracy"]),
            "sensitivity": row["sensitivity"],
            "specificity": row["specificity"],
            "AUROC": Value(**row["roc_auc"]),
        }
        for row in rows
    ]
    return Section(TITLE, text, tuple(drawings), table_html(table), _note(thresholds, rule))


def _note(thresholds: dict[str, Any], rule: str) -> str:
    if "mean" not in thresholds or thresholds["mean"]["best"] is None:
        return "No leave-one-domain-out thresholds: " + str(thresholds.get("how", "the blend or run holds none."))
    regret = {name: thresholds[name]["left_out"][rule]["regret"] for name in ("mean", "worst")}
    return (
        f"A threshold ({rule}) that never saw the domain loses {cell_text(regret['mean'])} of balanced accuracy on "
        f"average and {cell_text(regret['worst'])} at worst against the domain's own best one."
    )


def _dot(row: dict[str, Any], metric: str) -> Dot:
    found = row[metric]
    return Dot(
        row["group"], found["value"], found["low"], found["high"], strong=row["by"] == "all",
        faint=row["few"], hollow=row["few"],
    )  # fmt: skip
