from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_job() -> Path:
    """The challenge's own 16-page job; skipped where the data are not at hand."""
    data = Path(os.environ.get("MIDOG_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    if not (data / "job" / "inputs.json").is_file():
        pytest.skip(f"no real challenge job in {data}")
    return data / "job"
