"""Colour of haematoxylin and eosin: jitter in stain space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from augment.checks import check_probability, check_share

Patch = NDArray[np.uint8]

HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
"""Optical density in R, G, B of the pure stains. Source: Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291."""


@dataclass(frozen=True)
class Stain:
    """Jitter of haematoxylin, eosin and the rest, each on its own. Ranges are our choice.

    p: probability. scale: largest relative change of a stain's amount. shift: largest amount added, optical density.
    """

    p: float = 0.8
    scale: float = 0.15
    shift: float = 0.03

    def __post_init__(self) -> None:
        check_probability("stain.p", self.p)
        check_share("stain.scale", self.scale, 1)
        check_share("stain.shift", self.shift, 1)


def stain_matrix() -> NDArray[np.float64]:
    """(3, 3): unit optical-density vectors of haematoxylin, eosin and, at right angles to both, the rest."""
    stains = np.array([HAEMATOXYLIN, EOSIN])
    rows = np.vstack([stains, np.cross(stains[0], stains[1])])
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


STAINS = stain_matrix()
UNMIX = np.linalg.inv(STAINS)
# Optical density −ln((I + 1)/256): 0 for white, finite for black, and exactly undone by 256·exp(−density) − 1.
DENSITY = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


def optical_density(image: Patch) -> NDArray[np.float32]:
    """(h, w, 3) uint8 RGB → float32 natural-log optical density, 0 (white) to 5.55 (black)."""
    return np.asarray(cv2.LUT(image, DENSITY), dtype=np.float32)


def jitter_stain(image: Patch, factors: ArrayLike, shifts: ArrayLike = (0.0, 0.0, 0.0)) -> Patch:
    """Multiply the amounts of haematoxylin, eosin and rest by `factors` and add `shifts` (optical density).

    Args:
        image: (h, w, 3) uint8 RGB.
        factors, shifts: three numbers each; (1, 1, 1) and (0, 0, 0) give the image back.
    """
    # Unmixing, change and mixing are one affine map of optical density: a single pass over the pixels.
    mixed = UNMIX @ np.diag(np.asarray(factors, dtype=np.float64)) @ STAINS
    added = np.asarray(shifts, dtype=np.float64) @ STAINS
    affine = np.column_stack([-mixed.T, math.log(256) - added]).astype(np.float32)
    changed = np.asarray(cv2.transform(optical_density(image), affine))
    np.exp(changed, out=changed)
    changed -= 1
    return np.clip(np.rint(changed, out=changed), 0, 255, out=changed).astype(np.uint8)


def draw_jitter(stain: Stain, u: list[float]) -> tuple[list[float], list[float]]:
    """Factors and shifts for `jitter_stain` from six numbers in [0, 1)."""
    factors = [1 + stain.scale * (2 * x - 1) for x in u[:3]]
    return factors, [stain.shift * (2 * x - 1) for x in u[3:6]]
