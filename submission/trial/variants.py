"""The odd conditions under which a job is run once more, and the folders that they need: models, a used /tmp."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from midog.archive import MANIFEST_FILE, locate, parse_manifest, unpack
from submission.challenge import TRACK2
from submission.trial.jobs import open_to_all
from submission.trial.runners import Conditions, Runner

READABLE = 0o004
"""Of a file's mode: by everybody."""


def variants(runner: Runner, usual: Conditions, folder: Path) -> Iterator[tuple[str, Conditions]]:
    """The conditions under which the base job is run once more."""
    yield "again", usual
    yield "other working directory", replace(usual, workdir="/usr")
    yield "unwritable HOME", replace(usual, environment={"HOME": "/nonexistent"})
    yield "dirty /tmp", replace(usual, tmp=_dirty(folder / "dirty-tmp"))
    if "D4" not in runner.skips():
        yield "unwritable /output", replace(usual, output_read_only=True)
    yield "no model", replace(usual, model=None)
    foreign = folder / "foreign-model"
    foreign.mkdir(exist_ok=True)
    (foreign / "weights.pth").write_bytes(b"PK\3\4")
    open_to_all(foreign)
    yield "foreign model", replace(usual, model=foreign)
    if usual.model is not None:
        nested, damaged = folder / "nested-model", folder / "damaged-model"
        for copy in (nested, damaged):
            shutil.rmtree(copy, ignore_errors=True)
        _clone(usual.model, nested / "bundle")
        nested.chmod(0o755)
        yield "nested model", replace(usual, model=nested)
        _damage(_clone(usual.model, damaged))
        yield "damaged model", replace(usual, model=damaged)


def lay_out(bundle: Path, folder: Path) -> Path:
    """The bundle as the platform lays it out below /opt/ml/model: readable by the algorithm's user."""
    shutil.rmtree(folder, ignore_errors=True)
    if bundle.is_dir():
        return _clone(locate(bundle) or bundle, folder)
    folder.mkdir(parents=True)
    unpack(bundle, folder)
    open_to_all(folder)
    return locate(folder) or folder


def _dirty(folder: Path) -> Path:
    """A /tmp as an earlier task may have left it, also where caches would like to go."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "midog-bundle-old" / "members").mkdir(parents=True)
    (folder / "midog-bundle-old" / MANIFEST_FILE).write_text("{")
    (folder / TRACK2.output_file).write_text("[]")
    for name in (".cache", "torch", "huggingface", "matplotlib"):
        (folder / name).write_text("a file where a folder would be")
    open_to_all(folder)
    folder.chmod(0o1777)
    return folder


def _clone(folder: Path, target: Path) -> Path:
    """The same files again, as hard links where the file system allows it: bundles are large."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                if not path.stat().st_mode & READABLE:
                    raise PermissionError(f"{path} is its owner's alone")
                os.link(path, copy)
            except OSError:
                shutil.copyfile(path, copy)
                copy.chmod(0o644)
    for made in (target, *target.rglob("*")):
        if made.is_dir():
            made.chmod(0o755)
    return target


def _damage(model: Path) -> None:
    """Change one byte of the smallest file that the manifest lists."""
    manifest = parse_manifest((model / MANIFEST_FILE).read_bytes(), model)
    name = min(manifest["files"], key=lambda name: manifest["files"][name]["bytes"])
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).unlink()  # the file itself is shared with the good bundle
    (model / name).write_bytes(content)
    (model / name).chmod(0o644)
