"""From a path to what is audited there: a bundle, a blend, or a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.blend import BLEND_FILE, BlendMember, OperatingPoint, read_blend
from midog.audit.subject import Member, Subject
from midog.errors import DataError, unknown
from midog.files import read_json, sha256_json
from midog.run import Run, open_run

if TYPE_CHECKING:
    from midog.bundle import Bundle


def open_subject(source: Path | str, use: str | None = None, pretrained: Path | None = None) -> Subject:
    """Open what is to be audited.

    Args:
        source: a bundle (archive, folder or `default`), a blend or a run.
        use: operating point; None is `fast`, the cheapest, where there is one. A run has `fast` (its first member),
            `full` (the mean logit of all) and `only:MEMBER`, uncalibrated, atypical from logit 0.
        pretrained: folder or file of pretrained weights; None looks in MIDOG_WEIGHTS.

    Raises: DataError for a run without trained folds; UsageError for an unknown operating point; and as `open_bundle`.
    """
    path = Path(source)
    if (path / "recipe.yaml").is_file():
        return _of_run(open_run(path), use or "fast", pretrained)
    if path.name == BLEND_FILE or ((path / BLEND_FILE).is_file() and not (path / "manifest.json").is_file()):
        return _of_blend(path, use, pretrained)
    from midog.bundle import open_bundle

    opened = open_bundle(source)
    return _of_bundle(opened.at(_point_name(use, opened.blend.points)), str(source), pretrained)


def _point_name(use: str | None, points: dict[str, OperatingPoint]) -> str:
    return use if use is not None else "fast" if "fast" in points else "full"


def _of_bundle(bundle: Bundle, name: str, pretrained: Path | None) -> Subject:
    from midog.models.network import Network

    found = {}
    for entry in bundle.manifest["members"]:
        files = {
            int(k): bundle.folder / file for k, file in sorted(entry["folds"].items(), key=lambda one: int(one[0]))
        }
        backbone = None if entry["backbone"] is None else bundle.folder / entry["backbone"]
        network = Network.from_dict(entry["network"])
        found[entry["name"]] = Member(entry["name"], network, files, {}, backbone, True)
    return Subject(
        name=name,
        kind="bundle",
        point=bundle.point,
        points=bundle.blend.points,
        members=tuple(found[name] for name in bundle.point.members),
        everyone=tuple(found.values()),
        identity=bundle.digest,
        training=frozenset(bundle.manifest["training"]["pixels"]),
        thresholds=bundle.blend.content.get("thresholds", {}),
        rule=bundle.blend.threshold_rule,
        bundle=bundle,
        pretrained=pretrained,
    )


def _of_blend(path: Path, use: str | None, pretrained: Path | None) -> Subject:
    """A blend's operating points, but every fold model of its runs: each answers for what it left out."""
    blend = read_blend(path)
    point = blend.point(_point_name(use, blend.points))
    runs = {member.run: open_run(member.run) for member in blend.members}
    found = {member.name: _member(runs[member.run], member.member, member) for member in blend.members}
    thresholds, rule = blend.content.get("thresholds", {}), blend.threshold_rule
    return _out_of_fold(
        str(path), "blend", point, blend.points, found, list(runs.values()), thresholds, rule, pretrained
    )


def _of_run(run: Run, use: str, pretrained: Path | None) -> Subject:
    names = [name for name in run.members if any(run.done(name, k) for k in range(len(run.fold_names)))]
    if not names:
        raise DataError(f"no fold model of {run.path} is trained", f"midog train {run.path / 'recipe.yaml'}")
    sets = {"fast": names[:1], "full": names, **{f"only:{name}": [name] for name in names}}
    if use not in sets:
        raise unknown("operating point of a run", use, sets)
    points = {
        name: OperatingPoint(name, tuple(chosen), (1 / len(chosen),) * len(chosen), "none", 0.0, 1.0, 0.5)
        for name, chosen in sets.items()
    }
    found = {name: _member(run, name) for name in names}
    thresholds, rule = _thresholds(run, points[use]), str(run.recipe.get("blend", {}).get("threshold", "pooled"))
    return _out_of_fold(str(run.path), "run", points[use], points, found, [run], thresholds, rule, pretrained)


def _out_of_fold(
    name: str,
    kind: str,
    point: OperatingPoint,
    points: dict[str, OperatingPoint],
    found: dict[str, Member],
    runs: list[Run],
    thresholds: dict[str, Any],
    rule: str,
    pretrained: Path | None,
) -> Subject:
    from midog.packing import training_pixels

    content = [point.to_dict(), [[m.name, sorted(map(str, m.files.values()))] for m in found.values()]]
    hashes = [read_json(file.parent / "done.json")["model_sha256"] for m in found.values() for file in m.files.values()]
    return Subject(
        name=name,
        kind=kind,
        point=point,
        points=points,
        members=tuple(found[member] for member in point.members),
        everyone=tuple(found.values()),
        identity=sha256_json([content, hashes]),
        training=frozenset(value for run in runs for value in training_pixels(run)),
        thresholds=thresholds,
        rule=rule,
        pretrained=pretrained,
    )


def _member(run: Run, name: str, of_blend: BlendMember | None = None) -> Member:
    from midog.data.folds import assign
    from midog.models.network import Network

    table = run.table()
    index = assign(table, run.recipe["folds"]).index
    files = {k: run.fold_folder(name, k) / "model.safetensors" for k in range(len(run.fold_names)) if run.done(name, k)}
    left_out = {patch_id: int(k) for patch_id, k in zip(table.ids, index, strict=True) if k >= 0}
    shown = name if of_blend is None else of_blend.name
    return Member(shown, Network.from_dict(run.network(name)), files, left_out, None, False)


def _thresholds(run: Run, point: OperatingPoint) -> dict[str, Any]:
    """What a threshold costs in domains that it never saw, from the stored out-of-fold logits of the point's members.

    Empty where a fold is missing, or its logits: the audit's other parts do not need them.
    """
    from ensemble.oof import align
    from ensemble.thresholds import threshold_content, unseen_domains

    try:
        oof = align([f"{run.path}:{name}" for name in point.members])
    except DataError:
        return {}
    z = oof.views("none").mean(axis=1)
    return threshold_content(unseen_domains(z, oof.labels, oof.cases, oof.domains, oof.folds))
