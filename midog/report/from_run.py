"""Findings of a run, finished or still going."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from midog.data.patches import PatchTable
from midog.errors import DataError
from midog.files import read_json
from midog.report.findings import (
    Findings,
    Floats,
    FoldCurve,
    MemberFacts,
    Predictions,
    ScoreRow,
    distinct,
    domain_rows,
    provenance_rows,
    score_row,
    smooth_curve,
)
from midog.run import Run, read_oof, sigmoid
from midog.status import MAPS, RunStatus, read_log, readable_seconds

MEAN = "mean of members"
HOW = (
    "Out of fold: each patch is scored by the fold model that never saw its case; one view, and atypical where the "
    "logit is 0 or more. Nothing was fitted or chosen for these scores."
)


def run_findings(run: Run) -> Findings:
    """Gather what is there; what is not finished is left out and said."""
    status = run.status(intervals=False)
    logits = {name: found for name in run.members if (found := _logits(run, name))}
    notes: list[str] = []
    members = tuple(_member(run, name, status, notes) for name in run.members)
    shared = _shared(run, members, logits)
    rows = [_row(run, name, found) for name, found in logits.items()]
    predictions, chosen = None, MEAN
    if shared:
        table = _rows(run.table(), set.intersection(*(set(logits[name]) for name in shared)))
        columns = {name: np.array([logits[name][patch_id] for patch_id in table.ids]) for name in shared}
        z = np.mean(list(columns.values()), axis=0)
        predictions = Predictions(table, sigmoid(z), z >= 0, 0.5, smooth_curve(table.labels, sigmoid(z)))
        members = tuple(_with_logits(member, columns.get(member.name)) for member in members)
        chosen = shared[0] if len(shared) == 1 else MEAN
        rows += [score_row(MEAN, table, predictions.confidence, predictions.predicted)] if len(shared) > 1 else []
        left_out = [name for name in run.members if name not in shared]
        if left_out:
            notes.append(f"Not in the mean, because not far enough: {', '.join(left_out)}.")
        training = sum(patch.split == "train" and patch.label is not None for patch in run.table())
        if len(table) < training:
            notes.append(f"Scored so far: {len(table):,} of {training:,} training patches.")
    return Findings(
        kind="run",
        name=run.path.resolve().name,
        what=_what(run, status, shared),
        how_scored=HOW,
        chosen=chosen,
        predictions=predictions,
        rows=tuple(rows),
        domains=domain_rows(predictions) if predictions else (),
        members=members,
        provenance=distinct(provenance_rows(run.manifest)),
        notes=tuple(notes),
        finished=status.finished,
        head_maps={name: maps for name in run.members if (maps := _head_maps(run, name)) is not None},
    )


def member_facts(run: Run, name: str, notes: list[str]) -> MemberFacts:
    """What the recipe and the logs say about a member; `notes` gets what could not be read."""
    return _member(run, name, run.status(intervals=False), notes)


def _member(run: Run, name: str, status: RunStatus, notes: list[str]) -> MemberFacts:
    settings: dict[str, Any] = run.recipe["members"][name]
    training = settings.get("training", {})
    folds = []
    for fold in next(member for member in status.members if member.name == name).folds:
        try:
            log = [line for line in read_log(run.fold_folder(name, fold.fold)) if line.get("loss") is not None]
        except DataError as error:
            log = []
            notes.append(error.problem)
        epochs = np.array([line["epoch"] for line in log], dtype=np.int64)
        loss = np.array([line["loss"] for line in log], dtype=np.float64)
        folds.append(FoldCurve(fold.name, fold.state, epochs, loss, fold.problem))
    backbone, pretrained = settings.get("backbone", name), str(settings.get("pretrained", ""))
    return MemberFacts(
        name=name,
        backbone=str(backbone.get("name", "inline record") if isinstance(backbone, dict) else backbone),
        random=pretrained == "random" and start_kind(settings) == "off",
        epochs=int(training.get("epochs", 1)),
        loss=str(training.get("loss", "loss")),
        folds=tuple(folds),
        starts_from=starts_from(pretrained, start_kind(settings)),
    )


def start_kind(settings: Mapping[str, Any]) -> str:
    """Which start a member of a resolved recipe has: reconstruct, distil, or off."""
    start = settings.get("start") or "off"
    return str(start.get("kind", "off") if isinstance(start, Mapping) else start)


def starts_from(pretrained: str, kind: str, source: str = "") -> str:
    """What a backbone starts from, in words, its start included; `source`: where published weights are from."""
    published = "published weights" + (f" ({source})" if source else "")
    words = {"record": published, "random": "random weights", "": "–"}
    start = words.get(pretrained, f"weights of one's own ({Path(pretrained).name})")
    return start + ("" if kind == "off" else f", then {kind}")


def _with_logits(member: MemberFacts, logits: Floats | None) -> MemberFacts:
    return MemberFacts(**{**vars(member), "logits": logits})


def _logits(run: Run, member: str) -> dict[str, float]:
    """Identity-view logit of each labelled training patch that a finished fold scored."""
    found: dict[str, float] = {}
    for k in range(len(run.fold_names)):
        if run.done(member, k):
            oof = read_oof(run.fold_folder(member, k) / "oof.csv")
            found.update(zip(oof.ids, oof.logits[:, 0].tolist(), strict=True))
    known = {patch.patch_id for patch in run.table() if patch.label is not None}
    return {patch_id: z for patch_id, z in found.items() if patch_id in known}


def _head_maps(run: Run, member: str) -> dict[str, Any] | None:
    """What the head of the first finished fold model made of patches that it never saw; None where it has no maps."""
    k = next((k for k in range(len(run.fold_names)) if run.done(member, k)), None)
    file = run.fold_folder(member, k) / MAPS if k is not None else None
    return read_json(file) if file is not None and file.is_file() else None


def _shared(run: Run, members: Sequence[MemberFacts], logits: dict[str, dict[str, float]]) -> list[str]:
    """Members whose mean is shown: those with every fold, else all that share a finished fold, else the furthest."""
    whole = [m.name for m in members if m.name in logits and all(fold.state == "done" for fold in m.folds)]
    if whole or not logits:
        return whole
    if set.intersection(*map(set, logits.values())):
        return list(logits)
    return [max(logits, key=lambda name: len(logits[name]))]


def _row(run: Run, name: str, found: dict[str, float]) -> ScoreRow:
    table = _rows(run.table(), set(found))
    z = np.array([found[patch_id] for patch_id in table.ids])
    return score_row(name, table, sigmoid(z), z >= 0)


def _rows(table: PatchTable, ids: set[str]) -> PatchTable:
    return table.subset(np.array([patch_id in ids for patch_id in table.ids], dtype=bool))


def _what(run: Run, status: RunStatus, shared: Sequence[str]) -> str:
    folds = [fold for member in status.members for fold in member.folds]
    done = sum(fold.state == "done" for fold in folds)
    members = f"{len(run.members)} member{'s' if len(run.members) > 1 else ''}"
    if status.finished:
        scored = "the mean logit of its members" if len(shared) > 1 else "its member"
        return f"A finished run of {members} on {len(run.fold_names)} folds: {scored}, out of fold."
    unfinished = ("running", "queued", "stopped", "failed", "waiting")
    states = [state for state in unfinished if any(fold.state == state for fold in folds)]
    counted = ", ".join(f"{sum(fold.state == state for fold in folds)} {state}" for state in states)
    left = f"; about {readable_seconds(status.seconds_left)} left" if status.seconds_left is not None else ""
    return f"A run of {members} that is not finished: {done} of {len(folds)} fold models done, {counted}{left}."
