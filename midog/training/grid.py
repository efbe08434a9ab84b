"""The runs of a grid: each is an ordinary run, trained, continued and reported as any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from midog import errors
from midog.data.patches import PatchTable
from midog.errors import MidogError, UsageError
from midog.files import lock
from midog.grid import Grid, extend_grid, read_grid, write_grid
from midog.run import Run, open_run
from midog.training.identity import differences
from midog.training.jobs import Report
from midog.training.launch import Plan, carry_out, find_place, plan_run, silent
from midog.training.prepare import PATIENCE
from midog.training.source import Recipe


def train_grid(
    grid: Grid,
    base: Recipe,
    recipes: Mapping[str, Recipe],
    table: PatchTable,
    folder: Path,
    members: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    report: Report = silent,
    **where: Any,
) -> tuple[Run, ...]:
    """Train every run of a grid that `folder` still lacks, side by side where there is room. The same call twice
    continues or does nothing; more values or seeds extend the grid. A run that fails does not stop the others; it is
    named at the end, and tried again later.

    Args:
        grid: what varies; `recipes` has the recipe of each of its runs, `base` is the recipe they all come from.
        table: patch table with folds.
        folder: gets grid.json and a run folder for each run.
        report: gets one line whenever something is done, skipped or failed, with the run's name.
        members, folds, where: as `train_recipe` takes them.

    Raises: UsageError, before anything is trained, when the folder's grid was made from another recipe or data or
        varies other keys; MidogError at the end when runs failed.
    """
    place = find_place(**where)
    begin_grid(grid, base, table, folder)
    plans: dict[str, Plan] = {}
    failures: dict[str, MidogError] = {}
    for name, recipe in recipes.items():
        with _keeping(failures, name, report):
            plans[name] = plan_run(recipe, table, folder / name, place, members, folds, _named(report, name))
    carry_out(list(plans.values()), place)
    for name, plan in plans.items():
        with _keeping(failures, name, report):
            plan.tally.close()
    if failures:
        raise _failed(failures, len(recipes), folder)
    return tuple(open_run(folder / name) for name in recipes)


@contextmanager
def _keeping(failures: dict[str, MidogError], name: str, report: Report) -> Iterator[None]:
    """One run's failure leaves the others their turn."""
    try:
        yield
    except MidogError as error:
        failures[name] = error
        report(f"{name}: {error.problem}")


def begin_grid(grid: Grid, base: Recipe, table: PatchTable, folder: Path) -> Grid:
    """Write grid.json, or extend the one that is there. Raises: UsageError where the two do not belong together."""
    if (folder / "manifest.json").is_file():
        raise UsageError(f"{folder} is a run, not a folder for a grid of runs", "train into another folder (-o)")
    common = {
        "recipe": {key: base.plain[key] for key in ("folds", "members")},
        "data_sha256": table.data_hash,
        "folds_sha256": table.folds_hash,
    }
    grid = replace(grid, common=common)
    with lock(folder / ".lock", f"another process is preparing {folder}", PATIENCE):
        old = read_grid(folder)
        if old is not None:
            lines = differences(old.common, common)
            if lines:
                raise UsageError(
                    f"the runs in {folder} come from something else than what is asked for now; nothing was changed",
                    "train into another folder (-o): runs of one grid differ in what varies, and in nothing else",
                    lines,
                )
            grid = extend_grid(old, grid)
        write_grid(folder, grid)
    return grid


def _named(report: Report, name: str) -> Report:
    return lambda line: report(f"{name}: {line}")


def _failed(failures: Mapping[str, MidogError], wanted: int, folder: Path) -> MidogError:
    """One error for all: of their own kind (and exit code) where they share one, with their fix."""
    kinds = {type(error).__name__ for error in failures.values()}
    kind = getattr(errors, kinds.pop(), UsageError) if len(kinds) == 1 else MidogError
    fixes = {error.fix for error in failures.values()}
    again = "mend what is named above, then repeat the command: only these are trained again"
    found: MidogError = kind(
        f"{len(failures)} of {wanted} runs are not done; what was done is kept in {folder}",
        fixes.pop() if len(fixes) == 1 else again,
        [f"{name}: {line}" for name, error in failures.items() for line in (error.details or (error.problem,))],
    )
    return found
