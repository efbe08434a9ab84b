"""A grid of runs: one recipe, some keys of which vary, each combination with several seeds. No torch, no pydantic.

runs/<grid>/grid.json                        which run has which values and seed, and what all of them share
runs/<grid>/fisheye=off,crop=64,seed=0/      an ordinary run for each combination and seed
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from midog.errors import DataError, UsageError
from midog.files import read_json, sha256_json, write_json
from midog.provenance import provenance

GRID_FILE = "grid.json"
SAFE = re.compile(r"[A-Za-z0-9_.+-]{1,40}")
"""What a value may look like to be its own word in a folder's name; no colon, which separates a run from its member."""


@dataclass(frozen=True)
class Factor:
    """A key of the recipe that varies. `name` is what folders and tables call it, `values` are as the recipe has them;
    the first is the baseline."""

    key: str
    name: str
    values: tuple[Any, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word(value) for value in self.values)


@dataclass(frozen=True)
class GridRun:
    """One run of a grid: a value for each factor, in their order, and the seed. `name` is its folder."""

    name: str
    values: tuple[Any, ...]
    seed: int

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word(value) for value in self.values)


@dataclass(frozen=True)
class Grid:
    """What varies, with which seeds, in which runs. `common` is what made all of them alike: recipe, data, folds."""

    factors: tuple[Factor, ...]
    seeds: tuple[int, ...]
    runs: tuple[GridRun, ...]
    common: Mapping[str, Any] = field(default_factory=dict)


def make_grid(factors: Sequence[tuple[str, Sequence[Any]]], seeds: Sequence[int]) -> Grid:
    """The full grid over (key, values) pairs: all combinations with the first seed come first, then the next seed.

    So what is there when time runs out is whole: every combination with fewer seeds.
    """
    names = short_names([key for key, _ in factors])
    made = tuple(Factor(key, name, tuple(values)) for (key, values), name in zip(factors, names, strict=True))
    combinations = list(product(*(factor.values for factor in made)))
    runs = tuple(GridRun(_run_name(names, values, seed), values, seed) for seed in seeds for values in combinations)
    return Grid(made, tuple(seeds), runs)


def short_names(keys: Sequence[str]) -> tuple[str, ...]:
    """The last part of each key, with as many parts before it as it takes to tell it from the others."""
    parts = [key.split(".") for key in keys]

    def name_of(own: Sequence[str]) -> str:
        for count in range(1, len(own) + 1):
            if sum(other[-count:] == own[-count:] for other in parts) == 1:
                return ".".join(own[-count:])
        return ".".join(own)

    return tuple(name_of(own) for own in parts)


def word(value: Any) -> str:
    """A value as a folder's name says it, the same in every grid: `off`, `64`; lists and mappings end in four digits of
    their hash, so that two of them never share a word."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if SAFE.fullmatch(text):
        return str(text)
    readable = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text.strip("[]{}\"' "))[:30]
    return f"{readable}-{sha256_json(value)[:4]}"


def _run_name(names: Sequence[str], values: Sequence[Any], seed: int) -> str:
    return ",".join([*(f"{name}={word(value)}" for name, value in zip(names, values, strict=True)), f"seed={seed}"])


def is_grid(path: Path | str) -> bool:
    """Whether `path` is the folder of a grid, or its grid.json."""
    path = Path(path)
    return path.is_file() if path.name == GRID_FILE else (path / GRID_FILE).is_file()


def write_grid(folder: Path, grid: Grid) -> Path:
    """Write `folder`/grid.json."""
    names = [factor.name for factor in grid.factors]
    content = {
        "factors": [{"key": f.key, "name": f.name, "values": list(f.values)} for f in grid.factors],
        "seeds": list(grid.seeds),
        "runs": [
            {"run": run.name, "values": dict(zip(names, run.values, strict=True)), "seed": run.seed}
            for run in grid.runs
        ],
        "common": dict(grid.common),
    }
    return write_json(folder / GRID_FILE, {**content, **provenance()})


def read_grid(folder: Path) -> Grid | None:
    """The grid in `folder`; None where there is none. Raises: DataError when its file is damaged."""
    if not (folder / GRID_FILE).is_file():
        return None
    content = read_json(folder / GRID_FILE)
    try:
        factors = tuple(Factor(f["key"], f["name"], tuple(f["values"])) for f in content["factors"])
        runs = tuple(
            GridRun(entry["run"], tuple(entry["values"][f.name] for f in factors), int(entry["seed"]))
            for entry in content["runs"]
        )
        return Grid(factors, tuple(map(int, content["seeds"])), runs, content["common"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / GRID_FILE} is no grid: {error!r}", "repeat `midog train … --vary`; it is written anew"
        ) from None


def extend_grid(old: Grid, new: Grid) -> Grid:
    """`new` with the values, seeds and runs that only `old` has after its own: a grid may grow value by value.

    Raises: UsageError when the two do not vary the same keys in the same order.
    """
    before, after = ([factor.key for factor in grid.factors] for grid in (old, new))
    if before != after:
        raise UsageError(
            f"this folder holds a grid over {', '.join(before)}, not over {', '.join(after)}",
            "train into another folder (-o), or give the same --vary keys in the same order",
        )
    factors = tuple(
        replace(factor, values=(*factor.values, *(v for v in was.values if word(v) not in factor.words)))
        for was, factor in zip(old.factors, new.factors, strict=True)
    )
    seeds = (*new.seeds, *(seed for seed in old.seeds if seed not in new.seeds))
    asked = {run.name for run in new.runs}
    return Grid(factors, seeds, (*new.runs, *(run for run in old.runs if run.name not in asked)), new.common)
