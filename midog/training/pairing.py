"""What an auxiliary loss needs beside a batch: codes of its patches, further views where pairs are made, and where
attacks on them start.

All of it comes from the fold's training patches alone, or from external pairs that are no patches of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from augment.fourier import fourier_domain_adaptation, target_amplitude
from augment.placement import turn
from augment.reinhard import colour_statistics, reinhard
from augment.views import DIHEDRAL
from midog.data.pairs import Pairs, read_pairs
from midog.data.patches import PatchTable
from midog.errors import DataError
from midog.training.auxiliary_settings import Adversarial, DomainAdversarial, ScannerContrast
from midog.training.batches import Images
from midog.training.seeds import generator_of

if TYPE_CHECKING:
    from midog.training.member import Member

Patch = NDArray[np.uint8]
Restyle = Callable[[Patch], Patch]
Extra = dict[str, NDArray[Any]]

STYLES_PER_SCANNER = 200
"""Training patches drawn from each scanner as its styles (our choice)."""
START, GRAIN = "start", 127
"""The name under which starts of attacks travel, as int8 in ±GRAIN: shares of the radius in 1/127 (our choice)."""


@dataclass(frozen=True)
class FoldPairing:
    """Codes of the fold's training patches; with `styles`, a view of each in another scanner's style.

    Attributes:
        levels: names of the confounder's levels; a code is a position.
        labels: (m,) int64. confounders: (m,) int64.
        styles: for each level the restylings of that scanner.
    """

    levels: tuple[str, ...]
    labels: NDArray[np.int64]
    confounders: NDArray[np.int64]
    styles: tuple[tuple[Restyle, ...], ...] = ()

    def __call__(self, drawn: NDArray[np.int64], images: Patch, rngs: Sequence[np.random.Generator]) -> Extra:
        """`own_…` codes of the patches drawn (the row is the specimen), and with styles `views` and `view_…`."""
        own = codes("own", self.labels[drawn], drawn, self.confounders[drawn])
        if not self.styles:
            return own
        views, scanners = np.empty_like(images), np.empty(len(drawn), dtype=np.int64)
        for at, (row, rng) in enumerate(zip(drawn, rngs, strict=True)):
            # Of the augmented patch: figure and place stay the same, the style alone is another.
            scanners[at] = (self.confounders[row] + 1 + rng.integers(len(self.levels) - 1)) % len(self.levels)
            styles = self.styles[scanners[at]]
            views[at] = styles[int(rng.integers(len(styles)))](images[at])
        return {**own, "views": views, **codes("view", self.labels[drawn], drawn, scanners)}


@dataclass(frozen=True)
class ExternalPairing(FoldPairing):
    """Beside each two patches of a batch, one external specimen on two scanners; the task never sees them.

    `levels` are the external scanners; the codes of the fold's own patches are left out.
    """

    pairs: Pairs | None = None

    def __call__(self, drawn: NDArray[np.int64], images: Patch, rngs: Sequence[np.random.Generator]) -> Extra:
        assert self.pairs is not None
        views = np.empty_like(images)
        specimens, scanners = np.empty((2, len(drawn)), dtype=np.int64)
        for at in range(0, len(drawn), 2):
            specimen, *seen = self.pairs.draw(rngs[at])
            crops = self.pairs.crops(specimen, seen, rngs[at])
            view = DIHEDRAL[int(rngs[at].integers(len(DIHEDRAL)))]
            both = slice(at, at + 2)
            for place, crop in zip(range(*both.indices(len(drawn))), crops, strict=False):
                views[place] = turn(np.ascontiguousarray(crop), view)
            specimens[both], scanners[both] = specimen, seen[: len(scanners[both])]
        return {"views": views, **codes("view", np.full(len(drawn), -1), specimens, scanners)}


@dataclass(frozen=True)
class AttackStarts(FoldPairing):
    """A random start for the attack on each patch, from the patch's own generator: the same however the batch is split.

    There is no confounder: it has one level.
    """

    def __call__(self, drawn: NDArray[np.int64], images: Patch, rngs: Sequence[np.random.Generator]) -> Extra:
        starts = [rng.integers(-GRAIN, GRAIN, images.shape[1:], dtype=np.int8, endpoint=True) for rng in rngs]
        return {**super().__call__(drawn, images, rngs), START: np.stack(starts)}


def codes(whose: str, labels: NDArray[Any], specimens: NDArray[Any], confounders: NDArray[Any]) -> Extra:
    named = {"labels": labels, "specimens": specimens, "confounders": confounders}
    return {f"{whose}_{name}": np.asarray(values, dtype=np.int64) for name, values in named.items()}


def fold_pairing(member: Member, k: int, side: PatchTable, images: Images) -> FoldPairing | None:
    """What the member's auxiliary loss needs of the training side; None where it has none.

    Args:
        side: the fold's training patches; `images` are theirs, row by row.

    Raises: DataError when the confounder is unknown or has one level, when no scanner but one has both classes, or when
        external pairs are not there.
    """
    settings = member.auxiliary
    if settings is None:
        return None
    labels = np.asarray(side.labels, dtype=np.int64)
    if isinstance(settings, ScannerContrast) and settings.mode == "paired":
        pairs = read_pairs(settings.pairs)
        return ExternalPairing(pairs.scanners, labels, np.zeros_like(labels), pairs=pairs)
    if isinstance(settings, Adversarial):
        return AttackStarts(("",), labels, np.zeros_like(labels))
    column = settings.confounder if isinstance(settings, DomainAdversarial) else "scanner"
    levels, confounders = code_levels(side, column, "the auxiliary loss")
    if not isinstance(settings, ScannerContrast):
        return FoldPairing(levels, labels, confounders)
    if settings.mode == "cross_scanner_label":
        _require_pairs(labels, confounders)
        return FoldPairing(levels, labels, confounders)
    styles = []
    for code, name in enumerate(levels):
        rows = np.flatnonzero(confounders == code)
        rng = generator_of(member.seed, member.name, k, f"styles {name}")
        drawn = np.sort(rng.choice(rows, size=min(STYLES_PER_SCANNER, len(rows)), replace=False))
        styles.append(tuple(_restyle(settings, patch) for patch in images[drawn]))
    return FoldPairing(levels, labels, confounders, tuple(styles))


def _restyle(settings: ScannerContrast, target: Patch) -> Restyle:
    """From a patch to the same in the style of `target`."""
    if settings.style == "fourier":
        amplitude = target_amplitude(target, settings.beta)
        return lambda patch: fourier_domain_adaptation(patch, amplitude, settings.beta)
    mean, std = colour_statistics(target)
    return lambda patch: reinhard(patch, mean, std)


def code_levels(side: PatchTable, column: str, what: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of a column's levels, sorted, and the code of each patch, (m,) int64.

    Raises: DataError saying that `what` needs the column of every patch, and two levels of it.
    """
    words = np.array([str(word) for word in side.column(column)])
    unknown = [patch_id for patch_id, word in zip(side.ids, words, strict=True) if not word]
    if unknown:
        raise DataError(f"{what} needs the {column} of every patch", f"fill the {column} column", unknown)
    names, inverse = np.unique(words, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"{what} needs patches of two levels of {column}; here is only {names[0]}",
            "switch it off, or leave out less (folds: fold)",
        )
    return tuple(str(name) for name in names), np.asarray(inverse, dtype=np.int64)


def _require_pairs(labels: NDArray[np.int64], confounders: NDArray[np.int64]) -> None:
    if not any(len(np.unique(confounders[labels == label])) > 1 for label in (0, 1)):
        raise DataError("no class is on two scanners: cross_scanner_label has no pair", "auxiliary: off")
