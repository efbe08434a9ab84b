"""Where a recipe's raw words come from: shipped files, files of one's own, `from:`, and how mappings merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from midog.errors import DataError, UsageError, nearest, unknown
from midog.settings import Problems
from midog.yaml import parse_yaml

TOP_KEYS = ("from", "folds", "seed", "each", "members", "blend")
DEFAULT_KINDS = {
    "harmonise": "off",
    "augment": "paper",
    "start": "off",
    "tune": "lora",
    "head": "linear",
    "auxiliary": "off",
    "blend": "tuned",
}
"""Sections of which a bare word names the kind, and the kind they have when none is named."""


def list_recipes() -> dict[str, str]:
    """Shipped recipes: name → what it is for (the file's first line)."""
    folder = resources.files("midog") / "recipes"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {name: recipe_text(name).splitlines()[0].lstrip("# ").strip() for name in names}


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe. Raises: UsageError for an unknown name, with the nearest one."""
    file = resources.files("midog") / "recipes" / f"{name}.yaml"
    if not file.is_file():
        raise unknown("recipe", name, list_recipes())
    return file.read_text(encoding="utf-8")


def read_source(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    """Name, raw document with `from` carried out, and the shipped recipe underneath."""
    if isinstance(source, Mapping):
        return _started("recipe", dict(source), "")
    shipped = isinstance(source, str) and source in _shipped_names()
    path = Path(source)
    if not shipped and not path.is_file():
        guess = nearest(str(source), _shipped_names())
        fix = f"did you mean {guess}? " if guess else ""
        raise UsageError(
            f"no recipe and no file: {source}",
            f"{fix}`midog recipes list` shows the shipped ones; a path names your own",
        )
    text = recipe_text(str(source)) if shipped else None
    document = _parse(text, str(source)) if text is not None else _load_file(path)
    name = str(source) if shipped else path.stem
    return _started(name, document, name if shipped else "")


def _started(name: str, document: dict[str, Any], base: str) -> tuple[str, dict[str, Any], str]:
    start = document.get("from")
    if start is None:
        return name, document, base
    if next(iter(document)) != "from":
        raise UsageError(
            f"recipe {name}: `from` is not the first key", "move `from: …` to the top: everything else changes it"
        )
    if start not in _shipped_names():
        raise unknown("recipe", str(start), _shipped_names())
    _, under, _ = read_source(str(start))
    return name, merge(under, {key: value for key, value in document.items() if key != "from"}), str(start)


def _shipped_names() -> tuple[str, ...]:
    folder = resources.files("midog") / "recipes"
    return tuple(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _load_file(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "save it as UTF-8 text") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        document = parse_yaml(text, where)
    except DataError as error:
        raise UsageError(error.problem, error.fix) from None
    if not isinstance(document, dict):
        raise UsageError(f"{where} is no recipe: a mapping is expected", "`midog recipes show paper` is an example")
    return {str(key): value for key, value in document.items()}


def expand(key: str, value: Any) -> Any:
    """A bare word is short for its kind: `tune: full` is `tune: {kind: full}`."""
    return {"kind": value} if key in DEFAULT_KINDS and isinstance(value, str) else value


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`: key by key, except that a mapping of another `kind` replaces. Null says nothing."""
    result = dict(under)
    for key, value in over.items():
        old, new = expand(key, result.get(key)), expand(key, value)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            default = DEFAULT_KINDS.get(key)
            same = "kind" not in new or new["kind"] == old.get("kind", default)
            result[key] = merge(old, new) if same else dict(new)
        elif new is not None or key not in result:
            result[key] = new
    return result


def nest(path: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def parse_sets(
    problems: Problems, sets: Sequence[str], members: Mapping[str, Any]
) -> list[tuple[tuple[str, ...], Any]]:
    """`members.uni.training.lr=5e-5` → (("members", "uni", "training", "lr"), 5e-05). Member names may hold dots."""
    typed = []
    for text in sets:
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            problems.add(f"--set {text}", "KEY=VALUE is expected", "write it as --set each.training.epochs=2")
            continue
        if path[0] not in TOP_KEYS[1:]:
            problems.unknown_key(f"--set {path[0]}", TOP_KEYS[1:])
            continue
        if path[0] == "members":
            rest = key.strip().removeprefix("members.")
            name = next((m for m in sorted(members, key=len, reverse=True) if f"{rest}.".startswith(f"{m}.")), None)
            if name is None:
                problems.unknown_key(f"--set members.{path[1] if len(path) > 1 else ''}", members)
                continue
            path = ("members", name, *(part for part in rest.removeprefix(name).split(".") if part))
        if len(path) == {"each": 1, "members": 2}.get(path[0], 0):
            problems.add(f"--set {text}", "this is a whole section", "name the key inside, as each.training.epochs=2")
            continue
        try:
            typed.append((path, parse_yaml(value, f"--set {text}")))
        except DataError as error:
            problems.add_error("", error)
    return typed


def says(content: Any, path: Sequence[str]) -> bool:
    """True where the mapping itself holds this key path."""
    for key in path:
        if not isinstance(content, Mapping) or key not in content:
            return False
        content = expand(key, content[key])
    return True
