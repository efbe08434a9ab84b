"""What a blend found: its scores as a table, and the blend folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import BLEND_FILE, OperatingPoint
from ensemble.fit import KINDS, STRENGTHS, BlendSettings, Fit, Predictions
from ensemble.oof import OofSet, Source
from ensemble.predictions import EVERYTHING, Scored, group_words, write_scored
from ensemble.thresholds import Thresholds, threshold_content, unseen_domains
from midog.errors import unknown
from midog.files import read_json, write_json
from midog.metrics import Interval, Scores, bootstrap_by_case, scores
from midog.provenance import provenance

OOF_BLEND_FILE = "oof_blend.csv"
OOF_FAST_FILE = "oof_fast.csv"
INTERVALS = ("balanced_accuracy", "sensitivity", "specificity", "roc_auc", "log_loss")
CALIBRATION_NOTE = (
    "weights, shift, temperature and threshold are fitted on logits of single fold models, each on the cases it never "
    "saw, and are used on the mean logit of all fold models: measure it on held-out cases (operating point fast uses "
    "one fold model, as its scores do)"
)


@dataclass(frozen=True)
class Row:
    """One line of the table: scores of a member or a kind of blend on all patches or on one group of them.

    `at_logit_0` is the cross-fitted balanced accuracy when the uncalibrated logit alone decides (sigmoid at 0.5).
    """

    name: str
    group: str
    cross_fitted: Scores
    intervals: dict[str, Interval]
    in_sample: Scores
    in_sample_intervals: dict[str, Interval]
    at_logit_0: float | None


@dataclass(frozen=True)
class BlendResult:
    """A fitted blend. `full` is what ships; `outer` what was fitted without each part of the cases.

    `part` (n,) is each patch's part; `cross_fitted` and `in_sample` hold predictions of each member, `equal`, `tuned`,
    `stack` and `views <set>`; `point_predictions` the cross-fitted ones of each operating point.
    """

    settings: BlendSettings
    oof: OofSet
    full: Fit
    outer: tuple[Fit, ...]
    part: NDArray[np.int64]
    cross_fitted: dict[str, Predictions]
    in_sample: dict[str, Predictions]
    point_predictions: dict[str, Predictions]

    @property
    def points(self) -> dict[str, OperatingPoint]:
        """The operating points that ship."""
        return self.full.points

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each member in the blend that ships."""
        return self._named(self.full.weights[self.settings.kind])

    def _named(self, weights: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(self.oof.names, weights.tolist(), strict=True))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Each member, then equal, tuned and stack: on all patches first, then within each domain; on all patches also
        equal weights with each stored view set."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[Row]:
        words = group_words(self.oof.table, "domain")
        masks = {EVERYTHING: np.ones(len(words), dtype=np.bool_)}
        if len(np.unique(words.astype(str))) > 1:
            masks |= {str(word): words == word for word in np.unique(words.astype(str))}
        for group, rows in masks.items():
            names = (*self.oof.names, *KINDS)
            for name in self.cross_fitted if group == EVERYTHING else names:
                yield self._row(name, group, rows)

    def _row(self, name: str, group: str, rows: NDArray[np.bool_]) -> Row:
        y, case = self.oof.labels[rows], self.oof.cases[rows]
        cross, inside = self.cross_fitted[name], self.in_sample[name]
        own, own_intervals = _scores(y, case, cross, rows)
        seen, seen_intervals = _scores(y, case, inside, rows)
        raw = scores(y, cross.confidence[rows], cross.logit[rows] >= 0).balanced_accuracy
        return Row(name, group, own, own_intervals, seen, seen_intervals, raw)

    @cached_property
    def thresholds(self) -> Thresholds | None:
        """What `full` costs in domains that its threshold has never seen; None where there is but one domain."""
        words, found = group_words(self.oof.table, "domain"), self.cross_fitted[self.settings.kind]
        return unseen_domains(found.logit, self.oof.labels, self.oof.cases, words, self.part)

    def table(self, by_domain: bool = True) -> list[dict[str, Any]]:
        """Rows to print: cross-fitted scores with 95 % case-bootstrap intervals, in-sample ones beside them."""
        return [_plain_row(row) for row in self.rows if by_domain or row.group == EVERYTHING]

    def scores(self, by: str | None = None, name: str | None = None) -> dict[str, Scores]:
        """Cross-fitted scores of each member and kind; with `by`, those of `name` (default: the blend) per group.

        Raises: UsageError for an unknown name or group.
        """
        y = self.oof.labels
        if by is None:
            found = self.cross_fitted
            return {key: scores(y, value.confidence, value.predicted) for key, value in found.items()}
        chosen = name or self.settings.kind
        if chosen not in self.cross_fitted:
            raise unknown("member or kind", chosen, self.cross_fitted)
        value, words = self.cross_fitted[chosen], group_words(self.oof.table, by).astype(str)
        return {
            str(word): scores(y[words == word], value.confidence[words == word], value.predicted[words == word])
            for word in np.unique(words)
        }

    def scored(self, name: str | None = None) -> Scored:
        """Cross-fitted predictions beside the truth, of a member or kind (default: the blend)."""
        chosen = name or self.settings.kind
        if chosen not in self.cross_fitted:
            raise unknown("member or kind", chosen, self.cross_fitted)
        return self._scored(chosen, self.cross_fitted[chosen])

    def _scored(self, name: str, found: Predictions) -> Scored:
        return Scored(name, self.oof.table, found.logit, found.confidence, found.predicted, self.oof.folds)

    def write(self, folder: Path | str) -> Path:
        """Write oof_blend.csv and oof_fast.csv (cross-fitted predictions of `full` and `fast` with their truth) and,
        last, blend.json; returns its path.

        Equal blends give equal bytes: no time is written.
        """
        folder = Path(folder)
        write_scored(folder / OOF_BLEND_FILE, self.scored())
        write_scored(folder / OOF_FAST_FILE, self._scored("fast", self.point_predictions["fast"]))
        return write_json(folder / BLEND_FILE, self.content(folder))

    def content(self, folder: Path) -> dict[str, Any]:
        """blend.json as a plain object; paths relative to `folder`."""
        table = self.oof.table
        return {
            "settings": asdict(self.settings),
            "members": [_member(s, folder, self.settings.fold_models.get(s.name)) for s in self.oof.sources],
            "weights": {kind: self._named(w) for kind, w in self.full.weights.items()},
            "shrinkage": {
                "strength": self.full.strength,
                "candidates": dict(zip(map(str, STRENGTHS), self.full.strength_losses, strict=False)),
            },
            "points": {name: self._point(name) for name in self.full.points},
            "prevalence": self.oof.prevalence,
            "patches": len(table),
            "cases": len(set(self.oof.cases)),
            "scores": [_row_content(row) for row in self.rows],
            "thresholds": threshold_content(self.thresholds),
            "cross_fit": {"parts": len(self.outer), "fits": [_fit_content(fit, self) for fit in self.outer]},
            "calibration": CALIBRATION_NOTE,
            "data_hash": table.data_hash,
            "folds_hash": table.folds_hash,
            "provenance": {**provenance(), "runs": _manifests(self.oof.sources)},
        }

    def _point(self, name: str) -> dict[str, Any]:
        """An operating point with the cross-fitted scores of its set of members and views."""
        found = self.point_predictions[name]
        score = scores(self.oof.labels, found.confidence, found.predicted)
        return {**self.full.points[name].to_dict(), "cross_fitted": score.to_dict()}


def _scores(
    y: NDArray[np.int8], case: NDArray[np.object_], found: Predictions, rows: NDArray[np.bool_]
) -> tuple[Scores, dict[str, Interval]]:
    p, called = found.confidence[rows], found.predicted[rows]
    return scores(y, p, called), bootstrap_by_case(y, p, called, case, INTERVALS)


def _plain_row(row: Row) -> dict[str, Any]:
    def pair(interval: Interval | None) -> tuple[float, float] | None:
        return None if interval is None else (interval.low, interval.high)

    result: dict[str, Any] = {"name": row.name, "group": row.group, "n": row.cross_fitted.n}
    result["atypical"] = row.cross_fitted.n_atypical
    for metric in ("balanced_accuracy", "roc_auc", "log_loss"):
        result[metric] = getattr(row.cross_fitted, metric)
        result[f"{metric}_interval"] = pair(row.intervals.get(metric))
        result[f"{metric}_in_sample"] = getattr(row.in_sample, metric)
    return result


def _row_content(row: Row) -> dict[str, Any]:
    def whole(score: Scores, intervals: dict[str, Interval]) -> dict[str, Any]:
        return {**score.to_dict(), "intervals": {name: value.to_dict() for name, value in intervals.items()}}

    return {
        "name": row.name,
        "group": row.group,
        "cross_fitted": {**whole(row.cross_fitted, row.intervals), "balanced_accuracy_at_logit_0": row.at_logit_0},
        "in_sample": whole(row.in_sample, row.in_sample_intervals),
    }


def _fit_content(fit: Fit, result: BlendResult) -> dict[str, Any]:
    point = fit.points["full"]
    weights = fit.weights[result.settings.kind].tolist()
    return {
        "weights": dict(zip(result.oof.names, weights, strict=True)),
        "strength": fit.strength,
        "shift": point.shift,
        "temperature": point.temperature,
        "threshold": point.threshold,
    }


def _member(source: Source, folder: Path, count: int | None) -> dict[str, Any]:
    """A member with its first `count` fold models; None: all. `start`, its kind, is absent where there is none."""
    folds = {}
    for k in range(len(source.run.fold_names[:count])):
        model = source.run.fold_folder(source.member, k)
        done = read_json(model / "done.json")
        folds[str(k)] = {"path": _relative(model / "model.safetensors", folder), "sha256": str(done["model_sha256"])}
    start = source.run.recipe["members"][source.member].get("start")
    return {
        "name": source.name,
        "run": _relative(source.run.path, folder),
        "member": source.member,
        "folds": folds,
        "network": source.run.network(source.member),
        **({"start": str(start["kind"])} if isinstance(start, Mapping) else {}),
    }


def _relative(path: Path, folder: Path) -> str:
    """Relative, so that a project folder can be moved or copied as a whole."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _manifests(sources: tuple[Source, ...]) -> dict[str, Any]:
    """What each run's manifest says, by the run's name, less the long list of training pixels."""
    runs = {source.run.path.resolve(): source.run.manifest for source in sources}
    names, left_out = run_names(runs), ("training_pixels", "schema_version")
    return {names[path]: {k: v for k, v in manifest.items() if k not in left_out} for path, manifest in runs.items()}


def run_names(runs: Iterable[Path | str]) -> dict[Path, str]:
    """Resolved path of each run → its name in blend.json: its folder's, with those above it that tell it from others.

    A name that one run alone has is the folder's, as in the blends of earlier releases.
    """
    paths = list(dict.fromkeys(Path(run).resolve() for run in runs))

    def name_of(path: Path) -> str:
        tails = [path.parts[-length:] for length in range(1, len(path.parts) + 1)]
        own = next(tail for tail in tails if sum(other.parts[-len(tail) :] == tail for other in paths) == 1)
        return "/".join(own)

    return {path: name_of(path) for path in paths}
