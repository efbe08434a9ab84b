"""Colour of haematoxylin and eosin: jitter in stain space, and Reinhard's transfer of colour statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from augment.checks import check_probability, check_share
from midog.errors import ArgumentError

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


def colour_statistics(image: Patch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation in CIELAB (D65) of the pixels that are not pure black (border padding): (3,), (3,).

    An image that is all black gives zeros.
    """
    pixels = _lab(image)[image.any(axis=2)].astype(np.float64)
    if not len(pixels):
        return np.zeros(3), np.zeros(3)
    return pixels.mean(axis=0), pixels.std(axis=0)


def reinhard(image: Patch, mean: ArrayLike, std: ArrayLike) -> Patch:
    """Give an image the CIELAB mean and standard deviation of another.

    Args:
        image: (h, w, 3) uint8 RGB. Pure black pixels are border padding: they do not count and stay black.
        mean, std: three numbers each, as `colour_statistics` gives them.

    Returns: (h, w, 3) uint8. A channel without spread takes the target's mean.

    Raises: ArgumentError for a negative or non-finite standard deviation, or a non-finite mean.

    Source: Reinhard et al. 2001, IEEE CG&A 21(5):34, in CIELAB instead of lαβ as usual in histology.
    """
    mean, std = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    if mean.shape != (3,) or std.shape != (3,) or not np.isfinite([mean, std]).all() or (std < 0).any():
        raise ArgumentError(f"colour mean {mean}, deviation {std}", "three finite numbers each, deviations from 0")
    tissue = image.any(axis=2)
    if not tissue.any():
        return image.copy()
    own_mean, own_std = colour_statistics(image)
    gain = np.divide(std, own_std, out=np.zeros(3), where=own_std > 1e-6)
    changed = ((_lab(image) - own_mean) * gain + mean).astype(np.float32)
    rgb = np.asarray(cv2.cvtColor(changed, cv2.COLOR_Lab2RGB)) * 255
    rgb[~tissue] = 0
    changed_patch: Patch = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return changed_patch


def _lab(image: Patch) -> NDArray[np.float32]:
    scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.asarray(cv2.cvtColor(scaled, cv2.COLOR_RGB2Lab), dtype=np.float32)
