"""Pages in, the challenge's scores out: the official metrics.json object, and beside it counts, intervals, problems.

Every page counts once, pooled over stacks and domains; atypical is the positive class; None where a score is undefined.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import SHOWN_DETAILS, ContractError
from midog.files import write_json, write_text
from midog.metrics import bootstrap_by_case, scores
from submission.challenge import TRACK2

if TYPE_CHECKING:
    from midog.metrics import Interval, Scores


@dataclass(frozen=True)
class Problem:
    """`fatal`: the official evaluator would raise here and give no scores at all."""

    where: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Pages:
    """What is scored, one row per page: label (n,) int8, confidence (n,) float64, predicted (n,) bool, names (n,) str.

    `case` is the unit that intervals resample: the case of a patch, or the stack of a page.
    """

    label: NDArray[np.int8]
    confidence: NDArray[np.float64]
    predicted: NDArray[np.bool_]
    domain: NDArray[np.object_]
    case: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, mask: NDArray[np.bool_]) -> Pages:
        return Pages(self.label[mask], self.confidence[mask], self.predicted[mask], self.domain[mask], self.case[mask])


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of predictions, with everything that was wrong with them.

    `seen` counts patches that the bundle was trained on (None: not known); `held_out` scores the others alone, where
    there are both. `domains` and the interval dictionaries use the names of the challenge's score keys.
    """

    scores: Scores
    domains: dict[str, Scores]
    intervals: dict[str, Interval]
    domain_intervals: dict[str, dict[str, Interval]]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    seen: int | None = None
    held_out: Evaluation | None = None
    jobs: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def official(self) -> bool:
        """Whether these are the scores the official evaluator would give: nothing was wrong."""
        return not self.problems

    @property
    def header(self) -> str:
        """The line to print above the scores, "" when there is nothing to warn of."""
        lines = []
        if self.seen:
            lines.append(
                f"seen in training: {self.seen} of {self.scores.n} patches; these scores say nothing of new cases"
            )
        if self.problems:
            fatal = next((problem for problem in self.problems if problem.fatal), None)
            stop = f"the official evaluator stops at: {fatal}" if fatal else "the official evaluator would not notice"
            lines.append(f"unofficial: {len(self.problems)} problems; {stop}")
        return "\n".join(lines)

    def metrics(self) -> dict[str, Any]:
        """The official metrics.json object: exact keys, None where a score is undefined."""
        aggregates: dict[str, Any] = {f"overall_{key}": getattr(self.scores, key) for key in TRACK2.overall_keys}
        for name, found in self.domains.items():
            aggregates[f"domain_{name}"] = {key: getattr(found, key) for key in TRACK2.domain_keys}
        return {"results": {}, "aggregates": aggregates}

    def details(self) -> dict[str, Any]:
        """What the official object has no place for: counts, intervals, problems, job times."""
        return {
            "official": self.official,
            "seen_in_training": self.seen,
            "overall": _detail(self.scores, self.intervals),
            "domains": {name: _detail(found, self.domain_intervals[name]) for name, found in self.domains.items()},
            "held_out": None if self.held_out is None else self.held_out.details(),
            "problems": [{"where": p.where, "problem": p.text, "fatal": p.fatal} for p in self.problems],
            "notes": list(self.notes),
            "jobs": list(self.jobs),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain row for all pages, then one per domain: name, n, atypical, the five scores, BA's interval."""
        groups = [("all", self.scores, self.intervals)]
        groups += [(name, found, self.domain_intervals[name]) for name, found in self.domains.items()]
        rows = []
        for name, found, intervals in groups:
            row: dict[str, Any] = {"domain": name, "n": found.n, "atypical": found.n_atypical}
            row |= {key: getattr(found, key) for key in TRACK2.overall_keys}
            interval = intervals.get("balanced_accuracy")
            row |= {"low": interval.low if interval else None, "high": interval.high if interval else None}
            rows.append(row)
        return rows

    def text(self) -> str:
        """What a person reads: header, one line per domain, the patches not seen in training, problems, notes."""
        lines = [self.header] if self.header else []
        lines += _table_lines(self.rows())
        if self.held_out is not None:
            lines += [
                "",
                f"not seen in training: {self.held_out.scores.n} patches",
                *_table_lines(self.held_out.rows()),
            ]
        shown = self.problems[:SHOWN_DETAILS]
        lines += [f"problem: {problem}" for problem in shown]
        if len(self.problems) > len(shown):
            lines.append(f"problem: … and {len(self.problems) - len(shown)} more")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Write the official object to `path` and the details beside it as `<stem>_details.json`."""
        path = Path(path)
        write_text(path, json.dumps(self.metrics(), indent=1, allow_nan=False) + "\n")
        return path, write_json(path.with_name(f"{path.stem}_details.json"), self.details())


def _table_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    width = max(6, *(len(str(row["domain"])) for row in rows))
    heads = ("BA", "95 % interval", "sens", "spec", "AUROC", "acc")
    lines = ["  ".join([f"{'domain':<{width}}", f"{'n':>5}", f"{'atyp':>5}", *(f"{head:>7}" for head in heads)])]
    for row in rows:
        interval = "-" if row["low"] is None else f"{row['low']:.3f}-{row['high']:.3f}"
        cells = [f"{row['domain']:<{width}}", f"{row['n']:>5}", f"{row['atypical']:>5}"]
        cells += [f"{_number(row['balanced_accuracy']):>7}", f"{interval:>13}"]
        cells += [f"{_number(row[key]):>7}" for key in ("sensitivity", "specificity", "roc_auc", "accuracy")]
        lines.append("  ".join(cells))
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _detail(found: Scores, intervals: dict[str, Interval]) -> dict[str, Any]:
    return {
        "n": found.n,
        "atypical": found.n_atypical,
        "normal": found.n - found.n_atypical,
        "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
    }


def evaluate_pages(
    pages: Pages,
    problems: Sequence[Problem] = (),
    notes: Sequence[str] = (),
    seen: NDArray[np.bool_] | None = None,
    draws: int = 1000,
    seed: int = 0,
    jobs: Sequence[dict[str, Any]] = (),
) -> Evaluation:
    """Score `pages` overall and by domain; `seen` (n,) bool marks pages that were trained on.

    Raises: ContractError when no page is left to score.
    """
    if not len(pages):
        raise ContractError(
            "nothing can be scored", "repair the problems below", [str(problem) for problem in problems]
        )
    groups = {
        str(name): pages[pages.domain == name] for name in sorted(set(pages.domain), key=natural_order) if name != ""
    }
    apart = seen is not None and bool(seen.any()) and not bool(seen.all())
    return Evaluation(
        scores=_score(pages),
        domains={name: _score(group) for name, group in groups.items()},
        intervals=_intervals(pages, draws, seed),
        domain_intervals={name: _intervals(group, draws, seed) for name, group in groups.items()},
        problems=tuple(problems),
        notes=tuple(notes),
        seen=None if seen is None else int(seen.sum()),
        held_out=evaluate_pages(pages[~seen], draws=draws, seed=seed) if seen is not None and apart else None,
        jobs=tuple(jobs),
    )


def natural_order(name: object) -> tuple[int, int, str]:
    """Sort key: numbers by value, then words."""
    text = str(name)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _score(pages: Pages) -> Scores:
    found = scores(pages.label, _in_range(pages.confidence), pages.predicted)
    return found if _in_range(pages.confidence) is pages.confidence else replace(found, log_loss=None)


def _in_range(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """`confidence` itself, or its ranks in [0, 1] where some are outside: the official evaluator scores them too."""
    if ((confidence >= 0) & (confidence <= 1)).all():
        return confidence
    values, rank = np.unique(confidence, return_inverse=True)
    return np.asarray(rank / max(1, len(values) - 1), dtype=np.float64)


def _intervals(pages: Pages, draws: int, seed: int) -> dict[str, Interval]:
    confidence = _in_range(pages.confidence)
    return bootstrap_by_case(
        pages.label, confidence, pages.predicted, pages.case, TRACK2.overall_keys, n=draws, seed=seed
    )


def join_pages(parts: Sequence[Pages]) -> Pages:
    """Several sets of pages as one; none gives an empty set."""
    names = ("label", "confidence", "predicted", "domain", "case")
    types = (np.int8, np.float64, np.bool_, object, object)
    return Pages(
        *(
            np.concatenate([np.zeros(0, dtype=kind), *(getattr(part, name) for part in parts)])
            for name, kind in zip(names, types, strict=True)
        )
    )
