"""The same tissue on several scanners: folders of aligned images, as SCORPION and PLISM have them.

`python -m midog.data.pairs FOLDER` says what is found. Two layouts are read:

- one folder a slide, named `<stain>_<scanner>_to_<stain>_<scanner>` (or `<stain>_<scanner>`), one file a tile: as the
  registered PLISM tiles (owkin/plism-dataset-tiles, CC-BY-4.0) are named. Equal stain and tile name are one specimen.
- one folder a specimen, one file a scanner, named by it, at any depth: `slide_1/sample_3/AT2.jpg`.

Images are taken as they are: bring them to 0.25 µm per pixel first.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from midog.data.images import PATCH, Bytes, read_image
from midog.errors import DataError
from midog.files import sha256_json

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
REGISTERED = re.compile(r"(?P<stain>[^_]+)_(?P<scanner>[^_]+)_to_[^_]+_[^_]+")
SLIDE = re.compile(r"(?P<stain>[^_]+)_(?P<scanner>[^_]+)(_to_[^_]+_[^_]+)?")


@dataclass(frozen=True)
class Pairs:
    """Specimens that two or more scanners saw.

    Attributes:
        root: the folder.
        scanners: names, sorted; a scanner's code is its position.
        names: of the specimens, sorted.
        files: for each specimen its files by scanner code.
    """

    root: Path
    scanners: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[dict[int, Path], ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def sha256(self) -> str:
        """Over specimens, scanners, file names and sizes: other pairs make another fold."""
        return sha256_json(
            [
                [name, self.scanners[code], file.relative_to(self.root).as_posix(), file.stat().st_size]
                for name, files in zip(self.names, self.files, strict=True)
                for code, file in sorted(files.items())
            ]
        )

    @cached_property
    def by_scanner(self) -> tuple[tuple[int, ...], ...]:
        """For each scanner the specimens that it saw."""
        return tuple(
            tuple(at for at, files in enumerate(self.files) if code in files) for code in range(len(self.scanners))
        )

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """A specimen and two different scanners that saw it; every scanner comes first equally often."""
        first = int(rng.integers(len(self.scanners)))
        specimen = int(rng.choice(self.by_scanner[first]))
        second = int(rng.choice([code for code in sorted(self.files[specimen]) if code != first]))
        return specimen, first, second

    def crops(self, specimen: int, scanners: Sequence[int], rng: np.random.Generator) -> list[Bytes]:
        """The same place of a specimen on each of `scanners`: (128, 128, 3) uint8 RGB each.

        Raises: DataError when an image cannot be read, is smaller, or the images are not of one size.
        """
        images = [read_image(self.files[specimen][code]) for code in scanners]
        sizes = {image.shape for image in images}
        height, width = images[0].shape[:2]
        if len(sizes) > 1 or min(height, width) < PATCH:
            raise DataError(
                f"specimen {self.names[specimen]} in {self.root} has images of {_sizes(sizes)} pixels",
                f"aligned images of one size, at least {PATCH} × {PATCH}",
            )
        top, left = rng.integers(height - PATCH + 1), rng.integers(width - PATCH + 1)
        return [image[top : top + PATCH, left : left + PATCH] for image in images]

    def text(self) -> str:
        lines = [f"{len(self)} specimens on {len(self.scanners)} scanners"]
        seen = zip(self.scanners, self.by_scanner, strict=True)
        return "\n".join([*lines, *(f"  {name}: {len(specimens)}" for name, specimens in seen)])


def read_pairs(folder: Path | str) -> Pairs:
    """The specimens below `folder` that two or more scanners saw; others are left out.

    Raises: DataError when there is no folder, or no two specimens that share two scanners.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder of same-tissue pairs at {root}", "auxiliary: {pairs: FOLDER}")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    registered = any(REGISTERED.fullmatch(file.parent.name) for file in files)
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in files:
        slide = SLIDE.fullmatch(file.parent.name) if registered else None
        if slide is not None:
            found[f"{slide['stain']}/{file.stem}"][slide["scanner"]] = file
        elif not registered:
            found[file.parent.relative_to(root).as_posix()][file.stem] = file
    shared = {name: seen for name, seen in sorted(found.items()) if len(seen) > 1}
    scanners = sorted({scanner for seen in shared.values() for scanner in seen})
    lonely = [scanner for scanner in scanners if sum(scanner in seen for seen in shared.values()) < 2]
    if not shared or lonely:
        raise DataError(
            f"{root} holds no same-tissue pairs",
            "a folder a specimen with a file a scanner, or a folder <stain>_<scanner>_to_<stain>_<scanner> a slide",
            [f"{scanner} is on one specimen alone" for scanner in lonely] or [f"{len(files)} images"],
        )
    codes = {scanner: code for code, scanner in enumerate(scanners)}
    by_code = tuple({codes[scanner]: file for scanner, file in seen.items()} for seen in shared.values())
    return Pairs(root, tuple(scanners), tuple(shared), by_code)


def _sizes(shapes: set[tuple[int, ...]]) -> str:
    return ", ".join(sorted(f"{shape[1]} × {shape[0]}" for shape in shapes))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m midog.data.pairs FOLDER")
    print(read_pairs(sys.argv[1]).text())
