"""Fisheye: magnifies the centre of a patch, where the mitotic figure is, and keeps its corners.

Formula, strength and probability are our choice; albumentations' fisheye has centre magnification 1 and a black rim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from augment.checks import check_between, check_probability
from midog.errors import ArgumentError

Image = NDArray[Any]


@dataclass(frozen=True)
class Fisheye:
    """p: probability. strength: range that k is drawn from; the centre is magnified 1 + k times."""

    p: float = 0.5
    strength: tuple[float, float] = (0.0, 0.5)

    def __post_init__(self) -> None:
        check_probability("fisheye.p", self.p)
        check_between("fisheye.strength", self.strength, 0)


def fisheye_map(
    size: int | tuple[int, int], strength: float, dtype: DTypeLike = np.float32
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where each output pixel reads from.

    With ρ the distance from the centre ((W−1)/2, (H−1)/2) as a share of the half-diagonal, the offset from the centre
    is multiplied by (1 + k·ρ²)/(1 + k): it magnifies the centre 1 + k times, keeps corners, reads nothing outside.

    Args:
        size: side, or (H, W), in pixels.
        strength: k ≥ 0.

    Returns: map_x, map_y, each (H, W), computed in float64; pixels, ready for `cv2.remap` as float32.

    Raises: ArgumentError when k is negative or not finite.
    """
    _check_strength(strength)
    height, width = (size, size) if isinstance(size, int) else size
    map_x, map_y = lens_map(height, width, strength, dtype=np.float64)
    return map_x.astype(dtype), map_y.astype(dtype)


def lens_map(
    height: int,
    width: int,
    strength: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fisheye, then scaling about the centre, then a shift by (right, down) pixels, as one map: two (H, W) arrays."""
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    half_diagonal = centre_x**2 + centre_y**2 or 1.0
    x = ((np.arange(width) - centre_x - shift[0]) / scale).astype(dtype)
    y = ((np.arange(height) - centre_y - shift[1]) / scale).astype(dtype)[:, None]
    if strength == 0:
        return np.broadcast_to(x + x.dtype.type(centre_x), (height, width)).copy(), np.broadcast_to(
            y + y.dtype.type(centre_y), (height, width)
        ).copy()
    offset = (1 + strength * ((x * x + y * y) / half_diagonal)) / (1 + strength)
    return centre_x + x * offset, centre_y + y * offset


def fisheye(image: Image, strength: float) -> Image:
    """Magnify the centre of `image` 1 + `strength` times; bilinear, mirrored at the border.

    Args:
        image: (h, w) or (h, w, channels), uint8 or float. For a mask use `fisheye_map` with nearest neighbours.
        strength: k ≥ 0; 0 returns a copy.

    Returns: same shape and dtype.

    Raises: ArgumentError when k is negative or not finite.
    """
    _check_strength(strength)
    if strength == 0:
        return image.copy()
    return resample(image, *fisheye_map((image.shape[0], image.shape[1]), strength))


def resample(image: Image, map_x: NDArray[Any], map_y: NDArray[Any], interpolation: int = cv2.INTER_LINEAR) -> Image:
    """`image` read at (map_x, map_y), mirrored at the border (reflect-101); same shape and dtype."""
    readable = image.astype(np.float32) if image.dtype == np.float16 else image
    read = cv2.remap(readable, map_x, map_y, interpolation, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(read).reshape(image.shape).astype(image.dtype, copy=False)


def _check_strength(strength: float) -> None:
    if not 0 <= strength < np.inf:
        raise ArgumentError(f"fisheye strength is {strength}", "0 (no change) or a finite number above")
