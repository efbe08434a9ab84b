"""Findings of a blend folder. Its own files give the scores; the runs behind it, where they still are, the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import Blend, BlendMember, read_blend
from ensemble.oof import OofSet, align
from ensemble.predictions import EVERYTHING, Scored, read_scored
from ensemble.result import OOF_BLEND_FILE
from midog.data.patches import PatchTable
from midog.errors import DataError, MidogError
from midog.metrics import Interval, Scores
from midog.report.findings import (
    Findings,
    MemberFacts,
    Predictions,
    ScoreRow,
    distinct,
    domain_rows,
    provenance_rows,
    score_row,
    smooth_curve,
)
from midog.report.from_run import member_facts, start_kind, starts_from
from midog.run import open_run

HOW = (
    "Cross-fitted by case: weights, shift, temperature and threshold are fitted on four fifths of the cases and "
    "applied to the fifth they never saw, five times. The logits themselves are out of fold."
)


def blend_findings(folder: Path | str) -> Findings:
    """Gather what a blend folder (or its blend.json) holds."""
    folder = Path(folder)
    folder = folder if folder.is_dir() else folder.parent
    blend = read_blend(folder)
    if not (folder / OOF_BLEND_FILE).is_file():
        raise DataError(
            f"{folder} holds no {OOF_BLEND_FILE}, the cross-fitted predictions", f"midog blend RUN -o {folder}"
        )
    scored = read_scored(folder / OOF_BLEND_FILE)
    notes: list[str] = []
    oof = _align(blend, notes)
    predictions = _predictions(blend, scored, oof)
    members = tuple(_member(member, at, oof, blend, scored.table, notes) for at, member in enumerate(blend.members))
    kind = str(blend.content.get("settings", {}).get("kind", "blend"))
    rows = _score_rows(blend, EVERYTHING) or (
        score_row(kind, predictions.table, predictions.confidence, predictions.predicted),
    )
    return Findings(
        kind="blend",
        name=folder.resolve().name,
        what=_what(blend, kind),
        how_scored=HOW,
        chosen=kind,
        predictions=predictions,
        rows=rows,
        domains=domain_rows(predictions),
        members=members,
        weights={name: dict(values) for name, values in blend.content.get("weights", {}).items()},
        weight_fits=tuple(dict(fit["weights"]) for fit in blend.content.get("cross_fit", {}).get("fits", ())),
        strength=blend.content.get("shrinkage", {}).get("strength"),
        thresholds=blend.content.get("thresholds", {}),
        threshold_rule=blend.threshold_rule,
        provenance=_provenance(blend),
        notes=tuple(dict.fromkeys(notes)),
    )


VIEWS = {
    "none": "one view",
    "rot4": "four rotations",
    "d4": "eight views",
    "stain": "the patch and its stain-normalised view",
    "d4_stain": "eight views and a stain-normalised one",
    "macenko": "the patch and its Macenko-normalised view",
    "d4_macenko": "eight views and a Macenko-normalised one",
}


def _what(blend: Blend, kind: str) -> str:
    words = {"tuned": "A tuned blend", "equal": "An equal-weight blend", "stack": "A stacked blend"}
    members = f"{len(blend.members)} member{'s' if len(blend.members) > 1 else ''}"
    views = VIEWS[blend.point("full").views]
    return f"{words.get(kind, 'A blend')} of {members}, {views} per patch, scored on cases it was not fitted on."


def _align(blend: Blend, notes: list[str]) -> OofSet | None:
    """The members' logits, None where the runs have moved or changed."""
    try:
        return align([f"{member.run}:{member.member}" for member in blend.members])
    except MidogError as error:
        notes.append(f"The runs behind this blend could not be read, so members' curves are left out: {error.problem}.")
        return None


def _predictions(blend: Blend, scored: Scored, oof: OofSet | None) -> Predictions:
    """The cross-fitted predictions, with the run's own patch table where it is at hand (image paths, votes)."""
    table = scored.table
    if oof is not None:
        place = {patch.patch_id: patch for patch in oof.table}
        if all(patch_id in place for patch_id in table.ids):
            table = PatchTable(tuple(place[patch_id] for patch_id in table.ids), oof.table.root)
    threshold = blend.point("full").threshold
    return Predictions(
        table, scored.confidence, scored.predicted, threshold, smooth_curve(scored.table.labels, scored.confidence)
    )


def _member(
    member: BlendMember, at: int, oof: OofSet | None, blend: Blend, table: PatchTable, notes: list[str]
) -> MemberFacts:
    logits = None if oof is None else _column(oof, at, blend.point("full").views, table.ids)
    backbone = member.network.get("backbone", "")
    found = MemberFacts(
        name=member.name,
        backbone=str(backbone.get("name", "") if isinstance(backbone, Mapping) else backbone),
        random=member.network.get("pretrained") == "random" and member_start(blend, member) == "off",
        epochs=1,
        loss="loss",
        logits=logits,
        starts_from=member_starts_from(blend, member),
    )
    try:
        known = member_facts(open_run(member.run), member.member, notes)
    except (MidogError, KeyError, StopIteration):
        return found
    backbone = found.backbone or known.backbone
    return replace(found, backbone=backbone, epochs=known.epochs, loss=known.loss, folds=known.folds)


def member_start(blend: Blend, member: BlendMember) -> str:
    """Which start a member had: reconstruct, distil, or off, which also stands where neither blend nor run tells."""
    told = next((entry.get("start") for entry in blend.content["members"] if entry["name"] == member.name), None)
    if told is not None:
        return str(told)
    try:  # an earlier release's blend, or no start
        return start_kind(open_run(member.run).recipe["members"][member.member])
    except (MidogError, KeyError, AttributeError, OSError):
        return "off"


def member_starts_from(blend: Blend, member: BlendMember) -> str:
    """What a member's backbone starts from, in words, a tuning before the training included."""
    pretrained, record = str(member.network.get("pretrained", "")), member.network.get("backbone")
    return starts_from(pretrained, member_start(blend, member), weights_source(record))


def weights_source(record: Any) -> str:
    """Where the published weights of a backbone's record are from."""
    return str(record.get("source") or "unknown source") if isinstance(record, Mapping) else "unknown source"


def _column(oof: OofSet, at: int, views: str, ids: tuple[str, ...]) -> NDArray[np.float64] | None:
    """A member's logits in the order of `ids`."""
    place = {patch_id: row for row, patch_id in enumerate(oof.ids)}
    if not all(patch_id in place for patch_id in ids):
        return None
    return oof.views(views)[[place[patch_id] for patch_id in ids], at]


def _score_rows(blend: Blend, group: str) -> tuple[ScoreRow, ...]:
    """The rows of blend.json for one group: each member, then equal, tuned and stack."""
    rows = []
    for entry in blend.content.get("scores", ()):
        if entry["group"] == group:
            own, seen = entry["cross_fitted"], entry["in_sample"]
            intervals = {name: Interval(**value) for name, value in own.get("intervals", {}).items()}
            at_zero = own.get("balanced_accuracy_at_logit_0")
            rows.append(ScoreRow(entry["name"], _scores(own), intervals, _scores(seen), at_zero))
    return tuple(rows)


def _scores(entry: Mapping[str, Any]) -> Scores:
    return Scores(**{name: entry[name] for name in Scores.__dataclass_fields__})


def _provenance(blend: Blend) -> tuple[tuple[str, str], ...]:
    content, settings = blend.content, blend.content.get("settings", {})
    own = dict(content.get("provenance", {}))
    runs = own.pop("runs", {})
    rows = [("blend", ", ".join(f"{key} {value}" for key, value in settings.items()))] if settings else []
    rows += provenance_rows({**content, **own, "seed": settings.get("seed")})
    for name, manifest in runs.items():
        rows += provenance_rows(manifest, f"run {name}")
    return distinct(rows)
