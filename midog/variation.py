"""`--vary KEY=VALUE,VALUE` and `--seeds`: one recipe becomes a checked recipe for each run of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midog.errors import DataError, UsageError, nearest
from midog.grid import Grid, make_grid, word
from midog.recipe import MEMBER_KEYS, Recipe, load_recipe
from midog.settings import Problems
from midog.yaml import parse_yaml

TOP = ("folds", "each", "members")
"""First words of a key that is not inside every member."""
KEYS = (*TOP, *MEMBER_KEYS)
ELSEWHERE = {
    "seed": ("seeds are no factor", "--seeds 0,1,2"),
    "blend": (
        "changes nothing in training: stored out-of-fold logits answer it",
        "midog blend RUN --kind equal --views rot4",
    ),
}
PAIRS = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class Variation:
    """A grid and the recipe of each of its runs, by the run's name; `base` is the recipe before anything varied."""

    grid: Grid
    base: Recipe
    recipes: dict[str, Recipe]


def vary_recipe(
    source: str | Path, varied: Sequence[str], seeds: Sequence[int] | None = None, sets: Sequence[str] = ()
) -> Variation:
    """Every combination of the varied values with every seed, as recipes.

    Args:
        source: name of a shipped recipe, or a path.
        varied: such as `augment.fisheye=off,on` (a key of every member), `members.uni.tune=lora,full`,
            `folds=fold,scanner`. Values are YAML, split at commas outside of brackets; the first is the baseline.
        seeds: of the runs; by default the recipe's own.
        sets: changes for all runs, as `load_recipe` takes them; what varies counts later.

    Raises: UsageError listing every problem, those of all combinations included.
    """
    problems = Problems()
    factors = _parse(problems, varied)
    problems.raise_all("--vary")
    base = load_recipe(source, sets)
    chosen = tuple(seeds) if seeds is not None else (base.seed,)
    if len(set(chosen)) < len(chosen) or min(chosen, default=-1) < 0:
        raise UsageError(f"seeds {', '.join(map(str, chosen)) or '(none)'}", "different whole numbers, such as 0,1,2")
    grid = make_grid([(key, list(values.values())) for key, values in factors.items()], chosen)
    typed = {(key, word(value)): text for key, values in factors.items() for text, value in values.items()}
    recipes: dict[str, Recipe] = {}
    for run in grid.runs:
        own = [f"{key}={typed[key, said]}" for key, said in zip(factors, run.words, strict=True)]
        try:
            recipes[run.name] = load_recipe(source, [*sets, *own, f"seed={run.seed}"])
        except UsageError as error:
            for line in error.details or [error.problem]:
                problems.add("", line, error.fix)
    problems.raise_all(f"recipe {base.name} with --vary")
    return Variation(grid, base, recipes)


def _parse(problems: Problems, varied: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Key in the recipe → its values, as typed → as read."""
    factors: dict[str, dict[str, Any]] = {}
    for text in varied:
        key, equals, rest = (part.strip() for part in text.partition("="))
        first = key.split(".")[0]
        if not equals or not all(key.split(".")):
            problems.add(f"--vary {text}", "KEY=VALUE,VALUE is expected", "write it as --vary augment.fisheye=off,on")
        elif first in ELSEWHERE:
            problems.add(f"--vary {text}", *ELSEWHERE[first])
        elif first not in KEYS:
            guess = nearest(first, KEYS)
            problems.add(
                f"--vary {key}", f"did you mean {guess}?" if guess else f"one of {', '.join(KEYS)} comes first"
            )
        else:
            key = key if first in TOP else f"each.{key}"
            if key in factors:
                problems.add(f"--vary {text}", f"{key} varies already", "give each key once, with all of its values")
            factors.setdefault(key, _values(problems, text, rest))
    return factors


def _values(problems: Problems, text: str, rest: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for typed in split_values(rest):
        try:
            value = parse_yaml(typed, f"--vary {text}")
        except DataError as error:
            problems.add_error("", error)
            return values
        if value is None:
            problems.add(f"--vary {text}", "a value is empty", "--vary augment.fisheye=off,on")
        elif word(value) in map(word, values.values()):
            problems.add(f"--vary {text}", f"{typed} is there twice", "give each value once")
        values[typed] = value
    if len(values) < 2:
        problems.add(f"--vary {text}", "one value varies nothing", "give two or more; a single one is set with --set")
    return values


def split_values(text: str) -> list[str]:
    """Split at commas that are outside of brackets and quotes: "off,[1, 2],{p: 1, q: 2}" is three values."""
    values, start, closing, quote = [], 0, [], ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in PAIRS:
            closing.append(PAIRS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            values.append(text[start:at].strip())
            start = at + 1
    return [*values, text[start:].strip()]
