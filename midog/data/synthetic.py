"""Drawn mitotic figures: something to run every step on where no real data is at hand. Not evidence of anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midog import files

SIZE = 128
DOMAINS = (
    ("drawn breast", "Scanner A", (1.00, 1.00, 1.00)),
    ("drawn breast", "Scanner B", (0.93, 0.99, 1.06)),
    ("drawn melanoma", "Scanner C", (1.05, 0.95, 0.97)),
)
"""Tumour, scanner and the scanner's gain per channel."""
BACKGROUND = np.array([226.0, 190.0, 212.0])
CHROMATIN = np.array([62.0, 38.0, 98.0])
CYTOPLASM = np.array([205.0, 158.0, 196.0])
ATYPICAL_SHARE = 0.3
"""Of the figures whose class is drawn."""

Plane = npt.NDArray[np.float64]


def draw(folder: Path | str, cases: int = 24, per_case: int = 8, seed: int = 0) -> Path:
    """Draw `cases` × `per_case` patches and the plain CSV that lists them; returns the CSV's path.

    Files: `<folder>/patches/<case>_<i>.png`, (128, 128, 3) uint8 RGB, and `<folder>/synthetic.csv` with path, label,
    case, tumour, scanner, laboratory, species. Normal: one plate, or two parallel ones. Atypical: a ring, three
    plates at angles, or two plates of unequal size that are not parallel. Each case has its own stain and one scanner.
    The first two figures of each case are one of each class, of the others three in ten are atypical: about 0.35 of all
    for 8 a case, half for 2. A case of one figure is atypical three times in ten. The same arguments give the same
    bytes.
    """
    from PIL import Image

    folder = Path(folder)
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    rows = []
    for case in range(cases):
        rng = np.random.default_rng((seed, case))
        tumour, scanner, gain = DOMAINS[case % len(DOMAINS)]
        tint = np.array(gain) * rng.normal(1, 0.02, 3)
        labels = rng.random(per_case) < ATYPICAL_SHARE
        if per_case > 1:
            labels[:2] = (True, False)
        for number, atypical in enumerate(labels):
            name = f"patches/case{case:03d}_{number:02d}.png"
            with files.atomic(folder / name) as path:
                Image.fromarray(draw_patch(bool(atypical), rng, tint)).save(path, format="PNG")
            rows.append(
                (name, "atypical" if atypical else "normal", f"case{case:03d}", tumour, scanner, "drawn", "drawn")
            )
    header = ("path", "label", "case", "tumour", "scanner", "laboratory", "species")
    return files.write_csv(folder / "synthetic.csv", header, rows)


def draw_patch(atypical: bool, rng: np.random.Generator, tint: npt.ArrayLike = (1, 1, 1)) -> npt.NDArray[np.uint8]:
    """One (128, 128, 3) uint8 patch; `tint` is the scanner's gain per channel."""
    shapes = (_ring, _tripolar, _unequal) if atypical else (_metaphase, _anaphase)
    shape: Callable[[Plane, Plane, np.random.Generator], Plane] = shapes[rng.integers(len(shapes))]
    centre = (SIZE - 1) / 2 + rng.normal(0, 2, 2)
    y, x = np.mgrid[:SIZE, :SIZE] - centre[:, None, None]
    angle = rng.uniform(0, 2 * np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    image = np.broadcast_to(BACKGROUND, (SIZE, SIZE, 3)) + _grain(rng)[:, :, None] * np.array([9.0, 14.0, 9.0])
    image = _paint(image, _soft(np.hypot(x, y) - rng.uniform(30, 36), 3), CYTOPLASM)
    for _ in range(rng.integers(2, 6)):  # neighbours, out of the way
        away, turn = rng.uniform(44, 70), rng.uniform(0, 2 * np.pi)
        nucleus = np.hypot((x - away * np.cos(turn)) / 1.3, y - away * np.sin(turn)) - rng.uniform(6, 10)
        image = _paint(image, 0.55 * _soft(nucleus, 1.5), CHROMATIN)
    image = _paint(image, shape(along, across, rng), CHROMATIN)
    image = (image + rng.normal(0, 3, image.shape)) * np.asarray(tint, dtype=np.float64)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _metaphase(along: Plane, across: Plane, rng: np.random.Generator) -> Plane:
    return _plate(along, across, rng.uniform(15, 20), rng.uniform(4, 6))


def _anaphase(along: Plane, across: Plane, rng: np.random.Generator) -> Plane:
    gap, length, width = rng.uniform(9, 13), rng.uniform(13, 17), rng.uniform(3.5, 5)
    return np.maximum(_plate(along, across - gap, length, width), _plate(along, across + gap, length, width))


def _unequal(along: Plane, across: Plane, rng: np.random.Generator) -> Plane:
    gap, length, tilt = rng.uniform(9, 13), rng.uniform(13, 17), rng.uniform(0.5, 0.8)
    turned = along * np.cos(tilt) + across * np.sin(tilt), across * np.cos(tilt) - along * np.sin(tilt)
    small = _plate(turned[0], turned[1] + gap, 0.55 * length, 3.5)
    stray = _plate(along + rng.uniform(-6, 6), across - 1, 3, 3)
    return np.maximum(np.maximum(_plate(along, across - gap, length, 5), small), stray)


def _ring(along: Plane, across: Plane, rng: np.random.Generator) -> Plane:
    radius = np.hypot(along / rng.uniform(1.0, 1.25), across)
    return _soft(np.abs(radius - rng.uniform(12, 15)) - rng.uniform(3.5, 5), 1.2)


def _tripolar(along: Plane, across: Plane, rng: np.random.Generator) -> Plane:
    length, width = rng.uniform(9, 12), rng.uniform(3.5, 5)
    arms = []
    for turn in np.array([0, 2, 4]) * np.pi / 3 + rng.normal(0, 0.15, 3):
        out = along * np.cos(turn) + across * np.sin(turn)
        side = across * np.cos(turn) - along * np.sin(turn)
        arms.append(_plate(out - length, side, length, width))
    return np.maximum(np.maximum(arms[0], arms[1]), arms[2])


def _plate(along: Plane, across: Plane, length: float, width: float) -> Plane:
    """A rounded bar with half axes `length` and `width` px, 1 inside and 0 outside."""
    return _soft((np.hypot(along / length, across / width) - 1) * width, 1.2)


def _soft(distance: Plane, edge: float) -> Plane:
    return np.asarray(1 / (1 + np.exp(np.clip(distance / edge * 2, -60, 60))))


def _paint(image: npt.NDArray[np.float64], cover: Plane, colour: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(image + cover[:, :, None] * (colour - image))


def _grain(rng: np.random.Generator) -> Plane:
    """Smooth (128, 128) noise of unit size: coarse values between which it is interpolated."""
    coarse = rng.normal(0, 1, (18, 18))
    place = np.linspace(0, 16.999, SIZE)
    cell, part = place.astype(int), (place % 1)
    rows = coarse[cell] * (1 - part)[:, None] + coarse[cell + 1] * part[:, None]
    return np.asarray(rows[:, cell] * (1 - part) + rows[:, cell + 1] * part)
