"""From a blend to its bundle: each backbone once, the fold models, the blend, and a manifest that names every byte."""

from __future__ import annotations

import glob
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.blend import BLEND_FILE, Blend, BlendMember, read_blend
from midog.archive import CARD_FILE, MANIFEST_FILE, manifest_bytes, write_archive
from midog.errors import DataError, MidogError, UsageError, WeightsError, unknown
from midog.files import SCHEMA_VERSION, lock, read_json, sha256_bytes, sha256_file
from midog.progress import track
from midog.run import Run, open_run

if TYPE_CHECKING:
    from midog.models.network import Network

CALIBRATION = (
    "shift, temperature and threshold were fitted on out-of-fold logits, each from a single fold model; they are used "
    "here on the mean of a member's fold models, which only scores on held-out cases can measure; operating point fast "
    "uses one fold model, as its scores do"
)

LOCK = ".lock"
TRAINED = ("git", "versions", "python", "device", "precision", "threads", "seed")
"""What a fold model's done.json tells of its training."""


@dataclass(frozen=True)
class Placed:
    """A member's files inside the bundle: `backbone` (None: its fold models hold everything) and one per fold."""

    member: BlendMember
    backbone: str | None
    folds: dict[str, str]


def pack_blend(
    blend_folder: Path | str,
    out: Path | str,
    weights: Path | None = None,
    card: str = "",
    accept: Sequence[str] = (),
) -> Path:
    """Write the bundle of a blend; the same blend gives the same bytes. Whole or absent.

    Args:
        blend_folder: what `midog blend` wrote.
        out: the archive, `.tar.gz`: the platform takes nothing else.
        weights: folder or file of pretrained weights, where a backbone's are not in MIDOG_WEIGHTS.
        card: the model card, Markdown; "" leaves it out.
        accept: names of backbones whose licence binds who passes them on (`records.pathology.BOUND`) and is accepted.

    Raises: UsageError where a licence is not accepted, and for a case aggregator; DataError for a blend or run that is
        incomplete; WeightsError for a fold model that changed since it was blended, or pretrained weights that are
        missing or not those it was trained from; MidogError for a full disk.
    """
    out = Path(out)
    if not out.name.endswith(".tar.gz"):
        raise UsageError(f"a bundle's name ends in .tar.gz: {out}", f"-o {out.name.split('.')[0] or 'model'}.tar.gz")
    _refuse_aggregator(Path(blend_folder))
    blend = read_blend(blend_folder)
    accepted = _check_licences(blend.members, accept)
    runs = {run: open_run(run) for run in sorted({member.run for member in blend.members})}
    _check_folds(blend)
    names = _folder_names(blend.members)
    with _staging(out) as staging:
        backbones = _stage_backbones(blend.members, staging, weights)
        placed = [
            Placed(
                member,
                backbones[member.name][0] if member.name in backbones else None,
                {k: f"members/{names[member.name]}/fold_{k}.safetensors" for k in member.folds},
            )
            for member in blend.members
        ]
        contents: dict[str, Path | bytes] = {BLEND_FILE: _blend_bytes(blend, placed)}
        contents |= {CARD_FILE: card.encode("utf-8")} if card else {}
        contents |= dict(sorted(backbones.values()))
        contents |= {name: Path(item.member.folds[k]["path"]) for item in placed for k, name in item.folds.items()}
        contents = dict(sorted(contents.items()))
        manifest = _manifest(blend, Path(blend_folder), placed, runs, contents)
        manifest |= {"accepted_licences": accepted} if accepted else {}
        # The manifest comes first, so that it can be read without unpacking what follows.
        written = write_archive(staging / out.name, {MANIFEST_FILE: manifest_bytes(manifest), **contents})
        return written.replace(out)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what is not finished; those that killed processes left behind go first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*"):
        # The kernel drops a lock when its process dies: what nobody holds is rubbish.
        with suppress(MidogError), lock(leftover / LOCK, "another process is bundling"):
            shutil.rmtree(leftover, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as name,
        lock(Path(name) / LOCK, "another process is bundling"),
    ):
        yield Path(name)


def _refuse_aggregator(path: Path) -> None:
    from midog.models.weights import TensorFile

    if path.is_file() and path.suffix == ".safetensors" and TensorFile(path).about.get("content") == "case aggregator":
        raise UsageError(
            f"{path} answers for whole cases; the platform asks page by page and never says which pages are one case's",
            "bundle the blend of its patch members; the aggregator stays a tool for tables with cases",
        )


def _check_licences(members: Sequence[BlendMember], accept: Sequence[str]) -> dict[str, str]:
    """Backbone → licence for those that were accepted and had to be.

    Raises: UsageError for one that was not, and for a name that needs no acceptance.
    """
    from midog.models.network import Network
    from midog.models.records.pathology import BOUND

    bound: dict[str, str] = {}
    for member in members:
        network = Network.from_dict(member.network)
        if network.pretrained != "random" and network.backbone.licence in BOUND:
            bound[network.backbone.name] = network.backbone.licence
    for name in accept:
        if not bound:
            raise UsageError(f"no member's licence asks to be accepted, {name} neither", "leave out --accept-licence")
        if name not in bound:
            raise unknown("backbone to accept the licence of", name, bound)
    refused = {name: licence for name, licence in bound.items() if name not in accept}
    if refused:
        lines = [f"{name}: {licence}: {BOUND[licence]}" for name, licence in sorted(refused.items())]
        fix = " ".join(f"--accept-licence {name}" for name in sorted(refused))
        problem = "a bundle carries weights whose licence binds whoever passes it on"
        raise UsageError(problem, f"keep to these terms and add {fix}; or blend without the member", lines)
    return dict(sorted(bound.items()))


def _check_folds(blend: Blend) -> None:
    problems = []
    for member in track(blend.members, "checking fold models"):
        for k, fold in member.folds.items():
            path = Path(fold["path"])
            if not path.is_file():
                problems.append(f"{member.name} fold {k}: {path} is missing")
            elif sha256_file(path) != fold["sha256"]:
                problems.append(f"{member.name} fold {k}: {path} is not the file that was blended")
    if problems:
        raise WeightsError("fold models are not as the blend knows them", "midog blend RUN -o BLEND again", problems)


def _folder_names(members: Iterable[BlendMember]) -> dict[str, str]:
    """Member name → folder name: plain characters only, and no two alike."""
    names: dict[str, str] = {}
    for member in members:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", member.name).strip("._") or "member"
        taken, number = plain, 2
        while taken in names.values():
            taken, number = f"{plain}_{number}", number + 1
        names[member.name] = taken
    return names


def _stage_backbones(
    members: Sequence[BlendMember], staging: Path, weights: Path | None
) -> dict[str, tuple[str, Path]]:
    """Write each backbone once, holding what some fold model leaves to it: member name → (name in bundle, file).

    Members whose fold models hold everything are left out: their pretrained weights are not needed.
    """
    from midog.models.classifier import backbone_key, pretrained_state
    from midog.models.network import Network
    from midog.models.weights import write_tensors

    groups: dict[str, list[tuple[BlendMember, Network]]] = {}
    for member in members:
        network = Network.from_dict(member.network)
        groups.setdefault(backbone_key(network), []).append((member, network))
    placed: dict[str, tuple[str, Path]] = {}
    for key, group in track(sorted(groups.items()), "packing backbones", len(groups)):
        network = group[0][1]
        needed = _tensors_needed(network, [member for member, _ in group])
        if not needed:
            continue
        _check_pretrained(network, [member for member, _ in group], weights)
        state = pretrained_state(network, weights)
        file = write_tensors(
            staging / f"{key}.safetensors",
            {name: state[name] for name in sorted(needed)},
            {"content": "backbone", "backbone": network.backbone.name},
        )
        placed |= {member.name: (f"backbones/{key}.safetensors", file) for member, _ in group}
    return placed


def _tensors_needed(network: Network, members: Sequence[BlendMember]) -> frozenset[str]:
    """Names of the backbone's tensors that at least one fold model does not override."""
    from midog.models.build import empty_backbone
    from midog.models.classifier import BACKBONE
    from midog.models.weights import TensorFile

    wanted = set(empty_backbone(network.backbone).state_dict())
    needed: set[str] = set()
    for member in members:
        for fold in member.folds.values():
            held = TensorFile(fold["path"]).names
            needed |= {name for name in wanted if BACKBONE + name not in held}
    return frozenset(needed)


def _check_pretrained(network: Network, members: Sequence[BlendMember], weights: Path | None) -> None:
    """The weights found now must be those that the fold models were trained from."""
    from midog.models.weights import find_weights

    if network.pretrained == "random":
        return
    path = find_weights(network.backbone, network.pretrained, weights)
    actual = sha256_file(path)
    problems = []
    for member in members:
        for k, fold in member.folds.items():
            done = Path(fold["path"]).with_name("done.json")
            before = read_json(done).get("identity", {}).get("pretrained") if done.is_file() else None
            if before is not None and before != actual:
                problems.append(f"{member.name} fold {k} was trained from sha256 {before}, {path} has {actual}")
    if problems:
        raise WeightsError(
            f"the pretrained weights of {network.backbone.name} are not those it was trained from",
            "point MIDOG_WEIGHTS at the folder that was used for training",
            problems,
        )


def _blend_bytes(blend: Blend, placed: Sequence[Placed]) -> bytes:
    """blend.json as the bundle holds it: fold models by their place in the bundle, no path of this machine."""
    inside = {item.member.name: item for item in placed}
    members = []
    for entry in blend.content["members"]:
        item = inside[str(entry["name"])]
        folds = {k: {"path": name, "sha256": item.member.folds[k]["sha256"]} for k, name in item.folds.items()}
        members.append({**entry, "run": "", "folds": folds})
    whole = {"schema_version": SCHEMA_VERSION, **blend.content, "members": members}
    return (json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _manifest(
    blend: Blend, folder: Path, placed: Sequence[Placed], runs: Mapping[str, Run], contents: Mapping[str, Path | bytes]
) -> dict[str, Any]:
    """Everything a reader of the bundle may ask. No time and no machine: equal blends give equal bundles."""
    pixels, about = set[str](), []
    for run in runs.values():
        hashes = training_pixels(run)
        pixels |= set(hashes)
        told = {key: value for key, value in run.manifest.items() if key not in ("training_pixels", "schema_version")}
        about.append({"name": run.path.name, **told, "training_patches": len(hashes)})
    file = folder / BLEND_FILE if folder.is_dir() else folder
    return {
        "midog": metadata.version("midog"),
        "members": [
            {
                "name": item.member.name,
                "member": item.member.member,
                "backbone": item.backbone,
                "folds": item.folds,
                "network": item.member.network,
            }
            for item in placed
        ],
        "points": list(blend.points),
        "prevalence": blend.prevalence,
        "calibration": CALIBRATION,
        "blend_sha256": sha256_file(file),
        "runs": about,
        "trained": trained_on(blend.members),
        "files": {name: _file_entry(content) for name, content in contents.items()},
        "training": {"patches": len(pixels), "pixels": sorted(pixels)},
    }


def trained_on(members: Iterable[BlendMember]) -> list[dict[str, Any]]:
    """What trained the fold models, as their done.json say: commit, versions, device, precision, threads; each such set
    once, with the names of its fold models. A run's own manifest is of whoever prepared it last."""
    found: dict[str, dict[str, Any]] = {}
    for member in members:
        for k, fold in member.folds.items():
            done = Path(fold["path"]).with_name("done.json")
            told = read_json(done) if done.is_file() else {}
            entry = {key: told[key] for key in TRAINED if key in told}
            whole = found.setdefault(json.dumps(entry, sort_keys=True), {**entry, "fold_models": []})
            whole["fold_models"].append(f"{member.name}/{k}")
    return list(found.values())


def _file_entry(content: Path | bytes) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": sha256_bytes(content)}
    return {"bytes": content.stat().st_size, "sha256": sha256_file(content)}


def training_pixels(run: Run) -> list[str]:
    """Hashes of the patches a run's fold models were trained on, sorted: from its manifest, else from the images.

    Raises: DataError when neither is at hand.
    """
    stored = run.manifest.get("training_pixels")
    if isinstance(stored, list) and stored:
        return sorted({str(value) for value in stored})
    from midog.data.folds import assign
    from midog.data.pixels import open_pixels

    table = run.table()
    used = assign(table, str(run.recipe["folds"])).index >= 0
    if not used.any():
        raise DataError(f"{run.path} has no training patches", "train it again")
    return sorted(set(open_pixels(table.subset(used)).hashes))
