"""Before the first fold: what exists must fit what is asked for, and the run says what it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.files import lock, write_json
from midog.provenance import provenance
from midog.run import Run, fold_folder, open_run
from midog.status import holder, queued_folds
from midog.training.identity import differences, fold_identity, stored_identity
from midog.training.member import Member
from midog.training.source import Recipe, Source
from midog.training.teacher import teacher_sha256
from midog.yaml import write_yaml

PATIENCE = 60.0
"""Seconds to wait for another process that prepares the same run: it may hash gigabytes of weights meanwhile."""


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

    Raises: UsageError when a fold that exists was made by something else (of a run that stays as it is, only folds of
        `members` are looked at), or is being made by somebody who goes by what the run says now.
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
    if _says_the_same(run, recipe, table, content):
        refuse_changes([recipe.members[name] for name in recipe.members if name in members], source, run, pretrained)
        return
    # Two commands that begin one run at once write it one after the other; the second mostly finds nothing to do.
    with lock(run / ".lock", f"another process is preparing {run}", PATIENCE):
        refuse_changes(list(recipe.members.values()), source, run, pretrained)
        if _says_the_same(run, recipe, table, content):
            return
        refuse_in_use(run, _changed_members(run, recipe, table, content))
        table.write(run / "patches.csv", absolute=True)
        write_yaml(run / "recipe.yaml", recipe.plain)
        pixels = {"training_pixels": content.pop("training_pixels")}
        write_json(run / "manifest.json", {**content, **here, **provenance(), **pixels})


def _says_the_same(run: Path, recipe: Recipe, table: PatchTable, content: Mapping[str, Any]) -> bool:
    old = _open(run)
    return old is not None and old.recipe == recipe.plain and _same_data(old, table, content)


def _open(run: Path) -> Run | None:
    """None where nothing is written yet."""
    try:
        return open_run(run)
    except DataError:
        return None


def _same_data(old: Run, table: PatchTable, content: Mapping[str, Any]) -> bool:
    try:
        patches = old.table().patches
    except DataError:
        return False
    return all(old.manifest.get(key) == value for key, value in content.items()) and patches == tuple(
        replace(patch, path=str(table.file(patch))) for patch in table
    )


def _changed_members(run: Path, recipe: Recipe, table: PatchTable, content: Mapping[str, Any]) -> list[str]:
    """Members of the run that would be trained otherwise, or no more, once its files say what is asked for now."""
    old = _open(run)
    if old is None:
        return []
    whole = ("seed", "folds")
    if any(old.recipe.get(key) != recipe.plain[key] for key in whole) or not _same_data(old, table, content):
        return list(old.members)
    new = recipe.plain["members"]
    return [name for name, was in old.recipe["members"].items() if name not in new or differences(was, new[name])]


def refuse_in_use(run: Path, changed: Sequence[str]) -> None:
    """Processes and jobs that train a run read its files when they begin: these must not change under them.

    Any fold that is being trained counts, or waits in a cluster's queue: what its command goes on with is not known.

    Raises: UsageError naming them, where members would change.
    """
    old = _open(run)
    if old is None or not changed:
        return
    lines, queued = [], queued_folds(run)
    for member in old.members:
        for k, fold in enumerate(old.fold_names):
            folder, job = old.fold_folder(member, k), queued.get((member, k))
            ended = any((folder / name).is_file() for name in ("done.json", "failed.json"))
            # A job of which SLURM says nothing here may still be waiting.
            by = holder(folder) or (str(job) if job is not None and job.state != "" and not ended else "")
            if by:
                lines.append(f"{member} fold {fold}: {by}")
    if lines:
        raise UsageError(
            f"{run} is being trained, and would be made otherwise by what is asked for now "
            f"({', '.join(changed)}); nothing was changed",
            "train into another run (-o), or wait for it, or end it, and repeat the command",
            lines,
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
