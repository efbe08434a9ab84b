"""Two results on the same patches: paired case-bootstrap, and which differences are noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import BLEND_FILE, OperatingPoint, combine, confidence, decide
from ensemble.oof import OofSet, align, split_spec
from ensemble.points import Rows, fit_point
from ensemble.predictions import EVERYTHING, Scored, read_scored
from ensemble.splits import case_parts
from midog.errors import DataError
from midog.metrics import LEVEL, Interval, Scores, percentile_interval, replicates, scores

METRICS = ("balanced_accuracy", "roc_auc", "log_loss")
LOWER_IS_BETTER = ("log_loss",)
REPLICATES = 4000
"""More than one result needs: intervals that hold together reach further into the tails."""
NOISE = "noise"
ONE_TRAINING = "one training"
"""The verdict where other cases would say the same, but a single training a side cannot tell luck from worth."""
ONE_TRAINING_MEANS = f"{ONE_TRAINING}: other cases would say the same, but a single fold model a side may be luck"


@dataclass(frozen=True)
class Difference:
    """B minus A of one metric in one group.

    `verdict` is noise, "A better" or "B better"; "one training" for what is not noise in out-of-fold results on
    patches that are all of one fold, so of one training on either side; None where undefined.

    The interval is wide enough for all intervals of its part of the table (all patches, or all groups) to hold
    together in 95 of 100 cases; without that, one difference in twenty would stand out by chance.
    """

    group: str
    metric: str
    n: int
    n_atypical: int
    a: float | None
    b: float | None
    difference: float | None
    interval: Interval | None
    verdict: str | None


@dataclass(frozen=True)
class Comparison:
    """All differences between two results; `left_out` counts patches that only A, only B has.

    `drawn` says what the bootstrap drew: "cases", or "folds and cases" for two out-of-fold results of the same folds;
    within a group that is of a single fold it draws cases alone.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    left_out: tuple[int, int]
    drawn: str

    @property
    def verdict(self) -> str:
        """noise; or which one is better on all patches, where some metric says so and none the contrary; or mixed."""
        found = {d.verdict for d in self.differences if d.group == EVERYTHING} - {NOISE, None}
        return NOISE if not found else str(found.pop()) if len(found) == 1 else "mixed"

    def table(self) -> list[dict[str, Any]]:
        """Rows to print."""
        return [
            {
                "group": d.group,
                "n": d.n,
                "atypical": d.n_atypical,
                "metric": d.metric,
                "A": d.a,
                "B": d.b,
                "B - A": d.difference,
                "interval": None if d.interval is None else (d.interval.low, d.interval.high),
                "verdict": d.verdict,
            }
            for d in self.differences
        ]


def compare(
    a: str | Path,
    b: str | Path,
    by: str | None = None,
    truth: str | Path | None = None,
    n: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Compare two of: `RUN` (mean logit of its members), `RUN:MEMBER`, blend folder, prediction table (CSV).

    Runs and members are scored out of fold with one view, shift, temperature and threshold cross-fitted by case;
    blends by their own cross-fitted predictions; prediction tables as they are, with the labels of `truth`.
    Where both are out of fold with the same folds, folds are drawn before cases, so that the luck of training one
    fold model is part of the spread: two seeds of one recipe differ by more than the choice of cases explains.
    Only patches that both have are compared. `by` (domain, tumour, scanner or laboratory) adds each group.

    Raises: UsageError for an unknown group or member; DataError where the two share no patch or disagree on truth.
    """
    first, second = load_scored(a, truth), load_scored(b, truth)
    left, right, left_out = _paired(first, second)
    found = _differences(left, right, {EVERYTHING: np.ones(len(left.table), dtype=np.bool_)}, n, seed)
    if by is not None:
        words = left.groups(by).astype(str)
        found += _differences(left, right, {str(word): words == word for word in np.unique(words)}, n, seed)
    drawn = "folds and cases" if _trainings(_shared_folds(left, right)) > 1 else "cases"
    return Comparison(first.name, second.name, tuple(found), left_out, drawn)


def load_scored(spec: str | Path, truth: str | Path | None = None) -> Scored:
    """The predictions that `spec` names, with their truth."""
    path, member = split_spec(spec)
    if member is None and path.is_dir() and (path / BLEND_FILE).is_file():
        from ensemble.result import OOF_BLEND_FILE

        return _named(str(spec), read_scored(path / OOF_BLEND_FILE))
    if member is None and path.is_file():
        return read_scored(path, truth)
    if member is None and not path.exists():
        raise DataError(f"no such run, blend or prediction table: {path}", "midog compare RUN|RUN:MEMBER|BLEND|CSV …")
    return score_members(str(spec), align([spec]))


def _named(name: str, scored: Scored) -> Scored:
    return replace(scored, name=name)


def score_members(name: str, oof: OofSet) -> Scored:
    """Mean logit of the members, identity view; calibration and threshold cross-fitted by case."""
    z = oof.views("none")
    rows = Rows(oof.names, {"none": z}, oof.labels, oof.cases, oof.domains, across=False)
    weights = [1.0 / len(oof.names)] * len(oof.names)
    part = case_parts(oof.cases, oof.labels)
    logit, p, called = np.empty(len(z)), np.empty(len(z)), np.zeros(len(z), dtype=np.bool_)
    for k in range(int(part.max()) + 1):
        held = part == k
        point: OperatingPoint = fit_point("full", oof.names, weights, "none", rows.take(~held))
        logit[held] = combine(point, z[held])
        p[held] = confidence(point, logit[held])
        called[held] = decide(point, p[held])
    return Scored(name, oof.table, logit, p, called, oof.folds)


def _paired(a: Scored, b: Scored) -> tuple[Scored, Scored, tuple[int, int]]:
    """Both results on the patches they share, in A's order."""
    place = {patch_id: row for row, patch_id in enumerate(b.table.ids)}
    mine = np.array([row for row, i in enumerate(a.table.ids) if i in place], dtype=np.int64)
    if not len(mine):
        raise DataError(
            f"{a.name} and {b.name} share no patch",
            "compare results on the same patches: two runs or blends, or two prediction tables",
            [f"{a.name}: {a.table.ids[0]} …", f"{b.name}: {b.table.ids[0]} …"],
        )
    theirs = np.array([place[a.table.ids[row]] for row in mine], dtype=np.int64)
    left, right = _subset(a, mine), _subset(b, theirs)
    problems = []
    for name in ("label", "case"):
        x, y = left.table.column(name), right.table.column(name)
        differ = np.flatnonzero((x != y) & (x != "") & (y != ""))
        problems += [f"{left.table.ids[row]}: {name} {x[row]} in A, {y[row]} in B" for row in differ]
    if problems:
        raise DataError(f"{a.name} and {b.name} disagree on what is true", "score both with one patch table", problems)
    return left, right, (len(a.table) - len(mine), len(b.table) - len(mine))


def _subset(scored: Scored, rows: NDArray[np.int64]) -> Scored:
    return Scored(
        scored.name,
        scored.table.subset(rows),
        scored.logit[rows],
        scored.confidence[rows],
        scored.predicted[rows],
        None if scored.folds is None else scored.folds[rows],
    )


def _shared_folds(a: Scored, b: Scored) -> NDArray[np.int32] | None:
    """The folds of two out-of-fold results, where they are the same."""
    if a.folds is None or b.folds is None or not np.array_equal(a.folds, b.folds):
        return None
    return a.folds


def _trainings(folds: NDArray[np.int32] | None) -> int:
    """Trainings that results on patches of these `folds` come from, a side; 0 for what is not out of fold."""
    return 0 if folds is None else len(np.unique(folds))


def verdict_of(interval: Interval | None, metric: str, better: str, worse: str, trainings: int) -> str | None:
    """What the interval of a difference says: `better` or `worse`, noise where it crosses 0, None where undefined.

    "one training" stands for better and worse where `trainings`, those that the bootstrap drew from, are one.
    """
    if interval is None:
        return None
    if interval.low <= 0 <= interval.high:
        return NOISE
    if trainings == 1:
        return ONE_TRAINING
    return better if (interval.low > 0) != (metric in LOWER_IS_BETTER) else worse


def _differences(a: Scored, b: Scored, masks: dict[str, NDArray[np.bool_]], n: int, seed: int) -> list[Difference]:
    level = 1 - (1 - LEVEL) / (len(METRICS) * len(masks))
    y, case, folds = a.table.labels, a.table.column("case"), _shared_folds(a, b)
    found: list[Difference] = []
    for group, rows in masks.items():
        both = [(s.confidence[rows], s.predicted[rows]) for s in (a, b)]
        scored = [scores(y[rows], *pair) for pair in both]
        fold = None if folds is None else folds[rows]
        draws = [replicates(y[rows], *pair, case[rows], METRICS, n, seed, fold) for pair in both]
        for metric in METRICS:
            interval = percentile_interval(draws[1][metric] - draws[0][metric], level)
            found.append(_difference(group, metric, scored, interval, _trainings(fold)))
    return found


def _difference(
    group: str, metric: str, scored: Sequence[Scores], interval: Interval | None, trainings: int
) -> Difference:
    a, b = (getattr(score, metric) for score in scored)
    verdict = verdict_of(interval, metric, "B better", "A better", trainings)
    difference = None if a is None or b is None else b - a
    return Difference(group, metric, scored[0].n, scored[0].n_atypical, a, b, difference, interval, verdict)
