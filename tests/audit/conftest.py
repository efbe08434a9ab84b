"""A run, its blend and its bundle on drawn patches (synthetic) of two scanners and two tumours: micro-models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bundle_fixture import NETWORKS, make_blend, make_run, make_table

from midog.audit.patches import Patches, read_patches
from midog.bundle import pack

MEMBERS = {name: NETWORKS[name] for name in ("vit", "effnet")}
POINTS = {
    "full": (("vit", "effnet"), (0.6, 0.4), "d4"),
    "fast": (("vit",), (1.0,), "none"),
    "only:vit/1": (("vit",), (1.0,), "none"),
    "only:effnet/1": (("effnet",), (1.0,), "none"),
}
CASES, PER_CASE = 16, 3


@dataclass(frozen=True)
class Drawn:
    table: Path
    run: Path
    blend: Path
    bundle: Path


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """All tests here."""


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """48 patches of 16 cases, every third atypical; the last four cases are `test`, the others in two folds."""
    folder = tmp_path_factory.mktemp("audit")
    table = make_table(folder / "patches", CASES * PER_CASE)
    patches = []
    for i, patch in enumerate(table):
        case = i // PER_CASE
        scanner, tumour = f"S{case % 2}", f"T{case // 2 % 2}"
        test = case >= CASES - 4
        patches.append(
            replace(
                patch, case=f"c{case}", domain=f"{tumour} | {scanner}", scanner=scanner, tumour=tumour,
                split="test" if test else "train", fold=None if test else case // 4 % 2, label=int(i % PER_CASE == 0),
            )
        )  # fmt: skip
    table = table.with_patches(patches)
    table.write(folder / "patches" / "patches.csv")
    run = make_run(folder / "run", table, MEMBERS)
    blend = make_blend(folder / "blend", run, MEMBERS, POINTS)
    return Drawn(folder / "patches" / "patches.csv", run, blend, pack(blend, folder / "model.tar.gz"))


@pytest.fixture
def patches(drawn: Drawn) -> Patches:
    return read_patches(drawn.table)
