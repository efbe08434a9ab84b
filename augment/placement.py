"""Where the figure lies in its patch: small shifts and scale, and the symmetries of the square."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from augment.checks import check_between, check_probability, check_share
from augment.views import TURNS
from midog.errors import UsageError, unknown

ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class Shift:
    """p: probability. pixels: largest shift in either direction. scale: range of magnification. Our choice."""

    p: float = 1.0
    pixels: float = 5.0
    scale: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        check_probability("shift.p", self.p)
        check_share("shift.pixels", self.pixels, 64)
        check_between("shift.scale", self.scale, 0.5, 2)


@dataclass(frozen=True)
class Dihedral:
    """p: probability of a symmetry drawn from all eight alike (one of them changes nothing)."""

    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability("dihedral.p", self.p)


def turn(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """One of `augment.views.DIHEDRAL` of a square (h, w, 3) image: `apply_view`, for pixels that lie last.

    Raises: UsageError for an unknown name, or an image that is not square.
    """
    if name not in TURNS:
        raise unknown("view", name, TURNS)
    if image.shape[0] != image.shape[1]:
        raise UsageError(f"a patch of {image.shape[:2]} pixels cannot be turned", "square patches, or dihedral: off")
    turns, flipped = TURNS[name]
    turned = cv2.flip(image, 1) if flipped else image
    return np.asarray(cv2.rotate(turned, ROTATIONS[turns]) if turns else turned, dtype=np.uint8)
