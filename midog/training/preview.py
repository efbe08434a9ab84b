"""A contact sheet: patches, and what a member's augmentation makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from augment.policies import sample_rng
from midog.data.folds import Assignment
from midog.data.patches import PatchTable
from midog.files import atomic
from midog.training.batches import Images
from midog.training.member import Member
from midog.training.patches import fold_patches
from midog.training.seeds import generator_of

PATCHES, VERSIONS = 8, 8
GAP = 4


def contact_sheet(
    member: Member, table: PatchTable, assignment: Assignment, images: Images, patches: int = PATCHES
) -> NDArray[np.uint8]:
    """One row per patch: the patch as it is, then as an epoch may see it, one version for each of the first epochs.

    The policy and the seed are those of fold 0; what training draws is another sample of the same, since it seeds each
    patch by its place in the epoch's drawn order.

    Half of the patches are atypical (the upper rows). The crop of `image` is drawn as a frame on the untouched patch:
    the network sees no more than that.

    Returns: (height, width, 3) uint8 RGB.
    """
    fold = fold_patches(member, 0, table, assignment, images)
    rng = generator_of(member.seed, member.name, "preview")
    drawn = [
        row
        for label in (1, 0)
        for row in rng.permutation(np.flatnonzero(fold.labels == label))[: (patches + label) // 2].tolist()
    ]
    rows = []
    for row in drawn:
        image = images[fold.samples.rows[row : row + 1]][0]
        augmented = [
            fold.samples.augmentations[row](image.copy(), sample_rng(member.seed, member.name, 0, epoch, row))
            for epoch in range(VERSIONS - 1)
        ]
        rows.append(_beside([_framed(image, member.image.crop), *augmented], axis=1))
    return _beside(rows, axis=0)


def write_contact_sheet(path: Path, sheet: NDArray[np.uint8]) -> Path:
    from PIL import Image

    with atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    return path


def _framed(image: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    framed, side = image.copy(), image.shape[0]
    first, last = (side - crop) // 2, (side + crop) // 2 - 1
    framed[[first, last], first : last + 1] = framed[first : last + 1, [first, last]] = (20, 110, 60)
    return framed


def _beside(tiles: list[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Tiles in a row (axis 1) or a column (axis 0) with white gaps."""
    shape = list(tiles[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, dtype=np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=axis)
