"""Reinhard's transfer of colour statistics, also as a view. The container runs it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

Patch = NDArray[np.uint8]
Floats = NDArray[np.float64]

TYPICAL = ((60.0, 35.0, -15.0), (15.0, 10.0, 10.0))
"""CIELAB mean and standard deviation of a typical H&E patch, in steps of five: our choice, fitted to no case. The mean
over 290 patches of AMi-Br is (58, 33, -16) and (16, 9, 8)."""

# sRGB (IEC 61966-2-1) to CIE XYZ with its white point D65, and CIELAB's two branches (CIE 15).
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
TO_WHITE = TO_XYZ / TO_XYZ.sum(axis=1, keepdims=True)
FROM_WHITE = np.linalg.inv(TO_WHITE)
LINEAR = np.where(
    np.arange(256) / 255 <= 0.04045, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
)
KNEE = 6 / 29


def colour_statistics(image: Patch) -> tuple[Floats, Floats]:
    """Mean and standard deviation in CIELAB (D65) of the pixels that are not pure black (border padding): (3,), (3,).

    An image that is all black gives zeros.
    """
    pixels = rgb_to_lab(image[image.any(axis=2)])
    return (pixels.mean(axis=0), pixels.std(axis=0)) if len(pixels) else (np.zeros(3), np.zeros(3))


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
    changed, tissue = image.copy(), image.any(axis=2)
    if tissue.any():
        pixels = rgb_to_lab(image[tissue])
        own_mean, own_std = pixels.mean(axis=0), pixels.std(axis=0)
        gain = np.divide(std, own_std, out=np.zeros(3), where=own_std > 1e-6)
        changed[tissue] = lab_to_rgb((pixels - own_mean) * gain + mean)
    return changed


def reinhard_patches(patches: Patch) -> Patch:
    """A view: each of (n, h, w, 3) uint8 RGB patches with the statistics of `TYPICAL`."""
    return np.stack([reinhard(patch, *TYPICAL) for patch in patches]) if len(patches) else patches


def reinhard_pixels(x: Tensor, mean: Sequence[float] = TYPICAL[0], std: Sequence[float] = TYPICAL[1]) -> Tensor:
    """`reinhard` for a batch of tensors, with gradients: what a network may be given (`midog.models.harmonise`).

    Args:
        x: (n, 3, h, w) float RGB in 0…1. mean, std: three numbers each.

    Returns: the same shape, dtype and device, in 0…1, not rounded to grey levels; nothing waits for the device.
    """
    import torch

    tissue = (x > 0).any(dim=1, keepdim=True)
    count = tissue.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    linear = torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    red, green, blue = _lab_curve(_mix(linear, TO_WHITE))
    own = (116 * green - 16, 500 * (red - green), 200 * (green - blue))
    lab = []
    for channel, wanted, spread in zip(own, mean, std, strict=True):
        centre = (channel * tissue).sum(dim=(2, 3), keepdim=True) / count
        variance = (((channel - centre) ** 2) * tissue).sum(dim=(2, 3), keepdim=True) / count
        # Less than a thousandth is rounding: one pixel of one grey level already makes two.
        gain = torch.where(variance > 1e-6, spread / variance.clamp_min(1e-6).sqrt(), 0.0)
        lab.append((channel - centre) * gain + wanted)
    y = (lab[0] + 16) / 116
    f = torch.cat([y + lab[1] / 500, y, y - lab[2] / 200], dim=1)
    linear = torch.where(f > KNEE, f.clamp_min(KNEE) ** 3, 3 * KNEE**2 * (f - 4 / 29))
    linear = torch.cat(_mix(linear, FROM_WHITE), dim=1).clamp(0, 1)
    rgb = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)
    return torch.where(tissue, rgb, x)


def _mix(x: Tensor, matrix: Floats) -> list[Tensor]:
    """The channels (n, 1, h, w) of a matrix times the colours; its numbers need no copy to the device."""
    red, green, blue = (x[:, c : c + 1] for c in range(3))
    return [float(a) * red + float(b) * green + float(c) * blue for a, b, c in matrix]


def _lab_curve(channels: list[Tensor]) -> list[Tensor]:
    import torch

    knee = KNEE**3
    return [torch.where(x > knee, x.clamp_min(knee) ** (1 / 3), x / (3 * KNEE**2) + 4 / 29) for x in channels]


def rgb_to_lab(pixels: Patch) -> Floats:
    """(…, 3) uint8 sRGB → (…, 3) float64 CIELAB."""
    x = LINEAR[pixels] @ TO_WHITE.T
    f = np.where(x > KNEE**3, np.cbrt(x), x / (3 * KNEE**2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    return np.stack([lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def lab_to_rgb(lab: Floats) -> Patch:
    """(…, 3) CIELAB → (…, 3) uint8 sRGB, clipped to what the screen can show."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    x = np.where(f > KNEE, f**3, 3 * KNEE**2 * (f - 4 / 29))
    linear = np.clip(x @ FROM_WHITE.T, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    screen: Patch = np.rint(255 * rgb).astype(np.uint8)
    return screen
