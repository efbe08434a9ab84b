"""Copy torch, torchvision and all they need from this environment to a folder: the stand-in base image's packages."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def closure(names: list[str]) -> list[str]:
    """The distributions that `names` need here, themselves included; extras and absent markers left out."""
    found: list[str] = []
    while names:
        name = names.pop()
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.append(name)
            names += [re.split(r"[^\w.-]", line.strip())[0] for line in needed if "extra ==" not in line]
    return found


def copy(name: str, target: Path) -> None:
    """Hard links where both lie on one disk: torch's CUDA libraries are 6 GB."""
    for file in distribution(name).files or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or not source.is_file():
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            try:
                os.link(source, place)
            except OSError:
                place.write_bytes(source.read_bytes())


if __name__ == "__main__":
    for name in closure(["torch", "torchvision"]):
        copy(name, Path(sys.argv[1]))
