"""What a probe on the frozen backbone loses on a scanner, or a tumour, that its training never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.audit.figures import said
from midog.audit.measure import ONCE, Floats, Settings, check_finite, gain, probe, probe_out_of_fold, score
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.errors import DataError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Marked, Section, Value, table_html

TITLE = "Domains left out"
BYS = ("scanner", "tumour")
ALL = "each in turn"
TEXT = (
    "A logistic regression on the backbone as it was before training, trained without one scanner (or tumour) and "
    "tested there. The ring is the same probe tested by case, the domain seen in training. Good is a dot on its ring: "
    "what tells the classes apart is then the same on every scanner. A dot left of it means that the frozen features "
    "need examples from a scanner, which the next one will not offer. Hollow: fewer than 30 atypical patches."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores in each scanner and tumour of probes that never saw it, beside the same probe by case."""
    many = patches.draw(ONCE * settings.limit, settings.seed)
    columns = {by: many.column(by) for by in BYS}
    rows = left_out_rows(subject.frozen(many), many.labels, many.cases, columns, settings.seed)
    return {"backbone": subject.members[0].network.backbone.name, "rows": rows}


def left_out_rows(
    x: NDArray[Any], label: ArrayLike, case: ArrayLike, columns: dict[str, NDArray[Any]], seed: int = 0
) -> list[dict[str, Any]]:
    """For each column a row for all its groups, each answered by the probe that never saw it, and one for each group.

    Args:
        x: (n, d) finite features. label: (n,) 0 or 1. case: (n,) words.
        columns: name to (n,) groups; patches without a word, "", are neither trained on nor tested.

    Returns: {by, group, `left_out` and `by_case` (scores), `gap`: by case minus left out, paired}.

    Raises: DataError where no column has two groups, and as `probe_out_of_fold`.
    """
    y, cases = np.asarray(label), np.asarray(case).astype(str)
    check_finite(x)
    known = {by: words.astype(str) for by, words in columns.items() if len(set(words.astype(str)) - {""}) > 1}
    if not known:
        raise DataError(f"nothing can be left out: one {' and one '.join(columns)} at most", "patches of several")
    seen = probe_out_of_fold(x, y, cases, seed)
    rows = []
    for by, words in known.items():
        unseen = without_each(x, y, cases, words)
        for group in (ALL, *np.unique(words[words != ""])):
            at = words != "" if group == ALL else words == group
            ours, theirs = ((p[at], p[at] >= 0.5) for p in (seen, unseen))
            rows.append(
                {
                    "by": by,
                    "group": str(group),
                    "left_out": score(y[at], *theirs, cases[at]),
                    "by_case": score(y[at], *ours, cases[at]),
                    "gap": gain(y[at], cases[at], ours, theirs),
                }
            )
    return rows


def without_each(x: NDArray[Any], y: NDArray[Any], case: NDArray[Any], words: NDArray[Any]) -> Floats:
    """(n,) P(atypical) of a probe trained on the other groups, without the cases that reach into the patch's own; NaN
    for patches without a word."""
    p = np.full(len(y), np.nan)
    for group in np.unique(words[words != ""]):
        test = words == group
        train = ~test & (words != "") & ~np.isin(case, case[test])
        p[test] = probe(x[train], y[train], x[test])
    return p


def headline(found: dict[str, Any]) -> str:
    parts = []
    for row in found["rows"]:
        if row["group"] == ALL:
            ba = said(row["left_out"]["balanced_accuracy"])
            parts.append(f"{row['by']} left out {ba}, {said(row['gap']['balanced_accuracy'])} below the same by case")
    return f"probe's BA: {'; '.join(parts)}"


def section(found: dict[str, Any]) -> Section:
    """Scores of a probe in each scanner and tumour left out, and what it lacks against one by case."""
    rows = found["rows"]
    drawings = tuple(
        Drawing(
            interval_plot([_dot(row, metric) for row in rows], words, 0.5),
            f"{words}; linear probe on frozen {found['backbone']}. Ring: the same probe by case.",
        )
        for metric, words in (("balanced_accuracy", "balanced accuracy"), ("roc_auc", "AUROC"))
    )
    table = [
        {
            "left out": Marked(_name(row), "few" if row["left_out"]["few"] else ""),
            "patches": row["left_out"]["n"],
            "atypical": row["left_out"]["n_atypical"],
            "balanced accuracy": Value(**row["left_out"]["balanced_accuracy"]),
            "below by case": Value(**row["gap"]["balanced_accuracy"]),
            "AUROC": Value(**row["left_out"]["roc_auc"]),
            "AUROC below by case": Value(**row["gap"]["roc_auc"]),
        }
        for row in rows
    ]
    note = (
        "No network is trained here: whether training one helps is for `midog train --set folds=scanner`. A probe that "
        "left a large domain out was trained on fewer patches, too. 95 % case-bootstrap intervals of the test alone."
    )
    return Section(TITLE, TEXT, drawings, table_html(table), note)


def _name(row: dict[str, Any]) -> str:
    return f"{row['by']}s, {ALL}" if row["group"] == ALL else str(row["group"])


def _dot(row: dict[str, Any], metric: str) -> Dot:
    found, few = row["left_out"][metric], row["left_out"]["few"]
    return Dot(
        _name(row), found["value"], found["low"], found["high"], row["by_case"][metric]["value"],
        row["group"] == ALL, few, few,
    )  # fmt: skip
