"""Rows that `midog status` prints: all runs of a folder, or the members and folds of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midog.run import list_runs, open_run
from midog.status import MemberStatus, readable_seconds


def runs_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per run in `folder`: folds done, running, failed, waiting, and the time left."""
    rows = []
    for path in list_runs(folder):
        found = open_run(path).status(intervals=False)
        states = [fold.state for member in found.members for fold in member.folds]
        row: dict[str, Any] = {"run": str(path), "members": len(found.members), "folds": len(states)}
        row |= {state: states.count(state) for state in ("done", "running", "failed")}
        rows.append(row | {"time left": readable_seconds(found.seconds_left)})
    return rows


def status_rows(run: Path) -> list[dict[str, Any]]:
    """One row per member: its folds, the time left, and out-of-fold scores so far (one view, threshold at logit 0)."""
    return [_member_row(member) for member in open_run(run).status().members]


def _member_row(member: MemberStatus) -> dict[str, Any]:
    marks = [f"{fold.name}: {fold.state}" + _epochs(fold.state, fold.epoch, fold.epochs) for fold in member.folds]
    left = [fold.seconds_left for fold in member.folds]
    row: dict[str, Any] = {
        "member": member.name,
        "folds": ", ".join(marks),
        "time left": readable_seconds(None if None in left else sum(value or 0.0 for value in left)),
        "n": member.scores.n if member.scores else 0,
    }
    for title, metric in (("BA", "balanced_accuracy"), ("AUROC", "roc_auc")):
        interval = member.intervals.get(metric)
        row[title] = getattr(member.scores, metric) if member.scores else None
        row[f"{title} 95 %"] = (interval.low, interval.high) if interval else None
    problems = [fold.problem.splitlines()[0] for fold in member.folds if fold.problem]
    return row | {"problem": problems[0] if problems else ""}


def _epochs(state: str, epoch: int, epochs: int) -> str:
    return f" {epoch}/{epochs}" if state in ("running", "stopped") else ""
