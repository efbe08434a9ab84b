"""Turns, scales and crops of one patch, for views that training need not have had. Identity gives the same bytes."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from midog.errors import ArgumentError

Patch = NDArray[np.uint8]
RIM = 32


def rotate(image: Patch, degrees: float) -> Patch:
    """(h, w, 3) uint8 turned against the clock about its centre; bicubic, mirrored at the border."""
    if degrees % 360 == 0:
        return image
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, dtype=np.uint8)


def magnify(image: Patch, factor: float) -> Patch:
    """A square (s, s, 3) uint8 patch as `factor` times the magnification shows it.

    Above 1 the centre is enlarged; below 1 all is made smaller (antialiased), and around it the outermost `RIM` pixels
    are mirrored again and again, for there is no more tissue: a weak stand-in for a wider field. The figure is not in
    them, so there is never a second one.

    Raises: ArgumentError for a factor below a quarter.
    """
    from PIL import Image

    if factor == 1:
        return image
    if not factor >= 0.25:
        raise ArgumentError(f"magnification {factor}", "0.25 or more")
    side = len(image)
    shown = side / factor
    wide, missing = image, max(0, math.ceil((shown - side) / 2))
    while missing:
        step = min(missing, RIM)
        wide = np.pad(wide, ((step, step), (step, step), (0, 0)), mode="reflect")
        missing -= step
    start = (len(wide) - shown) / 2
    box = (start, start, start + shown, start + shown)
    return np.asarray(Image.fromarray(wide).resize((side, side), Image.Resampling.BICUBIC, box=box))


def keep_centre(image: Patch, pixels: int) -> Patch:
    """The central square of `pixels`, scale unchanged; around it the patch's own mean colour."""
    side = len(image)
    if pixels >= side:
        return image
    margin = (side - pixels) // 2
    kept = np.empty_like(image)
    kept[:] = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    kept[margin : side - margin, margin : side - margin] = image[margin : side - margin, margin : side - margin]
    return kept
