"""What microscope and file do to a patch: brightness, blur, JPEG. Ranges are our choice."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from augment.checks import check_between, check_probability, check_share
from midog.errors import MidogError

Patch = NDArray[np.uint8]


@dataclass(frozen=True)
class Brightness:
    """p: probability. brightness, contrast: largest change, as a share of the full range and of the contrast."""

    p: float = 0.5
    brightness: float = 0.08
    contrast: float = 0.1

    def __post_init__(self) -> None:
        check_probability("brightness.p", self.p)
        check_share("brightness.brightness", self.brightness, 1)
        check_share("brightness.contrast", self.contrast, 1)


@dataclass(frozen=True)
class Blur:
    """p: probability. sigma: range of the Gaussian's standard deviation, pixels."""

    p: float = 0.2
    sigma: tuple[float, float] = (0.3, 1.2)

    def __post_init__(self) -> None:
        check_probability("blur.p", self.p)
        check_between("blur.sigma", self.sigma, 0, 20)


@dataclass(frozen=True)
class Jpeg:
    """p: probability. quality: range of the JPEG quality, 1 to 100."""

    p: float = 0.2
    quality: tuple[int, int] = (50, 95)

    def __post_init__(self) -> None:
        check_probability("jpeg.p", self.p)
        check_between("jpeg.quality", self.quality, 1, 100)


def brighten(image: Patch, brightness: float, contrast: float) -> Patch:
    """Stretch about middle grey by 1 + `contrast` and add `brightness` of the full range; uint8 RGB in and out."""
    levels = (np.arange(256) - 127.5) * (1 + contrast) + 127.5 + 255 * brightness
    return np.asarray(cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8)), dtype=np.uint8)


def blur(image: Patch, sigma: float) -> Patch:
    """Gaussian blur with `sigma` in pixels, mirrored at the border; 0 returns a copy."""
    if sigma == 0:
        return image.copy()
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), dtype=np.uint8)


def compress(image: Patch, quality: int) -> Patch:
    """RGB uint8 image after JPEG at `quality` (1 to 100)."""
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if done else None
    if decoded is None:
        raise MidogError("OpenCV could not write a JPEG", "pip install --force-reinstall opencv-python-headless")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
