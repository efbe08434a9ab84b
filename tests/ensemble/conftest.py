"""Real run folders with drawn logits: what training leaves behind, without the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from augment.views import VIEW_NAMES
from midog.data.folds import make_folds
from midog.data.patches import Patch, PatchTable
from midog.files import sha256_file, write_json, write_text
from midog.run import Oof, write_oof


def draw_table(root: Path, n: int = 300, cases: int = 30, seed: int = 0, prevalence: float = 0.3) -> PatchTable:
    """Patches of `cases` cases on two scanners, two folds."""
    rng = np.random.default_rng(seed)
    patches = []
    for i in range(n):
        case = i % cases
        scanner = "XR" if case % 3 else "CS2"
        patches.append(
            Patch(
                patch_id=f"set/{i:04d}",
                path=f"images/{i:04d}.png",
                label=int(rng.random() < prevalence),
                case=f"case{case:02d}",
                domain=f"breast, {scanner}",
                tumour="breast",
                scanner=scanner,
            )
        )
    return make_folds(PatchTable(tuple(patches), root), "grouped:2:0")


def draw_logits(table: PatchTable, signal: float, seed: int, noise: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """(n, views) logits: label × signal + noise of the patch + a little noise of each view, one view after another."""
    rng = np.random.default_rng(seed)
    z = (2.0 * table.labels - 1) * signal + noise * rng.normal(size=len(table)) + shift
    return z[:, None] + 0.3 * rng.normal(size=(len(VIEW_NAMES), len(table))).T


def write_run(path: Path, table: PatchTable, members: Mapping[str, np.ndarray], undone: Sequence[str] = ()) -> Path:
    """A finished run: recipe, manifest, patches, and for each member and fold model, OOF table and done.json."""
    from midog.yaml import write_yaml

    table.write(path / "patches.csv", absolute=True)
    folds = sorted({int(k) for k in table.folds if k >= 0})
    recipe: dict[str, Any] = {"folds": "fold", "seed": 0, "members": {n: {"training": {"epochs": 1}} for n in members}}
    write_yaml(path / "recipe.yaml", recipe)
    write_json(path / "manifest.json", {"fold_names": [str(k) for k in folds], "git": "abc", "training_pixels": ["0"]})
    for name, logits in members.items():
        for k in folds:
            rows = np.flatnonzero(table.folds == k)
            folder = path / name / f"fold_{k}"
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"head.weight": np.full(2, k, dtype=np.float32)}, folder / "model.safetensors")
            ids = tuple(table.ids[row] for row in rows)
            write_oof(folder / "oof.csv", Oof(ids, table.folds[rows], logits[rows]))
            write_text(folder / "log.jsonl", "")
            if f"{name}/{k}" not in undone:
                content = {
                    "model_sha256": sha256_file(folder / "model.safetensors"),
                    "oof_sha256": sha256_file(folder / "oof.csv"),
                    "network": {"backbone": {"name": name}},
                }
                write_json(folder / "done.json", content)
    return path


class Make:
    """The three functions above, for tests that draw their own."""

    table = staticmethod(draw_table)
    logits = staticmethod(draw_logits)
    run = staticmethod(write_run)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture
def table(tmp_path: Path) -> PatchTable:
    return draw_table(tmp_path)


@pytest.fixture
def run(tmp_path: Path, table: PatchTable) -> Path:
    """A run of three members: good, fair and one that knows nothing."""
    return three_members(tmp_path, table)


@pytest.fixture(scope="session")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run for all tests that only read it."""
    folder = tmp_path_factory.mktemp("kept")
    return three_members(folder, draw_table(folder))


def three_members(folder: Path, table: PatchTable) -> Path:
    members = {
        "good": draw_logits(table, 1.2, 1),
        "fair": draw_logits(table, 0.8, 2, shift=-1.0),
        "noise": draw_logits(table, 0.0, 3),
    }
    return write_run(folder / "runs" / "one", table, members)
