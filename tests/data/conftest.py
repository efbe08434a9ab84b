from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real data: `MIDOG_DATA`, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MIDOG_DATA") or CHECKOUT.parent / "shared" / "data")
    if not (folder / "amibr" / "AMI-BR.csv").is_file():
        pytest.skip(f"no real AMi-Br patches in {folder}")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pixel cache for all tests, away from the user's own."""
    return tmp_path_factory.mktemp("cache")


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a plain CSV with one noise image a row; rows are (path, label, case, …) under `header`."""

    def make(
        rows: Sequence[Sequence[object]], header: str = "path,label,case", folder: str = "data", images: bool = True
    ) -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows):
            if images and not (place / str(row[0])).exists():
                save(place / str(row[0]), number)
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        (place / "plain.csv").write_text("\n".join(lines) + "\n")
        return place / "plain.csv"

    return make


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (128, 128, 3), dtype=np.uint8)


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)
    return path
