"""Test-time views: the eight symmetries of the square for arrays and tensors alike, and two stain-normalised views.

Source: the dihedral group D4; averaging logits over it is the field's usual test-time augmentation.
"""

from __future__ import annotations

from typing import Any

from midog.errors import unknown

TURNS: dict[str, tuple[int, bool]] = {
    "identity": (0, False),
    "rot90": (1, False),
    "rot180": (2, False),
    "rot270": (3, False),
    "flip": (0, True),
    "flip_rot90": (1, True),
    "flip_rot180": (2, True),
    "flip_rot270": (3, True),
}
"""Quarter turns against the clock, and whether left and right are swapped first."""

DIHEDRAL: tuple[str, ...] = tuple(TURNS)
NORMALISED, MACENKO = "normalised", "macenko"
"""The patch itself in other colours, before it becomes a network's input: `augment.reinhard.reinhard_patches`,
`augment.macenko.macenko_patches`."""
VIEW_NAMES: tuple[str, ...] = (*DIHEDRAL, NORMALISED, MACENKO)
VIEW_SETS: dict[str, tuple[str, ...]] = {
    "none": DIHEDRAL[:1],
    "rot4": DIHEDRAL[:4],
    "d4": DIHEDRAL,
    "stain": (DIHEDRAL[0], NORMALISED),
    "d4_stain": (*DIHEDRAL, NORMALISED),
    "macenko": (DIHEDRAL[0], MACENKO),
    "d4_macenko": (*DIHEDRAL, MACENKO),
}


def apply_view(images: Any, name: str) -> Any:
    """One view of square images.

    Args:
        images: (…, h, w) tensor or array, such as (n, 3, h, w), with h = w for quarter turns to keep the shape.
        name: one of `DIHEDRAL`.

    Returns: the same kind, shape (for h = w) and dtype; `identity` returns the input itself.

    Raises: UsageError for an unknown name.
    """
    if name not in TURNS:
        raise unknown("view", name, DIHEDRAL)
    turns, flipped = TURNS[name]
    import numpy as np

    if isinstance(images, np.ndarray):
        turned = images[..., ::-1] if flipped else images
        return np.rot90(turned, turns, axes=(-2, -1)) if turns else turned
    turned = images.flip(-1) if flipped else images
    return turned.rot90(turns, (-2, -1)) if turns else turned
