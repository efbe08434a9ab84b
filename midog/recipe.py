"""The recipe: one YAML file that describes an ensemble's members and how to blend them.

Reading goes in five steps: parse (YAML 1.2), start (`from:`), set (`--set`), merge (`each` into every member), check.
The check reports everything at once: unknown keys at every level with the nearest name, and values that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import MidogError, nearest
from midog.recipe_source import DEFAULT_KINDS, TOP_KEYS, expand, merge, nest, parse_sets, read_source, says
from midog.settings import (
    Problems,
    check_keys,
    check_kind,
    check_settings,
    flatten,
    off_words,
    plain,
    switch_words,
    validate,
)

if TYPE_CHECKING:
    from augment.policies import Augment
    from ensemble.fit import BlendSettings
    from midog.training.member import Member

Where = Callable[[tuple[str, ...]], str]

SECTIONS = ("image", "harmonise", "augment", "start", "tune", "head", "auxiliary", "training")
MAY_BE_OFF = ("harmonise", "start", "auxiliary")
MEMBER_KEYS = ("backbone", "pretrained", *SECTIONS)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
OFF = "off"


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, every default spelled out. `base` is the shipped recipe it is or starts from, or ""."""

    name: str
    folds: str
    seed: int
    members: dict[str, Member]
    blend: BlendSettings
    base: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        return resolved(self)

    @property
    def difference(self) -> tuple[str, ...]:
        """What sets it apart from the shipped recipe it is or starts from, one key a line."""
        return compare_recipes(resolved(load_recipe(self.base)), resolved(self)) if self.base else ()


def load_recipe(source: str | Path | Mapping[str, Any], sets: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        source: name of a shipped recipe, a path, or what such a file holds.
        sets: changes such as `members.uni.training.lr=5e-5` (values are YAML). `each.…` goes into every member, also
            where the member says otherwise: what is typed counts last.

    Raises: UsageError listing every problem, each with its full key path.
    """
    from midog.training.teacher import check_teachers

    name, document, base = read_source(source)
    problems = Problems()
    _check_names(problems, "", document, TOP_KEYS)
    each, owns = _mapping(problems, "each", document.get("each")), _members(problems, document.get("members"))
    for path, value in parse_sets(problems, sets, owns):
        if path[0] == "each":
            each = merge(each, nest(path[1:], value))
            owns = {k: merge(own, nest(path[1:], value)) if says(own, path[1:]) else own for k, own in owns.items()}
        elif path[0] == "members":
            owns[path[1]] = merge(owns[path[1]], nest(path[2:], value))
        else:
            document = merge(document, nest(path, value))
    seed, folds = _seed(problems, document.get("seed", 0)), _folds(problems, document.get("folds", "fold"))
    _check_names(problems, "each", each, MEMBER_KEYS)
    _sections(problems, each, lambda path: ".".join(("each", *path)))
    built = {member: _member(problems, member, each, own, seed) for member, own in owns.items()}
    blend = _blend(problems, document.get("blend"), seed, document.get("members"), owns)
    if not built:
        problems.add("members", "no member", "name at least one, such as `members: {virchow2: {}}`")
    check_teachers(problems, built)
    problems.raise_all(f"recipe {name}")
    assert blend is not None
    members = {member: value for member, value in built.items() if value is not None}
    return Recipe(name, folds, seed, members, blend, base)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, every default spelled out; `load_recipe` reads it back equal."""
    members = {}
    for name, member in recipe.members.items():
        settings = member.settings()
        members[name] = {**off_words(settings), "augment": off_words(settings["augment"])}
    return {"folds": recipe.folds, "seed": recipe.seed, "members": members, "blend": plain(asdict(recipe.blend))}


def compare_recipes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines such as "members.uni.training.lr: 0.0001 → 5e-05" for every key that differs in two resolved recipes."""
    before, after = flatten(old), flatten(new)
    gone = [f"members.{name}: removed" for name in old["members"] if name not in new["members"]]
    added = [f"members.{name}: added" for name in new["members"] if name not in old["members"]]
    listed = tuple(f"{line.partition(':')[0]}." for line in [*gone, *added])
    changed = [
        f"{key}: {before.get(key, 'nothing')} → {after.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(listed)
    ]
    return (*gone, *added, *changed)


# ── checking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_names(problems: Problems, path: str, content: Mapping[str, Any], names: Sequence[str]) -> None:
    for key in content:
        if key not in names:
            problems.unknown_key(f"{path}.{key}" if path else str(key), names)


def _mapping(problems: Problems, path: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.add(path, f"{value!r} is not a mapping of keys to values")
        return {}
    return {str(key): expand(str(key), inner) for key, inner in value.items()}


def _members(problems: Problems, value: Any) -> dict[str, dict[str, Any]]:
    """Each member's own words; a member that is `off` is left out (to drop one that `from:` brought)."""
    owns = {str(name): own for name, own in _mapping(problems, "members", value).items() if own != OFF}
    lower: dict[str, str] = {}
    for name in owns:
        if not NAME.fullmatch(name):
            problems.add(f"members.{name}", "a member's name becomes a folder: letters, digits, _ . + - are fine")
        if name.lower() in lower:
            problems.add(
                f"members.{name}", f"differs from {lower[name.lower()]} in capitals alone: one folder on some disks"
            )
        lower[name.lower()] = name
    return {name: _mapping(problems, f"members.{name}", own) for name, own in owns.items()}


def _member(problems: Problems, name: str, each: Mapping[str, Any], own: Mapping[str, Any], seed: int) -> Member | None:
    from midog.models.backbones import find_backbone
    from midog.models.preprocess import input_size
    from midog.models.records.pathology import DERIVED_NAMES
    from midog.training.member import Member, network_of

    _check_names(problems, f"members.{name}", own, MEMBER_KEYS)

    def where(path: tuple[str, ...]) -> str:
        written = says(own, path) or not says(each, path)
        return ".".join(("members", name, *path) if written else ("each", *path))

    merged = merge(each, own)
    sections = _sections(problems, merged, where)
    backbone, pretrained = merged.get("backbone", name), merged.get("pretrained", "record")
    if not isinstance(pretrained, str):
        problems.add(where(("pretrained",)), f"{pretrained!r} is not record, random or a path")
        return None
    if not isinstance(backbone, str | Mapping):
        problems.add(where(("backbone",)), f"{backbone!r} is not a backbone's name or record")
        return None
    backbone = dict(backbone) if isinstance(backbone, Mapping) else backbone
    try:
        record = find_backbone(backbone)
    except MidogError as error:
        problems.add_error(where(("backbone",)), error)
        return None
    begins = DERIVED_NAMES.get(record.licence, "") if pretrained != "random" else ""
    if not name.startswith(begins):
        asked = f"the licence of {record.name} asks that a model derived from it has a name beginning with {begins}"
        problems.add(f"members.{name}", asked, f"members: {{{begins}-lora: {{backbone: {record.name}}}}}")
    if None in (value for key, value in sections.items() if key not in MAY_BE_OFF):
        return None
    member = Member(name=name, backbone=backbone, pretrained=pretrained, seed=seed, **sections)
    try:
        network = network_of(member)
        input_size(network.image, network.backbone)
    except MidogError as error:
        problems.add_error(f"members.{name}", error)
        return None
    return member


def _sections(problems: Problems, content: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """The typed sections of a member (or of `each`); None where one does not fit, and for what is off."""
    from midog.models.harmonise import HARMONISERS
    from midog.models.heads.kinds import HEADS
    from midog.models.preprocess import Image
    from midog.models.tuning import TUNES
    from midog.training.auxiliary_settings import AUXILIARIES
    from midog.training.member import Training
    from midog.training.start_settings import STARTS

    def inside(section: str) -> Where:
        return lambda path: where((section, *path))

    words = {key: _section(problems, content, key, where) for key in SECTIONS}
    return {
        "image": check_settings(problems, Image, words["image"], inside("image")),
        "harmonise": check_kind(problems, HARMONISERS, words["harmonise"], inside("harmonise")),
        "augment": _augment(problems, words["augment"], inside("augment")),
        "start": check_kind(problems, STARTS, words["start"], inside("start")),
        "tune": check_kind(problems, TUNES, words["tune"], inside("tune")),
        "head": check_kind(problems, HEADS, words["head"], inside("head")),
        "auxiliary": check_kind(problems, AUXILIARIES, words["auxiliary"], inside("auxiliary")),
        "training": check_settings(problems, Training, words["training"], inside("training")),
    }


def _section(problems: Problems, content: Mapping[str, Any], key: str, where: Where) -> dict[str, Any]:
    value = expand(key, content.get(key))
    if value is not None and not isinstance(value, Mapping):
        problems.add(where((key,)), f"{value!r} is not a mapping of keys to values")
        value = None
    kind = {"kind": DEFAULT_KINDS[key]} if key in DEFAULT_KINDS else {}
    return {**kind, **{str(inner): word for inner, word in (value or {}).items()}}


def _augment(problems: Problems, content: Mapping[str, Any], where: Where) -> Augment | None:
    """A kind's settings with the recipe's own keys on top; `off` and `on` switch a transform."""
    from augment.policies import Augment, settings

    try:
        defaults = asdict(settings(str(content["kind"])))
    except (MidogError, ValueError) as error:
        problems.add(
            where(("kind",)), error.problem + f"; {error.fix}" if isinstance(error, MidogError) else str(error)
        )
        return None
    known = check_keys(problems, Augment, switch_words(Augment, content), where)
    # Off and on count here as said, unlike an empty value in the file.
    return validate(
        problems, Augment, {**merge(defaults, known), **{k: None for k, v in known.items() if v is None}}, where
    )


def _blend(problems: Problems, value: Any, seed: int, said: Any, members: Mapping[str, Any]) -> BlendSettings | None:
    """`said` are the members as written: `fold_models` may also name one that is off, which then counts for nothing."""
    from ensemble.fit import BlendSettings

    content = _section(problems, {"blend": value}, "blend", ".".join)
    counts = content.get("fold_models")
    if isinstance(counts, Mapping):
        _check_names(problems, "blend.fold_models", counts, [*said] if isinstance(said, Mapping) else [])
        content["fold_models"] = {name: count for name, count in counts.items() if name in members}
    return check_settings(problems, BlendSettings, {"seed": seed, **content}, lambda path: ".".join(("blend", *path)))


def _seed(problems: Problems, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        problems.add("seed", f"{value!r} is not a whole number from 0")
        return 0
    return value


def _folds(problems: Problems, value: Any) -> str:
    from midog.data.folds import LEAVE_OUT

    columns = ("fold", *LEAVE_OUT)
    if value not in columns:
        guess = nearest(str(value), columns)
        problems.add(
            "folds", f"no such column {value}; " + (f"did you mean {guess}?" if guess else f"one of {columns}")
        )
        return "fold"
    return str(value)
