"""What the operating point costs in a domain that the threshold has never seen: each domain is left out of it in turn.

The networks rank, the threshold decides; a threshold fitted on some scanners may lie wrong on the next one. Here
shift, temperature and threshold are fitted on all domains but one and applied to that one, by both rules: `pooled`, and
`across`, which serves each domain alike. Beside it the same cross-fitted by case, where every domain has been seen.

    regret = best balanced accuracy that any one threshold reaches on the domain's own logits - that with ours
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.blend import OperatingPoint, confidence, decide
from ensemble.calibrate import ACROSS_LEAST
from ensemble.points import Rows, fit_point

Bools = NDArray[np.bool_]

RULES = ("pooled", "across")
ALL, MEAN, WORST = "all", "mean of domains", "worst of domains"
ONE_DOMAIN = "All patches are of one domain: what the threshold costs in another cannot be told from them."
HOW = (
    "left_out: shift, temperature and threshold fitted on all other domains; by_case: fitted on other cases of all "
    "domains. The logits are out of fold and their weights cross-fitted by case. regret: the best balanced accuracy of "
    "any one threshold on the row's own logits, minus that with the rule's."
)


@dataclass(frozen=True)
class Cost:
    """Balanced accuracy with a rule's threshold, and what it loses against the best one."""

    balanced_accuracy: float
    regret: float


@dataclass(frozen=True)
class DomainCost:
    """One domain, all patches, or the mean or worst of the domains.

    `best` is the balanced accuracy at the best threshold; `left_out` and `by_case` map each rule to its cost. None and
    empty where the domain has fewer than ten patches of a class, or a class is only there.
    """

    domain: str
    n: int
    atypical: int
    best: float | None
    left_out: dict[str, Cost]
    by_case: dict[str, Cost]


@dataclass(frozen=True)
class Thresholds:
    """`domains` the largest first, then `all` patches in one, and the `mean` and `worst` of the domains with numbers.

    The worst regret and the worst balanced accuracy may be different domains'.
    """

    domains: tuple[DomainCost, ...]
    all: DomainCost
    mean: DomainCost
    worst: DomainCost

    @property
    def rows(self) -> tuple[DomainCost, ...]:
        return (*self.domains, self.all, self.mean, self.worst)


def unseen_domains(
    z: ArrayLike, label: ArrayLike, case: ArrayLike, domain: ArrayLike, part: ArrayLike
) -> Thresholds | None:
    """What each rule costs in each domain when it was left out, and cross-fitted by case.

    Args:
        z: (n,) finite blended logits, each from a model and weights that never saw the patch's case.
        label: (n,) 0 or 1.
        case, domain: (n,) words.
        part: (n,) the part of the cross-fit by case; without any of them both classes are left.

    Returns: None where there is but one domain.
    """
    logits, y = np.asarray(z, dtype=np.float64), np.asarray(label, dtype=np.int8)
    words, parts = np.asarray(domain).astype(str), np.asarray(part)
    names, counts = np.unique(words, return_counts=True)
    if len(names) < 2:
        return None

    def rows(across: bool) -> Rows:
        return Rows(("z",), {"none": logits[:, None]}, y, np.asarray(case, dtype=object), words.astype(object), across)

    left_out = {rule: _without_each(rows(rule == "across"), words) for rule in RULES}
    by_case = {rule: _without_each(rows(rule == "across"), parts) for rule in RULES}

    def cost(name: str, among: Bools, least: int) -> DomainCost:
        ours = y[among]
        n, atypical = len(ours), int(ours.sum())
        known = all(called.known[among].all() for called in (*left_out.values(), *by_case.values()))
        if min(atypical, n - atypical) < least or not known:
            return DomainCost(name, n, atypical, None, {}, {})
        best = best_balanced_accuracy(logits[among], ours)

        def costs(found: Mapping[str, _Called]) -> dict[str, Cost]:
            ba = {rule: _balanced_accuracy(ours, called.atypical[among]) for rule, called in found.items()}
            return {rule: Cost(value, best - value) for rule, value in ba.items()}

        return DomainCost(name, n, atypical, best, costs(left_out), costs(by_case))

    ordered = sorted(zip((-counts).tolist(), names.tolist(), strict=True))
    domains = tuple(cost(name, words == name, ACROSS_LEAST) for _, name in ordered)
    everything = next(iter(left_out.values())).known  # without domains that hold all of a class
    return Thresholds(
        domains, cost(ALL, everything, 1), _summary(MEAN, domains, fmean, fmean), _summary(WORST, domains, min, max)
    )


@dataclass(frozen=True)
class _Called:
    """(n,) classes, and where there are any."""

    atypical: Bools
    known: Bools


def _without_each(rows: Rows, group: NDArray[Any]) -> _Called:
    """The class of each patch by what was fitted without its group."""
    found = _Called(np.zeros(len(group), dtype=np.bool_), np.zeros(len(group), dtype=np.bool_))
    for name in np.unique(group):
        held = group == name
        rest = rows.take(~held)
        if 0 < rest.label.sum() < len(rest.label):
            point: OperatingPoint = fit_point("", ("z",), (1.0,), "none", rest)
            found.atypical[held] = decide(point, confidence(point, rows.take(held).blended(point)))
            found.known[held] = True
    return found


def best_balanced_accuracy(z: ArrayLike, label: ArrayLike) -> float:
    """The highest balanced accuracy that any one threshold on `z` reaches: the top of the raw, unsmoothed curve."""
    logits, y = np.asarray(z, dtype=np.float64), np.asarray(label) == 1
    order = np.argsort(-logits, kind="stable")
    ends = np.append(np.diff(logits[order]) != 0, True)  # equal logits are called alike
    found, false = np.cumsum(y[order])[ends], np.cumsum(~y[order])[ends]
    return float(max(0.5, ((found / y.sum() + 1 - false / (~y).sum()) / 2).max()))


def _balanced_accuracy(y: NDArray[np.int8], called: Bools) -> float:
    return float((called[y == 1].mean() + (~called[y == 0]).mean()) / 2)


Summary = Callable[[Iterable[float]], Any]


def _summary(name: str, domains: tuple[DomainCost, ...], of_scores: Summary, of_regrets: Summary) -> DomainCost:
    """Over the domains with numbers; scores are summed up by one function, regrets by the other."""
    known = [row for row in domains if row.best is not None]
    n, atypical = sum(row.n for row in known), sum(row.atypical for row in known)
    if not known:
        return DomainCost(name, n, atypical, None, {}, {})

    def costs(found: list[dict[str, Cost]]) -> dict[str, Cost]:
        return {
            rule: Cost(
                float(of_scores([each[rule].balanced_accuracy for each in found])),
                float(of_regrets([each[rule].regret for each in found])),
            )
            for rule in RULES
        }

    best = float(of_scores([row.best for row in known if row.best is not None]))
    return DomainCost(
        name, n, atypical, best, costs([row.left_out for row in known]), costs([row.by_case for row in known])
    )


def threshold_content(found: Thresholds | None) -> dict[str, Any]:
    """As blend.json holds it; None is a blend of one domain."""
    return {"how": ONE_DOMAIN} if found is None else {"how": HOW, **asdict(found)}


def threshold_table(found: Thresholds) -> list[dict[str, Any]]:
    """Rows to print: each domain, all patches, mean and worst; by both rules balanced accuracy and regret left out,
    and regret by case."""
    rows = []
    for row in found.rows:
        line: dict[str, Any] = {"domain": row.domain, "n": row.n, "atypical": row.atypical, "best BA": row.best}
        for rule in RULES:
            cost = row.left_out.get(rule)
            line[f"{rule} BA"] = None if cost is None else cost.balanced_accuracy
            line[f"{rule} regret"] = None if cost is None else cost.regret
        for rule in RULES:
            cost = row.by_case.get(rule)
            line[f"{rule} by case"] = None if cost is None else cost.regret
        rows.append(line)
    return rows
