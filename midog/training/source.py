"""What a run is trained from: a recipe, and the training patches of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from midog.data.duplicates import refuse_duplicates
from midog.data.folds import Assignment, assign
from midog.data.patches import PatchTable
from midog.data.pixels import Pixels, open_pixels, scan_images
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
    """Folds and pixels of the training patches.

    Of `test` rows nothing but the pixels' hash is taken: a copy of one must not be trained on. Those whose images are
    not here cannot be compared.

    Raises: DataError when folds, labels or images are not what they should be; LeakError when a case is in two folds,
        or when a training patch has the pixels of another row.
    """
    whole = assign(table, recipe.folds)
    used = whole.index >= 0
    rows = table.subset(used)
    pixels = open_pixels(rows)
    hashes = np.empty(len(table), dtype=object)
    hashes[used], hashes[~used] = pixels.hashes, scan_images(table.subset(~used)).hashes
    refuse_duplicates(table, hashes.tolist(), used)
    return Source(rows, Assignment(whole.index[used], whole.names), pixels)
