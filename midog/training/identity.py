"""What made a fold: kept beside it, compared before anything is continued."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midog.data.folds import Assignment
from midog.data.patches import HASHED, PatchTable
from midog.errors import UsageError, WeightsError
from midog.files import read_json, sha256_bytes, sha256_file, sha256_json
from midog.models.backbones import find_backbone
from midog.models.harmonise import CombatFeatures
from midog.models.weights import find_weights
from midog.settings import flatten, plain
from midog.status import CHECKPOINTS
from midog.training.auxiliary_settings import DomainAdversarial, ScannerContrast
from midog.training.checkpoint import read_header

if TYPE_CHECKING:
    from midog.models.network import Network
    from midog.training.batches import Images
    from midog.training.member import Member

BACKBONE_KEYS = ("timm", "timm_kwargs", "input_size", "mean", "std", "interpolation", "pooling", "lora_targets")
"""What of a backbone's record decides a fold model; its licence or address may be corrected at any time."""
BEFORE = {"member.training.optimizer": "adamw"}
"""Settings that were no settings yet when earlier releases wrote identities."""
NOT_KEPT = ("columns_sha256",)
"""What earlier releases did not keep: of a fold that they made, it cannot be said whether it was the same."""
ABSENT = object()
ON = "on"


def fold_identity(
    member: Member,
    k: int,
    table: PatchTable,
    assignment: Assignment,
    images: Images,
    pretrained: Path | None,
    teacher: str = "",
) -> dict[str, Any]:
    """Everything that decides a fold model, as plain JSON: settings, seed, folds, data, pixels, weights, targets, and
    the sha256 of the fold model that it starts from as its `teacher`.

    What belongs to the machine (threads, precision, device) is not among it.

    Raises: WeightsError when the pretrained weights are missing; DataError when Fourier targets are.
    """
    record = find_backbone(member.backbone).to_dict()
    used = assignment.index >= 0
    rows = table.subset(used)
    hashes = getattr(images, "hashes", None)
    if hashes is None:
        hashes = [sha256_bytes(np.ascontiguousarray(images[np.array([at])]).tobytes())[:16] for at in range(len(table))]
    content: dict[str, Any] = plain(
        {
            "member": {"name": member.name, **member.settings()},
            "backbone": {key: record[key] for key in BACKBONE_KEYS},
            "seed": member.seed,
            "fold": assignment.names[k],
            "folds_sha256": sha256_json(
                [[i, int(f)] for i, f in zip(table.ids, assignment.index, strict=True) if f >= 0]
            ),
            "data_sha256": rows.data_hash,
            "columns_sha256": columns_identity(member, rows),
            "pixels_sha256": sha256_json([digest for digest, use in zip(hashes, used, strict=True) if use]),
            "pretrained": pretrained_identity(member, pretrained),
            "targets_sha256": targets_identity(member),
            "pairs_sha256": pairs_identity(member),
            "teacher_sha256": teacher,
            "anchors_sha256": anchors_identity(member),
        }
    )
    return content


def pretrained_identity(member: Member | Network, pretrained: Path | None) -> str:
    """sha256 of the pretrained weights, or "random" with the seed that draws them."""
    if member.pretrained == "random":
        return f"random {member.seed}"
    path = find_weights(find_backbone(member.backbone), member.pretrained, pretrained)
    changed = path.stat()
    return _file_hash(path.resolve(), changed.st_size, changed.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, mtime: int) -> str:
    """A gigabyte takes a second, so each file is read once per process unless it changes."""
    return sha256_file(path)


def anchors_identity(member: Member) -> str:
    """sha256 of a concept head's file of anchors; empty without. Raises: WeightsError where it is missing."""
    from midog.models.heads.concept import PROTOTYPES, Concept
    from midog.models.weights import TensorFile

    if not isinstance(member.head, Concept) or member.head.anchors == PROTOTYPES:
        return ""
    return sha256_file(TensorFile(Path(member.head.anchors).expanduser()).path)


def targets_identity(member: Member) -> str:
    """sha256 of the Fourier targets; empty without, "scanner" where the fold's own patches are the targets."""
    from midog.training.patches import shared_targets

    fourier = member.augment.fourier
    if fourier is None:
        return ""
    if fourier.targets == "scanner":
        return "scanner"
    return sha256_json([sha256_bytes(np.ascontiguousarray(t.block).tobytes()) for t in shared_targets(fourier)])


def columns_identity(member: Member, rows: PatchTable) -> str:
    """sha256 over the columns that this member's training uses and `data_sha256` does not cover; empty where none."""
    columns = set()
    fourier, auxiliary = member.augment.fourier, member.auxiliary
    if fourier is not None and fourier.p and fourier.targets == "scanner":
        columns.add("scanner")
    if isinstance(member.harmonise, CombatFeatures):
        columns.add("scanner")
    if isinstance(auxiliary, ScannerContrast) and auxiliary.mode != "paired":
        columns.add("scanner")
    if isinstance(auxiliary, DomainAdversarial):
        columns.add(auxiliary.confounder)
    columns -= set(HASHED)
    return sha256_json({name: rows.column(name).tolist() for name in sorted(columns)}) if columns else ""


def pairs_identity(member: Member) -> str:
    """sha256 over specimens, scanners, names and sizes of external pairs; empty without."""
    from midog.data.pairs import read_pairs

    return read_pairs(folder).sha256 if (folder := getattr(member.auxiliary, "pairs", "")) else ""


def stored_identity(folder: Path) -> dict[str, Any] | None:
    """What made the fold in `folder`, from done.json or a checkpoint; None where nothing was kept yet.

    Raises: DataError or WeightsError when the file that holds it is damaged.
    """
    file = next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)
    # In this order: who finishes meanwhile writes done.json first, and then removes the checkpoints.
    if not (folder / "done.json").is_file():
        if file is None:
            return None
        try:
            return read_header(file).identity
        except WeightsError:
            if not (folder / "done.json").is_file():
                raise
    return dict(read_json(folder / "done.json")["identity"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines such as "member.training.lr: 0.0001 made it, 5e-05 is asked for".

    A key that the old identity lacks and that is off in the new one is no difference: a later release knows more
    settings, and what is off did not exist then either. `BEFORE` says what was meant where it was not off, and of
    `NOT_KEPT` nothing is known.
    """
    after = flatten(plain(new))
    before = {key: value for key, value in BEFORE.items() if key in after} | flatten(plain(old))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        was, asked = _value(key, before), _value(key, after)
        # A mapping that was switched on or off shows once, at its own key.
        if was == asked or _inside(key, before if was is ABSENT else after if asked is ABSENT else {}):
            continue
        if was is ABSENT and key in NOT_KEPT:
            continue
        if was is ABSENT and (asked is None or asked is False or asked in (0, "", "none", "off")):
            continue
        lines.append(f"{key}: {_show(was)} made it, {_show(asked)} is asked for")
    return lines


def _value(key: str, flat: Mapping[str, Any]) -> Any:
    if key in flat:
        return flat[key]
    return ON if any(other.startswith(f"{key}.") for other in flat) else ABSENT


def _inside(key: str, flat: Mapping[str, Any]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:at]) in flat for at in range(1, len(parts)))


def _show(value: Any) -> str:
    if value is ABSENT:
        return "nothing"
    text = "off" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def check_identity(folder: Path, identity: Mapping[str, Any], what: str) -> None:
    """Raises: UsageError naming every key in which `folder` was made by something else than `identity`."""
    old = stored_identity(folder)
    lines = differences(old, identity) if old is not None else []
    if lines:
        raise UsageError(
            f"{what} in {folder} was made by something else than what is asked for now",
            f"give the member another name, train into another run (-o), or remove {folder} to make it again",
            lines,
        )
