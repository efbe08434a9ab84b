"""Operating points: named sets of members and views, each with its own calibration and threshold.

    full         every member that has a weight
    fast         the best member (as many as `blend: {fast: 2}` says), one view, one fold model of each: what an
                 out-of-fold score is the score of
    only:<m>     one member                        without:<m>  all but one
    top:<k>      the k members of greatest weight
    …/1          each of them with one view

Members left after some are taken away keep their weights, scaled up; where none has a weight they share equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import OperatingPoint, combine
from ensemble.calibrate import Calibration, fit_calibration, fit_threshold

ONE_VIEW = "/1"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """What is fitted on, or applied to: logits of m members on n patches.

    `logits` maps a view set to (n, m) logits of atypical; `label` (n,) 0 or 1; `case`, `domain` (n,) words;
    `across` = choose thresholds for all domains alike.
    """

    names: tuple[str, ...]
    logits: dict[str, Floats]
    label: NDArray[np.int8]
    case: NDArray[np.object_]
    domain: NDArray[np.object_]
    across: bool
    fast: int = 1

    def take(self, rows: NDArray[np.bool_]) -> Rows:
        logits = {views: z[rows] for views, z in self.logits.items()}
        return replace(self, logits=logits, label=self.label[rows], case=self.case[rows], domain=self.domain[rows])

    def blended(self, point: OperatingPoint) -> Floats:
        """z of each patch, (n,)."""
        columns = [self.names.index(name) for name in point.members]
        return combine(point, self.logits[point.views][:, columns])


def fit_point(name: str, members: Sequence[str], weights: Sequence[float], views: str, rows: Rows) -> OperatingPoint:
    """An operating point with shift, temperature and threshold fitted on `rows`."""
    raw = OperatingPoint(name, tuple(members), tuple(map(float, weights)), views, 0.0, 1.0, 0.5)
    z = rows.blended(raw)
    calibration = fit_calibration(z, rows.label)
    threshold = fit_threshold(calibration.scale(z), rows.label, rows.domain if rows.across else None)
    return replace(raw, shift=calibration.shift, temperature=calibration.temperature, threshold=threshold)


def operating_points(weights: Floats, views: str, rows: Rows) -> dict[str, OperatingPoint]:
    """All operating points of a blend with these `weights` (m,) over `rows.names` and this view set."""
    fitted: dict[tuple[tuple[str, ...], tuple[float, ...], str], OperatingPoint] = {}

    def fit(name: str, chosen: Sequence[int], seen: str) -> OperatingPoint:
        members = tuple(rows.names[at] for at in chosen)
        part = _rescaled(weights, chosen)
        key = (members, part, seen)
        if key not in fitted:
            fitted[key] = fit_point(name, members, part, seen, rows)
        return replace(fitted[key], name=name, fold_models=int(name.removesuffix(ONE_VIEW) == "fast"))

    single = [log_loss_of(fit("", [at], "none"), rows) for at in range(len(rows.names))]
    points: dict[str, OperatingPoint] = {}
    for name, chosen in _sets(weights, rows.names, single, rows.fast).items():
        points[name] = fit(name, chosen, "none" if name == "fast" else views)
        points[name + ONE_VIEW] = fit(name + ONE_VIEW, chosen, "none")
    return points


def _sets(weights: Floats, names: Sequence[str], single: Sequence[float], fast: int) -> dict[str, list[int]]:
    """Members, as positions, of each operating point; `single` is each member's own log-loss with one view, `fast` how
    many of the best that point has."""
    everyone = list(range(len(names)))
    ranked = sorted(everyone, key=lambda at: (-weights[at], single[at], names[at]))
    best = sorted(everyone, key=lambda at: (single[at], names[at]))[:fast]
    sets = {"full": _weighted(everyone, weights), "fast": _weighted(sorted(best), weights)}
    sets |= {f"only:{names[at]}": [at] for at in everyone}
    if len(names) > 1:
        sets |= {f"without:{names[at]}": _weighted([i for i in everyone if i != at], weights) for at in everyone}
    sets |= {f"top:{k}": _weighted(sorted(ranked[:k]), weights) for k in range(2, len(names))}
    return sets


def _weighted(chosen: list[int], weights: Floats) -> list[int]:
    """Those of `chosen` that have a weight; all of them where none has: a member without weight only costs time."""
    return [at for at in chosen if weights[at] != 0] or chosen


def _rescaled(weights: Floats, chosen: Sequence[int]) -> tuple[float, ...]:
    part = weights[list(chosen)]
    whole = float(np.abs(part).sum())
    if len(part) == 1 or whole == 0:
        return (1.0 / len(part),) * len(part)
    return tuple(float(value) for value in part / whole)


def log_loss_of(point: OperatingPoint, rows: Rows) -> float:
    """Mean log-loss of the point's confidences on `rows`."""
    u = Calibration(point.shift, point.temperature).scale(rows.blended(point))
    return float(np.logaddexp(0.0, np.where(rows.label == 1, -u, u)).mean())
