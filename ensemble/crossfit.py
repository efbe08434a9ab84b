"""The blend: weights, calibration, operating points, and what all of it is worth on cases that it was not fitted on.

Everything is fitted twice: once on all cases, which is what ships, and once without each fifth of the cases, which is
what is reported. Inside each of these fits, the strength with which tuned weights are pulled towards equal ones is
chosen by another cross-fit over the cases that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from augment.views import VIEW_SETS
from ensemble.blend import OperatingPoint, confidence, decide
from ensemble.calibrate import fit_calibration
from ensemble.fit import KINDS, STRENGTHS, BlendSettings, Fit, Predictions
from ensemble.oof import OofSet, align
from ensemble.points import Rows, fit_point, operating_points
from ensemble.result import BlendResult
from ensemble.splits import case_parts
from midog.errors import unknown
from midog.progress import steps

if TYPE_CHECKING:
    from ensemble.search import Journal

Floats = NDArray[np.float64]
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Candidates for the stack's C, the inverse of its L2 penalty, on logits of common scale."""
TENTH = 10
FEWEST_TRIALS = 100
"""Of a cross-fit's search: after 20 or 30 trials several fits can still hold the same early trial's weights."""
JOURNAL_FILE = "trials.jsonl"


def blend_runs(
    specs: Sequence[str | Path], settings: BlendSettings | None = None, folder: Path | str | None = None
) -> BlendResult:
    """Blend members of runs (`RUN` or `RUN:MEMBER`).

    `folder`, where given, keeps finished trials, so that the same call continues after a kill and ends in the same
    blend. Nothing else is written: call `.write(folder)` on the result.

    Raises: UsageError for unknown or repeated members; DataError where members cannot be aligned or cross-fitted.
    """
    return blend_oof(align(specs), settings or BlendSettings(), folder)


def blend_oof(oof: OofSet, settings: BlendSettings, folder: Path | str | None = None) -> BlendResult:
    """`blend_runs` on logits that are aligned already."""
    import sklearn.linear_model  # noqa: F401  (loads the libraries whose threads are limited below)
    from threadpoolctl import threadpool_limits

    from ensemble.search import open_journal
    from midog.files import lock, sha256_bytes

    for name in settings.fold_models:
        if name not in oof.names:
            raise unknown("member in blend fold_models", name, oof.names)
    rows = blend_rows(oof, settings)
    part = case_parts(rows.case, rows.label, seed=settings.seed)
    identity = {
        "objective": "calibrated",
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("fold_models", "fast")},
        "names": rows.names,
        "logits": sha256_bytes(np.ascontiguousarray(rows.logits[settings.views]).tobytes()),
        "labels": sha256_bytes(rows.label.tobytes()),
        "cases": rows.case.tolist(),
    }
    busy = f"another process blends into {folder}"
    with (
        lock(Path(folder) / ".lock", busy) if folder else nullcontext(),
        open_journal(Path(folder) / JOURNAL_FILE, identity) if folder else nullcontext() as journal,
        steps("blend", int(part.max()) + 2) as advance,
        # Sums depend on how threads share them, and products this small only wait for each other.
        threadpool_limits(1),
    ):
        full = _fit(rows, settings, journal)
        advance("all cases")
        outer, cross_tables, cross_points = _cross_fit(rows, part, settings, journal, advance)
    return BlendResult(
        settings=settings,
        oof=oof,
        full=full,
        outer=outer,
        part=part,
        cross_fitted=cross_tables,
        in_sample={name: predict(point, rows) for name, point in full.tables.items()},
        point_predictions=cross_points,
    )


def blend_rows(oof: OofSet, settings: BlendSettings) -> Rows:
    """What the blend is fitted on: logits of its views and of every other stored view set, labels, cases, domains."""
    stored = [views for views in VIEW_SETS if views == settings.views or oof.holds(views)]
    logits = {views: oof.views(views) for views in stored}
    across = settings.threshold == "across"
    return Rows(oof.names, logits, oof.labels, oof.cases, oof.domains, across, settings.fast)


def predict(point: OperatingPoint, rows: Rows) -> Predictions:
    """Apply an operating point to patches."""
    z = rows.blended(point)
    p = confidence(point, z)
    return Predictions(z, p, decide(point, p))


def _cross_fit(
    rows: Rows,
    part: NDArray[np.int64],
    settings: BlendSettings,
    journal: Journal | None,
    advance: Callable[[str], None],
) -> tuple[tuple[Fit, ...], dict[str, Predictions], dict[str, Predictions]]:
    """Each part predicted by what was fitted on the others: the fits, and predictions by table row and by point."""
    few = replace(settings, trials=_tenth(settings.trials))
    outer: list[Fit] = []
    tables: dict[str, Predictions] = {}
    points: dict[str, Predictions] = {}
    for k in range(int(part.max()) + 1):
        held = part == k
        fit = _fit(rows.take(~held), few, journal, f"part {k}")
        outer.append(fit)
        unseen = rows.take(held)
        for into, fitted in ((tables, fit.tables), (points, fit.points)):
            for name, point in fitted.items():
                _place(into.setdefault(name, _blank(len(part))), held, predict(point, unseen))
        advance(f"without part {k + 1}")
    return tuple(outer), tables, points


def _blank(n: int) -> Predictions:
    return Predictions(np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=np.bool_))


def _place(into: Predictions, rows: NDArray[np.bool_], found: Predictions) -> None:
    into.logit[rows], into.confidence[rows], into.predicted[rows] = found.logit, found.confidence, found.predicted


def _fit(rows: Rows, settings: BlendSettings, journal: Journal | None, part: str = "all") -> Fit:
    """Weights of every kind, calibration and operating points, from these rows alone."""
    from ensemble.search import search

    z, m = rows.logits[settings.views], len(rows.names)
    equal = np.full(m, 1.0 / m)
    tuned = search(z, rows.label, rows.names, settings.trials, settings.seed, journal, part).weights
    inner = case_parts(rows.case, rows.label, seed=settings.seed + 1)
    strength, losses = (0.0, ()) if m == 1 else _strength(rows, inner, settings, journal, part)
    weights = {"equal": equal, "tuned": _shrunk(tuned, strength), "stack": stack_weights(z, rows.label, inner)}
    points = operating_points(weights[settings.kind], settings.views, rows)
    tables = {name: points[f"only:{name}"] for name in rows.names}
    for kind in KINDS:
        own = fit_point(kind, rows.names, weights[kind].tolist(), settings.views, rows)
        tables[kind] = points["full"] if kind == settings.kind else own
    for views in rows.logits:
        tables[f"views {views}"] = fit_point("", rows.names, equal.tolist(), views, rows)
    return Fit(weights, strength, losses, tables, points)


def _strength(
    rows: Rows, inner: NDArray[np.int64], settings: BlendSettings, journal: Journal | None, part: str
) -> tuple[float, tuple[float, ...]]:
    """λ, and the mean log-loss on inner held-out cases of each candidate; of equals, the smallest λ wins."""
    from ensemble.search import search

    trials = settings.trials if part != "all" else _tenth(settings.trials)
    z = rows.logits[settings.views]
    total = np.zeros(len(STRENGTHS))
    for k in range(int(inner.max()) + 1):
        held = inner == k
        rest, y = z[~held], rows.label[~held]
        tuned = search(rest, y, rows.names, trials, settings.seed, journal, f"{part}, inner {k}").weights
        for at, strength in enumerate(STRENGTHS):
            weights = _shrunk(tuned, strength)
            u = fit_calibration(rest @ weights, y).scale(z[held] @ weights)
            total[at] += np.logaddexp(0.0, np.where(rows.label[held] == 1, -u, u)).sum()
    return STRENGTHS[int(np.argmin(total))], tuple((total / len(inner)).tolist())


def _shrunk(tuned: Floats, strength: float) -> Floats:
    """(1 - λ) · equal + λ · tuned."""
    return np.asarray((1 - strength) / len(tuned) + strength * tuned, dtype=np.float64)


def _tenth(trials: int) -> int:
    return max(trials // TENTH, min(trials, FEWEST_TRIALS))


def stack_weights(z: Floats, label: NDArray[Any], part: NDArray[np.int64]) -> Floats:
    """Coefficients of an L2-regularised logistic regression on members' logits, scaled to Σ|w| = 1.

    C is the candidate with the lowest log-loss over the held-out `part`s of cases. Intercept and scale are dropped:
    an operating point's shift and temperature, which are fitted next, take their place.
    """
    if z.shape[1] == 1:
        return np.ones(1)
    x = fit_calibration(z.mean(axis=1), label).scale(z)
    losses = [_stack_loss(x, label, part, penalty) for penalty in PENALTIES]
    coefficients, _ = _logistic(x, label, PENALTIES[int(np.argmin(losses))])
    whole = float(np.abs(coefficients).sum())
    return coefficients / whole if whole > 0 else np.full(z.shape[1], 1.0 / z.shape[1])


def _stack_loss(x: Floats, label: NDArray[Any], part: NDArray[np.int64], penalty: float) -> float:
    total = 0.0
    for k in range(int(part.max()) + 1):
        held = part == k
        coefficients, intercept = _logistic(x[~held], label[~held], penalty)
        u = x[held] @ coefficients + intercept
        total += float(np.logaddexp(0.0, np.where(label[held] == 1, -u, u)).sum())
    return total


def _logistic(x: Floats, label: NDArray[Any], penalty: float) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    # Few columns, many rows: a handful of exact Newton steps, where the default solver takes hundreds of small ones.
    model = LogisticRegression(C=penalty, solver="newton-cholesky", max_iter=1000).fit(x, label)
    return np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0])
