"""Before the first fold: what exists must fit what is asked for, and the run says what it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.files import write_json
from midog.provenance import provenance
from midog.run import fold_folder, open_run
from midog.training.identity import differences, fold_identity, stored_identity
from midog.training.member import Member
from midog.training.source import Recipe, Source
from midog.training.teacher import teacher_sha256
from midog.yaml import write_yaml


def prepare_run(
    recipe: Recipe,
    table: PatchTable,
    source: Source,
    run: Path,
    pretrained: Path | None,
    members: Collection[str],
    here: Mapping[str, Any],
) -> None:
    """Write recipe.yaml, manifest.json and patches.csv of the run, unless they say the same already: the processes that
    train its folds side by side come here too.

    Raises: UsageError when a fold that exists was made by something else; of a run that stays as it is, only folds of
        `members` are looked at.
    """
    content = {
        "seed": recipe.seed,
        "folds": recipe.folds,
        "fold_names": list(source.assignment.names),
        "data_sha256": source.table.data_hash,
        "folds_sha256": source.table.folds_hash,
        "patches": len(source.table),
        "atypical": int((source.table.labels == 1).sum()),
        "cases": len(set(source.table.column("case"))),
        "held_out_patches": len(table) - len(source.table),
        # What a fold model may have seen: `predict` counts the patches it meets again.
        "training_pixels": sorted(set(source.pixels.hashes)),
    }
    same = _says_the_same(run, recipe, table, content)
    looked_at = [member for name, member in recipe.members.items() if not same or name in members]
    refuse_changes(looked_at, source, run, pretrained)
    if not same:
        table.write(run / "patches.csv", absolute=True)
        write_yaml(run / "recipe.yaml", recipe.plain)
        pixels = {"training_pixels": content.pop("training_pixels")}
        write_json(run / "manifest.json", {**content, **here, **provenance(), **pixels})


def _says_the_same(run: Path, recipe: Recipe, table: PatchTable, content: Mapping[str, Any]) -> bool:
    try:
        old = open_run(run)
        patches = old.table().patches
    except DataError:
        return False
    return (
        old.recipe == recipe.plain
        and all(old.manifest.get(key) == value for key, value in content.items())
        and patches == tuple(replace(patch, path=str(table.file(patch))) for patch in table)
    )


def refuse_changes(members: Sequence[Member], source: Source, run: Path, pretrained: Path | None) -> None:
    """Raises: UsageError when a fold that exists was made by something else than this recipe, naming every key."""
    lines: dict[str, None] = {}
    for member in members:
        for k in range(len(source.assignment.names)):
            folder = fold_folder(run, member.name, k)
            old = stored_identity(folder)
            if old is None:
                continue
            # A teacher that is away, perhaps to be trained again, leaves its pupil as it is.
            teacher = teacher_sha256(member, folder) or str(old.get("teacher_sha256", ""))
            new = fold_identity(member, k, source.table, source.assignment, source.pixels, pretrained, teacher)
            for line in differences(old, new):
                lines[f"{member.name}: {line}"] = None
    if lines:
        raise UsageError(
            f"{run} was made by something else than what is asked for now; nothing was changed",
            "train into another run (-o), give the changed member another name, or remove its folder to make it again",
            list(lines),
        )
