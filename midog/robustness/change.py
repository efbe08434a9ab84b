"""What became of the robustness index: two trainings' features of the same patches, paired by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import DataError
from midog.metrics import Interval
from midog.robustness.inputs import interval_by_case
from midog.robustness.paired import REPEATS, PairCounts, count_pairs
from midog.robustness.pathorob import K, RobustnessCard, Tally


@dataclass(frozen=True)
class Space:
    """One feature space and its patches: `features` (n, d), and (n,) words `label`, `confounder`, `group` (case)."""

    features: ArrayLike
    label: ArrayLike
    confounder: ArrayLike
    group: ArrayLike


@dataclass(frozen=True)
class RobustnessChange:
    """`card` of the trained features at k, and `change`, its index minus the first one's, with a 95 % interval by case;
    both are None for the first, and where either index is undefined."""

    card: RobustnessCard
    change: float | None
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def robustness_changes(
    spaces: Mapping[str, Sequence[Space]], k: int = K, repeats: int = REPEATS, seed: int = 0
) -> dict[str, RobustnessChange]:
    """The robustness index of balanced pairs (`paired_robustness`) by name, and its change against the first name.

    Args:
        spaces: name → its fold models' feature spaces. A patch is compared within its own space; counts are added up
            over spaces. Every name has the same patches in the same order.

    Raises: DataError where patches differ, or a case lies in two spaces; and as `paired_robustness`.
    """
    first: Tally | None = None
    found = {}
    words: list[list[tuple[str, ...]]] | None = None
    for name, own in spaces.items():
        described = [_words(space) for space in own]
        if words is not None and described != words:
            raise DataError(f"{name} has other patches than {next(iter(spaces))}", "train both on one table")
        if words is None:
            _check_cases(own)
        words = described
        tally = _count(own, k, repeats, seed)
        change, interval = (None, None) if first is None else _difference(first, tally, seed)
        first = tally if first is None else first
        found[name] = RobustnessChange(tally.cards((k,), seed)[0], change, interval)
    return found


def _count(spaces: Sequence[Space], k: int, repeats: int, seed: int) -> Tally:
    """Counts at k of all spaces, case beside case."""
    total: Tally | None = None
    for space in spaces:
        counts = count_pairs(space.features, space.label, space.confounder, space.group, k, repeats, seed)
        part = _at(counts, k)
        total = part if total is None else total.beside(part)
    if total is None:
        raise DataError("no feature space to measure", "train a fold first")
    return total


def _at(counts: PairCounts, k: int) -> Tally:
    place = slice(counts.ks.index(k), counts.ks.index(k) + 1)
    tally = counts.tally
    return Tally(tally.so[:, place], tally.os[:, place], tally.supported[place], tally.n, tally.expected)


def _difference(before: Tally, after: Tally, seed: int) -> tuple[float | None, Interval | None]:
    """Index of `after` minus that of `before`; both are counted anew on every draw of cases."""

    def change(drawn: Any) -> Any:
        with np.errstate(invalid="ignore"):
            a, b = (drawn @ one.so[:, 0] / (drawn @ (one.so + one.os)[:, 0]) for one in (after, before))
        return a - b

    value = float(change(np.ones((1, len(before.so))))[0])
    return (None, None) if np.isnan(value) else (value, interval_by_case(len(before.so), change, seed))


def _words(space: Space) -> list[tuple[str, ...]]:
    columns = (np.asarray(column).astype(str).tolist() for column in (space.label, space.confounder, space.group))
    return list(zip(*columns, strict=True))


def _check_cases(spaces: Sequence[Space]) -> None:
    """Cases are what the bootstrap draws: one that lies in two spaces would be drawn as two."""
    seen: set[str] = set()
    for space in spaces:
        cases = set(np.asarray(space.group).astype(str).tolist())
        if both := sorted(cases & seen):
            raise DataError(f"{len(both)} cases lie in two fold models' patches, such as {both[0]}", "--fold 0")
        seen |= cases
