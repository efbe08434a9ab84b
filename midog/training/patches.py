"""The patches of one fold: what is trained on, what is left out, and where Fourier targets may come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from augment.fourier import BETA_STORED, Fourier, TargetAmplitude, folder_targets, natural_targets, patch_targets
from augment.policies import build_policy
from midog.data.folds import Assignment
from midog.data.patches import PatchTable
from midog.errors import DataError
from midog.models.harmonise import CombatFeatures
from midog.training.auxiliary_settings import ScannerContrast
from midog.training.batches import Augmentation, Images, Samples
from midog.training.losses import domain_weights
from midog.training.member import Member
from midog.training.pairing import FoldPairing, code_levels, fold_pairing
from midog.training.seeds import generator_of, seed_of
from midog.training.selection import inner_mask

TARGETS_PER_SCANNER = 200
"""Training patches drawn from each scanner as Fourier targets: 0.8 MB of amplitudes."""


@dataclass(frozen=True)
class Rows:
    """Some rows of `images`, as a sequence of its own."""

    images: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[self.rows[index]]


@dataclass(frozen=True)
class Inner:
    """Patches of the training side's cases that choose the epoch, and their labels (m,) float32."""

    images: Rows
    targets: NDArray[np.float32]


@dataclass(frozen=True)
class FoldPatches:
    """`samples`, `labels` (m,) int8 and `domains` of the training side; images, ids and fold of the side left out.

    `inner` are training cases that are not trained on, where the member selects its epoch by them. `pairing` is what
    its auxiliary loss needs of each batch.
    """

    samples: Samples
    labels: NDArray[np.int8]
    domains: tuple[str, ...]
    left_out: Rows
    left_out_ids: tuple[str, ...]
    fold: int
    inner: Inner | None = None
    pairing: FoldPairing | None = None
    scanners: tuple[str, ...] = ()

    @cached_property
    def left_out_folds(self) -> NDArray[np.int32]:
        return np.full(len(self.left_out_ids), self.fold, dtype=np.int32)


def fold_patches(member: Member, k: int, table: PatchTable, assignment: Assignment, images: Images) -> FoldPatches:
    """Both sides of fold `k`. Rows that the assignment does not use (`test`) are on neither.

    Raises: DataError when the training side lacks a class.
    """
    rows = np.flatnonzero((assignment.index >= 0) & (assignment.index != k))
    out = np.flatnonzero(assignment.index == k)
    rows, inner = _take_inner(member, k, table, rows, images)
    side = table.subset(rows)
    labels = np.asarray(side.labels)
    for label, word in ((1, "atypical"), (0, "normal")):
        if not (labels == label).any():
            raise DataError(
                f"without fold {assignment.names[k]} there is no {word} patch to train on",
                "use fewer folds, or leave something else out",
            )
    domains = tuple(str(name) for name in side.column("domain"))
    targets = side.soft_labels if member.training.soft_labels else labels
    samples = Samples(
        images=images,
        rows=rows,
        targets=np.asarray(targets, dtype=np.float32),
        weights=domain_weights(domains),
        augmentations=augmentations(member, k, side, Rows(images, rows)),
    )
    ids = tuple(table.ids[row] for row in out)
    pairing = fold_pairing(member, k, side, Rows(images, rows))
    scanners = tuple(str(name) for name in side.column("scanner"))
    if isinstance(member.harmonise, CombatFeatures):
        require_scanners(side, scanners)
    return FoldPatches(samples, labels, domains, Rows(images, out), ids, k, inner, pairing, scanners)


def require_scanners(side: PatchTable, scanners: tuple[str, ...]) -> None:
    """Said before hours of training. Raises: DataError where ComBat will not have two patches each of two scanners."""
    code_levels(side, "scanner", "harmonise: combat")
    if few := [name for name in sorted(set(scanners)) if scanners.count(name) < 2]:
        raise DataError("harmonise: combat needs two patches of each scanner", "leave those patches out", few)


def _take_inner(
    member: Member, k: int, table: PatchTable, rows: NDArray[np.int64], images: Images
) -> tuple[NDArray[np.int64], Inner | None]:
    """The rows to train on, and the inner cases where the member wants them."""
    if member.training.select != "inner":
        return rows, None
    side = table.subset(rows)
    try:
        mask = inner_mask(side, seed_of(member.seed, member.name, k, "inner") % 2**32)
    except DataError as error:
        few = "too few training cases to set a tenth aside for choosing the epoch"
        raise DataError(f"{few}: {error.problem}", "training: {select: last}") from None
    return rows[~mask], Inner(Rows(images, rows[mask]), np.asarray(side.labels[mask], dtype=np.float32))


def augmentations(member: Member, k: int, side: PatchTable, images: Rows) -> list[Augmentation]:
    """One augmentation per training patch; they differ only where Fourier targets are other scanners' patches."""
    fourier = member.augment.fourier
    if fourier is None or fourier.p == 0:
        return [build_policy(member.augment, None)] * len(side)
    if fourier.targets != "scanner":
        return [build_policy(member.augment, shared_targets(fourier))] * len(side)
    by_scanner = scanner_targets(fourier, member, k, side, images)
    policies = {
        scanner: build_policy(
            member.augment, [target for other, targets in by_scanner.items() if other != scanner for target in targets]
        )
        for scanner in by_scanner
    }
    return [policies[str(scanner)] for scanner in side.column("scanner")]


def shared_targets(fourier: Fourier) -> tuple[TargetAmplitude, ...]:
    """Targets that do not depend on the fold: `natural` photographs of the package, or a folder of one's own.

    Raises: DataError when the folder holds no photograph.
    """
    if fourier.targets == "natural":
        return natural_targets()
    return _folder_targets(fourier.targets, _beta_max(fourier))


@lru_cache(maxsize=4)
def _folder_targets(path: str, beta_max: float) -> tuple[TargetAmplitude, ...]:
    """Amplitudes are computed once for all members and folds."""
    return folder_targets(Path(path).expanduser(), beta_max=beta_max)


def _beta_max(fourier: Fourier) -> float:
    return max(BETA_STORED, fourier.beta[1])


def scanner_targets(
    fourier: Fourier, member: Member, k: int, side: PatchTable, images: Rows
) -> dict[str, tuple[TargetAmplitude, ...]]:
    """Amplitudes of this fold's training patches by scanner; what is left out is not among them.

    Raises: DataError when a scanner is unknown or there is only one.
    """
    scanners = np.array([str(name) for name in side.column("scanner")])
    unknown = [patch_id for patch_id, name in zip(side.ids, scanners, strict=True) if not name]
    if unknown:
        raise DataError("fourier targets `scanner` need the scanner of every patch", "fill the scanner column", unknown)
    names = np.unique(scanners)
    if len(names) < 2:
        raise DataError(
            f"fourier targets `scanner` need patches of two scanners; here is only {names[0]}",
            "augment: {fourier: {targets: natural}}",
        )
    found = {}
    for name in names:
        rows = np.flatnonzero(scanners == name)
        rng = generator_of(member.seed, member.name, k, f"targets {name}")
        drawn = np.sort(rng.choice(rows, size=min(TARGETS_PER_SCANNER, len(rows)), replace=False))
        found[str(name)] = patch_targets(images[drawn], _beta_max(fourier))
    return found


def sampling(member: Member, patches: FoldPatches) -> tuple[str, NDArray[np.int8], Sequence[str]]:
    """Sampler, labels and domains that an epoch is drawn by.

    Pairs within the fold need batches that hold each scanner equally often within each class; `training.sampler` is
    then passed over.
    """
    settings, pairing = member.auxiliary, patches.pairing
    if isinstance(settings, ScannerContrast) and settings.mode != "paired" and pairing is not None:
        return "domain", patches.labels, [pairing.levels[code] for code in pairing.confounders]
    return member.training.sampler, patches.labels, patches.domains
