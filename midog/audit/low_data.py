"""What a probe on the frozen backbone learns from 1, 5, 10, 25 and 100 % of the cases: what more data would bring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.audit.figures import curve, said
from midog.audit.measure import ONCE, Settings, case_folds, check_finite, probe, score
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.metrics import case_index
from midog.report.markup import Drawing, Section, Value, table_html

TITLE = "Low data"
SHARES = (0.01, 0.05, 0.1, 0.25, 1.0)
TEXT = (
    "Look at the right end. A curve that still rises steeply there says that more cases would help more than "
    "another model; a flat one says that this backbone has given what a linear probe can take. Good is a curve that "
    "is far above chance by a tenth of the cases: features that need few labels. Each smaller set of cases is part "
    "of the next."
)


def nested_cases(case: ArrayLike, shares: tuple[float, ...] = SHARES, seed: int = 0) -> list[NDArray[np.int64]]:
    """Rows of the first ⌈share · cases⌉ of the cases in one random order: each set is part of every larger one."""
    index, cases = case_index(case)
    place = np.empty(cases, dtype=np.int64)
    place[np.random.default_rng(seed).permutation(cases)] = np.arange(cases)
    return [np.flatnonzero(place[index] < math.ceil(share * cases - 1e-9)) for share in shares]


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores of probes trained on each share of the training cases, tested on cases of other folds."""
    many = patches.draw(ONCE * settings.limit, settings.seed)
    x = subject.frozen(many)
    return {
        "backbone": subject.members[0].network.backbone.name,
        "rows": shares_curve(x, many.labels, many.cases, settings.seed),
    }


def shares_curve(x: NDArray[Any], label: ArrayLike, case: ArrayLike, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each share: cases and patches on average, score, and in how many folds one class was all there was.

    A probe that has seen one class answers .5 throughout, which is chance.
    """
    y, words = np.asarray(label), np.asarray(case)
    check_finite(x)
    p, sizes, single = np.empty((len(SHARES), len(y))), np.zeros((len(SHARES), 2)), np.zeros(len(SHARES), dtype=int)
    folds = case_folds(y, words, seed)
    for train, test in folds:
        for at, rows in enumerate(nested_cases(words[train], SHARES, seed)):
            used = train[rows]
            p[at, test] = probe(x[used], y[used], x[test])
            sizes[at] += (case_index(words[used])[1], len(used))
            single[at] += len(np.unique(y[used])) < 2
    return [
        {
            "share": share,
            "cases": float(sizes[at, 0] / len(folds)),
            "patches": float(sizes[at, 1] / len(folds)),
            "one_class": int(single[at]),
            "folds": len(folds),
            **score(y, p[at], p[at] >= 0.5, words),
        }
        for at, share in enumerate(SHARES)
    ]


def headline(found: dict[str, Any]) -> str:
    return "probe's BA " + ", ".join(f"{said(row['balanced_accuracy'])} of {row['share']:.0%}" for row in found["rows"])


def section(found: dict[str, Any]) -> Section:
    """Scores of a probe over the share of the training cases that it learns from."""
    rows = found["rows"]
    drawing = Drawing(
        curve(
            {"": [row["balanced_accuracy"] for row in rows]},
            "share of the training cases",
            range(len(rows)),
            [f"{row['share']:.0%}" for row in rows],
        ),
        f"Linear probe on frozen {found['backbone']}; dotted: chance. Band: 95 % case-bootstrap interval of the test "
        "alone.",
    )
    table = [
        {
            "share of cases": f"{row['share']:.0%}",
            "cases": f"{row['cases']:.0f}",
            "patches": f"{row['patches']:.0f}",
            "balanced accuracy": Value(**row["balanced_accuracy"]),
            "AUROC": Value(**row["roc_auc"]),
            "folds of one class": f"{row['one_class']} of {row['folds']}",
        }
        for row in rows
    ]
    return Section(TITLE, TEXT, (drawing,), table_html(table))
