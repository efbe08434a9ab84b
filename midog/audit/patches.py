"""The patches an audit looks at: labelled, drawn in proportion to class and domain, changed only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.data.patches import PatchTable
from midog.data.pixels import Pixels, open_pixels
from midog.errors import DataError, UsageError, unknown
from midog.files import sha256_json

Change = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
"""(128, 128, 3) uint8 and the patch's own seed to a changed patch of the same shape."""
KNOWN = ("patch_id", "label", "case", "domain", "tumour", "scanner", "laboratory")


@dataclass(frozen=True)
class Patches:
    """Labelled patches. `given` is how many there were before some were drawn."""

    table: PatchTable
    given: int
    pixels: Pixels = field(repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        """(n,) 1 = atypical."""
        return self.table.labels

    @cached_property
    def cases(self) -> NDArray[np.object_]:
        return self.table.column("case")

    @property
    def ids(self) -> tuple[str, ...]:
        return self.table.ids

    def column(self, name: str) -> NDArray[np.object_]:
        return self.table.column(name)

    @property
    def identity(self) -> str:
        """Hash of all that a measurement can depend on: pixels, and what the table knows of them."""
        words = [self.column(name).tolist() for name in KNOWN]
        return sha256_json([list(self.pixels.hashes), words])

    def take(self, rows: ArrayLike) -> Patches:
        """The patches at these places, or where a mask is True."""
        table = self.table.subset(rows)
        return Patches(table, self.given, open_pixels(table))

    def draw(self, n: int, seed: int = 0) -> Patches:
        """At most `n`, in proportion to label × domain; all where n is 0. A larger draw holds every smaller one."""
        if n == 0 or n >= len(self):
            return self
        return self.take(stratified(self.labels, self.column("domain"), n, seed))


def read_patches(path: Path | str, split: str | None = None) -> Patches:
    """The labelled patches of a table.

    Raises: UsageError for an unknown split; DataError where no labelled patch is left, or images cannot be used.
    """
    from midog.data.readers import read_layout

    table = read_layout([Path(path)])
    if split is not None:
        splits = table.column("split")
        if split not in set(splits):
            raise unknown("split", split, {str(name) for name in splits})
        table = table.subset(splits == split)
    table = table.subset(table.labels >= 0)
    if not len(table):
        raise DataError(f"{path} holds no labelled patch", "an audit compares answers with labels")
    return Patches(table, len(table), open_pixels(table))


def stratified(label: ArrayLike, domain: ArrayLike, n: int, seed: int = 0) -> NDArray[np.int64]:
    """Places of `n` patches, ascending, each cell of label × domain with its own share (our choice).

    Shares stay as they are, so that prevalence, and with it calibration, means what it means on all patches.

    Raises: UsageError for an `n` below 1.
    """
    if n < 1:
        raise UsageError(f"{n} patches", "--limit 300, or 0 for all")
    words = [f"{a}\0{b}" for a, b in zip(np.asarray(label), np.asarray(domain), strict=True)]
    order = np.random.default_rng(seed).permutation(len(words))
    cell = np.unique(np.array(words)[order], return_inverse=True)[1]
    place = np.empty(len(order))
    for number in range(int(cell.max()) + 1):
        inside = np.flatnonzero(cell == number)
        place[inside] = (np.arange(len(inside)) + 0.5) / len(inside)
    return np.sort(order[np.argsort(place, kind="stable")[:n]]).astype(np.int64)


class Shown:
    """Pixels at some places, each changed when it is asked for: `shown[[0, 3]]` is (2, 128, 128, 3) uint8."""

    def __init__(self, patches: Patches, rows: ArrayLike | None = None, change: Change | None = None) -> None:
        self._pixels, self._change = patches.pixels, change
        self._rows = np.arange(len(patches)) if rows is None else np.asarray(rows)
        self.hashes = tuple(patches.pixels.hashes[at] for at in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        found = self._pixels[self._rows[index]]
        if self._change is None:
            return found
        if found.ndim == 3:
            return self._change(found, int(self.hashes[index], 16))
        numbers = np.arange(len(self))[index]
        changed = [self._change(one, int(self.hashes[at], 16)) for one, at in zip(found, numbers, strict=True)]
        return np.stack(changed) if changed else found
