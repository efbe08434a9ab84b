"""Which runs an ablation is made of: combinations of values, each finished with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.oof import split_spec
from midog.errors import DataError, UsageError
from midog.grid import GRID_FILE, Factor, Grid, is_grid, read_grid
from midog.run import open_run

ALONE = "run"
"""The factor of runs that are no grid: each is a value of its own."""


_UNFINISHED = (
    "repeat `midog train … --vary`: it continues; or compare what is done: GRID:MEMBER for one member, --fold NAME"
)


@dataclass(frozen=True)
class Levels:
    """A factor among the runs at hand: its name and the words of its values, the baseline first."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Design:
    """`combinations` are words, one for each of `factors`, the first combination the one that others are compared with;
    `specs` the run of each combination (rows) and seed (columns); runs outside of a grid have one column, no `seeds`;
    `left_out` names of runs that do not count."""

    factors: tuple[Levels, ...]
    combinations: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    specs: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]

    def label(self, at: int) -> str:
        """A combination in words: `fisheye=on,crop=64`."""
        named = zip(self.factors, self.combinations[at], strict=True)
        return ",".join(f"{factor.name}={word}" for factor, word in named)


@dataclass(frozen=True)
class _Trial:
    spec: str
    words: tuple[str, ...]
    seed: int


def find_design(specs: Sequence[str | Path], folds: Sequence[str] | None = None) -> Design:
    """The runs that `specs` name (runs, RUN:MEMBER, a grid's folder or grid.json), as combinations with equal seeds.

    Runs of a grid that are not finished (on `folds`, where named) are left out, and then seeds that not every
    combination has.

    Raises: UsageError where runs are of several grids, or nothing varies; DataError where nothing is left.
    """
    named = list(dict.fromkeys(one for spec in specs for one in _expand(str(spec))))
    folders = {Path(split_spec(spec)[0]).resolve().parent for spec in named}
    grids = {folder: grid for folder in folders if (grid := read_grid(folder)) is not None}
    if not grids:
        alone = Levels(ALONE, tuple(named))
        return _need_two(Design((alone,), tuple((spec,) for spec in named), (), tuple((s,) for s in named), ()))
    if len(folders) > 1:
        raise UsageError(
            "these runs are not of one grid",
            "name the runs of one folder that `midog train --vary` made",
            sorted(map(str, folders)),
        )
    return _of_grid(next(iter(grids.values())), named, folds)


def _expand(spec: str) -> list[str]:
    """The runs of a grid, in its order; anything else as it is."""
    folder, member = split_spec(spec)
    if not is_grid(folder):
        return [spec]
    folder = folder.parent if folder.name == GRID_FILE else folder
    grid = read_grid(folder)
    assert grid is not None
    return [f"{folder / run.name}{'' if member is None else f':{member}'}" for run in grid.runs]


def _of_grid(grid: Grid, named: Sequence[str], folds: Sequence[str] | None) -> Design:
    known = {run.name: run for run in grid.runs}
    folders = {spec: Path(split_spec(spec)[0]) for spec in named}
    foreign = [str(folder) for folder in folders.values() if folder.name not in known]
    if foreign:
        raise UsageError(f"not runs of the grid: {', '.join(foreign)}", f"its {GRID_FILE} lists the runs")
    finished = [spec for spec in named if _finished(spec, folds)]
    unfinished = [spec for spec in named if spec not in finished]
    trials = [_Trial(spec, known[folders[spec].name].words, known[folders[spec].name].seed) for spec in finished]
    if not trials:
        raise DataError("no run of this grid is finished", _UNFINISHED, unfinished)
    present = [at for at in range(len(grid.factors)) if len({trial.words[at] for trial in trials}) > 1]
    factors = tuple(_levels(grid.factors[at], [trial.words[at] for trial in trials]) for at in present)
    trials = [replace(trial, words=tuple(trial.words[at] for at in present)) for trial in trials]
    combinations = _in_order(factors, {trial.words for trial in trials})
    found = {(trial.words, trial.seed): trial.spec for trial in trials}
    seeds = tuple(s for s in grid.seeds if all((words, s) in found for words in combinations))
    if not seeds:
        raise DataError(
            "no seed is finished for every combination",
            "name the runs that belong together, or train the rest",
            unfinished,
        )
    specs = tuple(tuple(found[words, s] for s in seeds) for words in combinations)
    spare = [trial.spec for trial in trials if trial.seed not in seeds]
    return _need_two(Design(factors, combinations, seeds, specs, (*unfinished, *spare)))


def _finished(spec: str, folds: Sequence[str] | None) -> bool:
    folder, member = split_spec(spec)
    if not (folder / "manifest.json").is_file():
        return False
    run = open_run(folder)
    members = run.members if member is None else (member,)
    return all(run.done(name, k) for name in members for k in run.fold_positions(folds))


def _levels(factor: Factor, words: Sequence[str]) -> Levels:
    return Levels(factor.name, tuple(word for word in factor.words if word in words))


def _in_order(factors: Sequence[Levels], combinations: set[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Combinations in the order of the factors' values: the baseline of all comes first, where it is there."""

    def rank(words: tuple[str, ...]) -> list[int]:
        return [factor.values.index(word) for factor, word in zip(factors, words, strict=True)]

    return tuple(sorted(combinations, key=rank))


def _need_two(design: Design) -> Design:
    if len(design.combinations) < 2:
        raise UsageError(
            "nothing varies between these runs",
            "midog compare A B, or the runs of a grid: midog compare runs/ablation/*",
            design.left_out,
        )
    return design
