"""Rows that `midog status` prints: all runs of a folder, or the members of one and the folds that somebody works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midog.grid import is_grid, read_grid
from midog.run import list_runs, open_run
from midog.status import MemberStatus, RunStatus, readable_seconds

STATES = ("done", "running", "queued", "failed")


def is_folder_of_runs(folder: Path) -> bool:
    """Whether there are runs in it, or a grid that will have some; a run is no such folder."""
    return not (folder / "manifest.json").is_file() and (is_grid(folder) or bool(list_runs(folder)))


def runs_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row per run in `folder`: folds done, running, queued on a cluster, failed, and the time left; a grid's runs
    also before they begin. And one row per fold that runs, waits in a queue or failed."""
    rows, folds = [], []
    for path in _runs_in(folder):
        row: dict[str, Any] = {"run": str(path), "members": 0, "folds": 0}
        if not (path / "manifest.json").is_file():
            rows.append(row | dict.fromkeys(STATES, 0) | {"time left": readable_seconds(None)})
            continue
        found = open_run(path).status(intervals=False)
        states = [fold.state for member in found.members for fold in member.folds]
        row |= {"members": len(found.members), "folds": len(states)}
        row |= {state: states.count(state) for state in STATES}
        rows.append(row | {"time left": readable_seconds(found.seconds_left)})
        folds += [{"run": path.name, **line} for line in _fold_rows(found)]
    return rows, folds


def _runs_in(folder: Path) -> list[Path]:
    """A grid's runs in its order, then the others by name."""
    grid = read_grid(folder)
    planned = [folder / run.name for run in grid.runs] if grid is not None else []
    return [*planned, *(path for path in list_runs(folder) if path not in planned)]


def status_rows(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row per member: its folds, the time left, and out-of-fold scores so far (one view, threshold at logit 0).
    And one row per fold that runs, waits in a queue or failed: who has it, and what went wrong."""
    found = open_run(run).status()
    return [_member_row(member) for member in found.members], _fold_rows(found)


def _fold_rows(found: RunStatus) -> list[dict[str, Any]]:
    return [
        {
            "member": fold.member,
            "fold": fold.name,
            "state": fold.state,
            "epoch": fold.progress,
            "time left": readable_seconds(fold.seconds_left),
            "by": fold.by,
            "problem": fold.problem.splitlines()[0] if fold.problem else "",
        }
        for member in found.members
        for fold in member.folds
        if fold.by or fold.problem
    ]


def _member_row(member: MemberStatus) -> dict[str, Any]:
    begun = ("running", "stopped")
    marks = [
        f"{fold.name}: {fold.state}" + (f" {fold.progress}" if fold.state in begun else "") for fold in member.folds
    ]
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
