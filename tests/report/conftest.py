"""Run folders as training leaves them, with drawn logits and logs, and images on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augment.views import VIEW_NAMES
from midog.data.folds import make_folds
from midog.data.patches import Patch, PatchTable
from midog.files import sha256_file, write_json, write_text
from midog.run import Oof, write_oof
from midog.yaml import write_yaml

EPOCHS = 6


def draw_table(root: Path, n: int = 120, cases: int = 24) -> PatchTable:
    """Small pictures of `cases` cases on two scanners, with votes, in two folds."""
    rng = np.random.default_rng(0)
    patches = []
    for at in range(n):
        path = root / "images" / f"{at:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(path)
        label = int(rng.random() < 0.3)
        scanner = "XR" if at % cases % 3 else "CS2"
        patches.append(
            Patch(
                patch_id=f"set/{at:03d}",
                path=str(path),
                label=label,
                case=f"case{at % cases:02d}",
                domain=f"breast, {scanner}",
                scanner=scanner,
                votes=f"{2 * label + int(rng.random() < 0.3) * (1 - 2 * label)}/3",
            )
        )
    return make_folds(PatchTable(tuple(patches), root), "grouped:2:0")


def draw_logits(table: PatchTable, signal: float, seed: int) -> np.ndarray:
    """(n, 8) logits: label × signal + noise, some of it shared by all members."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99).normal(size=len(table))
    z = (2.0 * table.labels - 1) * signal + 0.7 * shared + 0.7 * rng.normal(size=len(table))
    return np.asarray(z[:, None] + 0.3 * rng.normal(size=(len(table), len(VIEW_NAMES))))


def write_run(
    path: Path,
    table: PatchTable,
    members: Mapping[str, np.ndarray],
    undone: Sequence[str] = (),
    random: Sequence[str] = (),
    pupils: Sequence[str] = (),
) -> Path:
    """A run: recipe, manifest, patches; per fold OOF table, log, done.json. `undone` ("member/fold") are half-way,
    `pupils` begin with a start."""
    table.write(path / "patches.csv", absolute=True)
    folds = sorted({int(k) for k in table.folds if k >= 0})
    settings: dict[str, Any] = {
        name: {
            "backbone": name,
            "pretrained": "random" if name in random else "record",
            "training": {"epochs": EPOCHS, "loss": "bce"},
            "start": {"kind": "distil", "epochs": 2} if name in pupils else "off",
        }
        for name in members
    }
    write_yaml(path / "recipe.yaml", {"folds": "fold", "seed": 0, "members": settings})
    manifest = {
        "seed": 7,
        "fold_names": [str(k) for k in folds],
        "data_sha256": table.data_hash,
        "folds_sha256": table.folds_hash,
        "device": "cpu (2 cores)",
        "threads": 2,
        "git": "0123abc",
        "versions": {"midog": "0.1.0", "torch": "2.9.1"},
        "training_pixels": ["0"],
    }
    write_json(path / "manifest.json", manifest)
    for number, (name, logits) in enumerate(members.items()):
        for k in folds:
            rng = np.random.default_rng([number, k])
            folder = path / name / f"fold_{k}"
            folder.mkdir(parents=True, exist_ok=True)
            finished = f"{name}/{k}" not in undone
            epochs = EPOCHS if finished else EPOCHS // 2
            losses = 0.25 + 0.45 * np.exp(-np.arange(epochs) / 2.5) + 0.02 * rng.random(epochs)
            lines = [json.dumps({"epoch": e + 1, "loss": float(v), "seconds": 2.0}) for e, v in enumerate(losses)]
            write_text(folder / "log.jsonl", "\n".join(lines) + "\n")
            if not finished:
                continue
            rows = np.flatnonzero(table.folds == k)
            write_oof(folder / "oof.csv", Oof(tuple(table.ids[r] for r in rows), table.folds[rows], logits[rows]))
            write_text(folder / "model.safetensors", "")
            content = {
                "model_sha256": sha256_file(folder / "model.safetensors"),
                "oof_sha256": sha256_file(folder / "oof.csv"),
                "network": {"backbone": {"name": name}, "pretrained": settings[name]["pretrained"]},
            }
            write_json(folder / "done.json", content)
    return path


class Make:
    """The functions above, for tests that draw their own."""

    table = staticmethod(draw_table)
    logits = staticmethod(draw_logits)
    run = staticmethod(write_run)


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    return draw_table(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def members(table: PatchTable) -> dict[str, np.ndarray]:
    return {"good": draw_logits(table, 0.9, 1), "fair": draw_logits(table, 0.6, 2), "noise": draw_logits(table, 0.0, 3)}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, table: PatchTable, members: dict[str, np.ndarray]) -> Path:
    """A finished run of three members, one of which started from random weights."""
    return write_run(tmp_path_factory.mktemp("runs") / "one", table, members, random=("noise",))


@pytest.fixture(scope="session")
def blend(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    from ensemble.crossfit import blend_runs
    from ensemble.fit import BlendSettings

    folder = tmp_path_factory.mktemp("blends") / "one"
    blend_runs([run], BlendSettings(trials=5)).write(folder)
    return folder


@pytest.fixture(scope="session")
def blend_page(blend: Path) -> Path:
    from midog.report.page import report

    return report(blend)
