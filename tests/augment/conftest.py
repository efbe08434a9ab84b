import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(os.environ.get("MIDOG_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


@pytest.fixture
def kodak() -> Path:
    folder = DATA / "targets" / "kodak_256"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder} (set MIDOG_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_patches() -> np.ndarray:
    """(8, 128, 128, 3) uint8: AMi-Br patches of both classes."""
    files = sorted((DATA / "amibr" / "patches").glob("*/*.png"))
    if not files:
        pytest.skip(f"no AMi-Br patches in {DATA} (set MIDOG_DATA)")
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files[:: len(files) // 7][:8]])


@pytest.fixture
def patch() -> np.ndarray:
    """(128, 128, 3) uint8: smooth pink and violet under noise."""
    rng = np.random.default_rng(0)
    coarse = np.stack([rng.integers(low, 230, (8, 8)) for low in (120, 70, 130)], axis=-1).repeat(16, 0).repeat(16, 1)
    return np.clip(coarse + rng.normal(0, 6, (128, 128, 3)), 0, 255).astype(np.uint8)
