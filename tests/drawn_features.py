"""Drawn features (synthetic), whose share of label and scanner is known, and where the real ones are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

TCGA = "embeddings/hipt_pathorob_tcga4x4_regions.npz"


@dataclass(frozen=True)
class Drawn:
    features: NDArray[np.float64]
    label: NDArray[np.str_]
    scanner: NDArray[np.str_]
    case: NDArray[np.int64]

    @property
    def all(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        return self.features, self.label, self.scanner, self.case


def draw(
    of_label: float, of_scanner: float, cases: int = 12, per_case: int = 6, scanners: int = 2, seed: int = 0
) -> Drawn:
    """`cases` for each scanner, each with patches of both labels; strengths of both directions beside unit noise."""
    rng = np.random.default_rng(seed)
    case = np.repeat(np.arange(cases * scanners), per_case)
    scanner = case % scanners
    label = np.arange(len(case)) % 2
    features = rng.normal(size=(len(case), 12))
    features[:, 0] += of_label * (2 * label - 1)
    features[np.arange(len(case)), 1 + scanner] += of_scanner
    return Drawn(features, np.array(["normal", "atypical"])[label], np.array([f"S{s}" for s in scanner]), case)


def real_embeddings() -> Path:
    """The TCGA 4 × 4 embeddings in `MIDOG_DATA`, else in ../shared/data beside the checkout; skips without them."""
    folder = Path(os.environ.get("MIDOG_DATA") or Path(__file__).parents[1].parent / "shared" / "data")
    if not (folder / TCGA).is_file():
        pytest.skip(f"no real embeddings in {folder}")
    return folder / TCGA
