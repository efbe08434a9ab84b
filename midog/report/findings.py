"""What a run or a blend folder says, gathered for the page: scores, predictions, members, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.calibrate import threshold_curve
from midog.data.patches import PatchTable
from midog.errors import DataError
from midog.metrics import Interval, Scores, bootstrap_by_case, scores
from midog.run import sigmoid

Floats = NDArray[np.float64]
FEW = 30
"""Atypical patches below which a group's scores are marked (our choice): one patch moves sensitivity by 3 points."""
METRICS = ("balanced_accuracy", "roc_auc", "log_loss")


@dataclass(frozen=True)
class ScoreRow:
    """Scores of a member, a kind of blend or a domain; `in_sample` None where nothing was fitted."""

    name: str
    scores: Scores
    intervals: Mapping[str, Interval]
    in_sample: Scores | None = None
    at_logit_0: float | None = None

    @property
    def few(self) -> bool:
        return self.scores.n_atypical < FEW


@dataclass(frozen=True)
class Predictions:
    """The predictions the page is about, one per patch of `table`, all labelled: the truth is `table.labels`.

    `confidence` (n,) P(atypical), `predicted` (n,) bool, `threshold` the one that ships. `smooth` is the smoothed
    (threshold, balanced accuracy) curve, None where a class is absent.
    """

    table: PatchTable
    confidence: Floats
    predicted: NDArray[np.bool_]
    threshold: float
    smooth: tuple[Floats, Floats] | None = None

    @property
    def labels(self) -> NDArray[np.int8]:
        return self.table.labels

    @property
    def cases(self) -> int:
        """How many cases; a patch without a case is one of its own."""
        case = self.table.column("case")
        return len(set(case[case != ""])) + int((case == "").sum())


@dataclass(frozen=True)
class FoldCurve:
    """One fold of a member: name, state, and its loss per epoch so far."""

    name: str
    state: str
    epochs: NDArray[np.int64]
    loss: Floats
    problem: str = ""


@dataclass(frozen=True)
class MemberFacts:
    """A member: `starts_from` says what its backbone started from, `random` warns of random weights without a start of
    their own; `logits` (n,) on the patches of the predictions, None where it has not scored them all."""

    name: str
    backbone: str
    random: bool
    epochs: int
    loss: str
    folds: tuple[FoldCurve, ...] = ()
    logits: Floats | None = None
    starts_from: str = "–"


@dataclass(frozen=True)
class Findings:
    """Everything the page shows. `kind` is run or blend; `chosen` names the row of `rows` the page is about;
    `thresholds` is that part of blend.json, and `threshold_rule` the rule that ships. `head_maps` are by member."""

    kind: str
    name: str
    what: str
    how_scored: str
    chosen: str
    predictions: Predictions | None
    rows: tuple[ScoreRow, ...]
    domains: tuple[ScoreRow, ...]
    members: tuple[MemberFacts, ...]
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    weight_fits: tuple[dict[str, float], ...] = ()
    strength: float | None = None
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    threshold_rule: str = "pooled"
    provenance: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    finished: bool = True
    head_maps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def row(self) -> ScoreRow | None:
        """The scores the page is about."""
        return next((row for row in self.rows if row.name == self.chosen), None)

    @property
    def random(self) -> tuple[str, ...]:
        """Members that started from random weights."""
        return tuple(member.name for member in self.members if member.random)


def score_row(name: str, table: PatchTable, confidence: Floats, predicted: NDArray[np.bool_]) -> ScoreRow:
    """Scores with 95 % case-bootstrap intervals, out of predictions that nothing was fitted for."""
    y, case = table.labels, table.column("case")
    return ScoreRow(name, scores(y, confidence, predicted), bootstrap_by_case(y, confidence, predicted, case, METRICS))


def smooth_curve(label: NDArray[np.int8], confidence: Floats) -> tuple[Floats, Floats] | None:
    """Smoothed (threshold, balanced accuracy): what a blend takes its threshold from. None where a class is absent."""
    p = np.clip(confidence, 1e-12, 1 - 1e-12)
    try:
        curve = threshold_curve(np.log(p / (1 - p)), label)
    except DataError:
        return None
    return sigmoid(curve.threshold), curve.balanced_accuracy


def domain_rows(predictions: Predictions) -> tuple[ScoreRow, ...]:
    """One row per domain, the largest first."""
    words = predictions.table.column("domain")
    words = np.where(words == "", "(unknown)", words).astype(str)
    found = []
    for word in np.unique(words):
        rows = words == word
        table = predictions.table.subset(rows)
        found.append(score_row(str(word), table, predictions.confidence[rows], predictions.predicted[rows]))
    return tuple(sorted(found, key=lambda row: (-row.scores.n, row.name)))


def provenance_rows(content: Mapping[str, Any], title: str = "") -> list[tuple[str, str]]:
    """Seeds, hashes, machine, commit and versions of a manifest as (name, value) lines; what is absent is left out."""
    names = {
        "seed": "seed",
        "patches": "training patches",
        "cases": "cases",
        "held_out_patches": "held-out patches (not used)",
        "data_sha256": "data hash",
        "data_hash": "data hash",
        "folds_sha256": "folds hash",
        "folds_hash": "folds hash",
        "device": "device",
        "threads": "threads",
        "precision": "precision",
        "git": "git commit",
        "python": "Python",
        "platform": "platform",
    }
    prefix = f"{title}: " if title else ""
    rows = [(prefix + shown, str(content[key])) for key, shown in names.items() if content.get(key) is not None]
    versions = content.get("versions")
    if isinstance(versions, Mapping):
        rows.append((f"{prefix}versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def distinct(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """`rows` without repeated lines, in order."""
    return tuple(dict.fromkeys(rows))
