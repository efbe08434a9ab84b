"""What a run is trained from: a recipe, and the training patches of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from midog.data.folds import Assignment, assign
from midog.data.patches import PatchTable
from midog.data.pixels import Pixels, open_pixels
from midog.training.member import Member


class Recipe(Protocol):
    """What launching needs of a recipe; `midog.recipe.Recipe` is one. `plain` is the resolved recipe as plain data,
    `difference` what sets it apart from the shipped recipe that it starts from."""

    @property
    def folds(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def members(self) -> Mapping[str, Member]: ...
    @property
    def plain(self) -> dict[str, Any]: ...
    @property
    def difference(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Source:
    """The training patches of a run: `table`, `assignment` and `pixels` belong together row by row; no `test` rows."""

    table: PatchTable
    assignment: Assignment
    pixels: Pixels


def gather(recipe: Recipe, table: PatchTable) -> Source:
    """Folds and pixels of the training patches. Raises: DataError, LeakError."""
    whole = assign(table, recipe.folds)
    used = np.flatnonzero(whole.index >= 0)
    rows = table.subset(used)
    return Source(rows, Assignment(whole.index[used], whole.names), open_pixels(rows))
