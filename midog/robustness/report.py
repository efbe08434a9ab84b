"""All measurements of a feature file at once: what can be measured, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from midog.errors import DataError, MidogError, unknown
from midog.metrics import case_index
from midog.robustness.clustering import clustering_card
from midog.robustness.features import Features
from midog.robustness.inputs import Floats
from midog.robustness.neighbours import neighbours, shortest_list
from midog.robustness.paired import paired_robustness
from midog.robustness.pathorob import KS, K, best_k, robustness_curve
from midog.robustness.performance_drop import Protocol, performance_drop
from midog.robustness.predictability import FOLDS, predictability

MEASURES = ("paired", "index", "confounder", "label", "clustering", "drop")


@dataclass(frozen=True)
class Effort:
    """How much is spent: draws of each pair, patches of a cell and clusterings of a table, and the biased training."""

    repeats: int = 5
    limit: int = 100
    clusters: tuple[int, ...] = tuple(range(2, 31))
    starts: int = 5
    runs: int = 20
    protocol: Protocol = field(default_factory=lambda: Protocol(repeats=5))


def report(
    features: Features,
    label: str = "label",
    confounder: str = "scanner",
    group: str = "case",
    only: Sequence[str] = MEASURES,
    k: int = K,
    seed: int = 0,
    effort: Effort = Effort(),
) -> dict[str, Any]:
    """Every measure of every array of a feature file, as plain JSON.

    Args:
        features: as `read_features` gives them.
        label, confounder, group: names of columns; rows in which one of the first two is empty are left out.
        only: of `MEASURES`: paired and whole robustness index, how well confounder and label are told from features,
            clustering score, average performance drop.
        k: neighbours.
        effort: see `Effort`.

    Returns: n, left_out, cases, …, and `arrays`: name → measure → its numbers, or {"problem": why there are none}.

    Raises: UsageError for unknown columns or measures; DataError where no row is left, or features are not finite.
    """
    for name in only:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
    words = {name: features.column(name).astype(str) for name in (label, confounder, group)}
    known = (words[label] != "") & (words[confounder] != "")
    kept = features.subset(known)
    y, c, case = (words[name][known] for name in (label, confounder, group))
    if not known.any():
        raise DataError(f"no row has both {label} and {confounder}", "choose other columns")
    _check_finite(kept)

    def measures(x: Floats) -> dict[str, Callable[[], Any]]:
        return {
            "paired": lambda: paired_robustness(x, y, c, case, k, effort.repeats, seed).to_dict(),
            "index": lambda: _index(x, y, c, case, k, seed),
            "confounder": lambda: _told(x, c, case, seed),
            "label": lambda: _told(x, y, case, seed),
            "clustering": lambda: clustering_card(
                x, y, c, case, effort.clusters, effort.starts, effort.runs, effort.limit
            ).to_dict(),
            "drop": lambda: performance_drop(x, y, c, case, protocol=effort.protocol).to_dict(),
        }

    return {
        "label": label,
        "confounder": confounder,
        "group": group,
        "n": int(known.sum()),
        "left_out": int((~known).sum()),
        "cases": case_index(case)[1],
        "counts": _counts(y, c),
        "arrays": {
            name: {
                "dimensions": int(x.shape[1]),
                **{measure: _tried(compute) for measure, compute in measures(x).items() if measure in only},
            }
            for name, x in kept.arrays.items()
        },
    }


def _check_finite(features: Features) -> None:
    bad = {name: int((~np.isfinite(x).all(axis=1)).sum()) for name, x in features.arrays.items()}
    if any(bad.values()):
        raise DataError(
            "feature vectors are not finite",
            "leave these rows out, or compute the features again in float32",
            [f"{name}: {count} of {len(features)}" for name, count in bad.items() if count],
        )


def _tried(compute: Callable[[], Any]) -> Any:
    """A measure that this table does not allow must not cost the others."""
    try:
        return compute()
    except MidogError as error:
        return {"problem": error.render()}


def _index(x: Floats, y: Any, c: Any, case: Any, k: int, seed: int) -> dict[str, Any]:
    """The index on the whole table, unbalanced as it is, its curve, and the k that a vote would choose."""
    ks = sorted({k, *(other for other in KS if other <= shortest_list(case))})
    near = neighbours(x, case, max(ks))
    curve = robustness_curve(x, y, c, case, ks, seed, near)
    return {
        **curve[ks.index(k)].to_dict(),
        "curve": [card.to_dict() for card in curve],
        "best_k": best_k(x, y, case, ks, near),
    }


def _told(x: Floats, target: Any, case: Any, seed: int) -> dict[str, Any]:
    """Predictability in five folds, or as many as the rarest level has cases; levels of one case are left out."""
    index = case_index(case)[0]
    names = np.unique(target)
    cases = {name: len(np.unique(index[target == name])) for name in names}
    single = [str(name) for name in names if cases[name] < 2]
    if len(names) - len(single) < 2:
        raise DataError(
            "fewer than two levels have two cases or more", "add cases", [f"{k}: {cases[k]}" for k in names]
        )
    rows = ~np.isin(target, single)
    folds = min([FOLDS, *(count for count in cases.values() if count > 1)])
    return {**predictability(x[rows], target[rows], case[rows], folds, seed).to_dict(), "left_out": single}


def _counts(y: Any, c: Any) -> dict[str, dict[str, int]]:
    return {str(b): {str(a): int(((y == a) & (c == b)).sum()) for a in np.unique(y)} for b in np.unique(c)}
