"""From plain mappings to frozen settings dataclasses: every unknown key and wrong value found at once.

pydantic checks the values. It ignores unknown keys of stdlib dataclasses, so keys are checked here first, everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from midog.errors import MidogError, UsageError, nearest

Settings = TypeVar("Settings")
Where = Callable[[tuple[str, ...]], str]
"""From a key path inside a section to the path that the user wrote."""

OFF, ON = "off", "on"
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a word",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "dataclass_type": "a mapping",
    "finite_number": "a finite number",
}


class Problems:
    """What is wrong, gathered so that all of it can be said at once."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def add(self, path: str, problem: str, fix: str = "") -> None:
        line = f"{path}: {problem}" if path else problem
        self.lines.setdefault(line, fix)

    def unknown_key(self, path: str, names: Iterable[str]) -> None:
        names = list(names)
        guess = nearest(path.rpartition(".")[2], names)
        hint = f"did you mean {guess}?" if guess else f"unknown key; the keys here are {', '.join(names)}"
        self.add(path, hint)

    def add_error(self, path: str, error: MidogError) -> None:
        parts = [error.problem, *error.details, error.fix]
        self.add(path, "; ".join(part for part in parts if part))

    def raise_all(self, what: str) -> None:
        """Raises: UsageError where anything was added."""
        if not self.lines:
            return
        count = f"{len(self.lines)} problems" if len(self.lines) > 1 else "a problem"
        fix = next((fix for fix in self.lines.values() if fix), "`midog recipes show paper` shows every section in use")
        raise UsageError(f"{what} has {count}", fix, list(self.lines))


def check_settings(
    problems: Problems, kind: type[Settings], content: Mapping[str, Any], where: Where
) -> Settings | None:
    """A dataclass from a mapping, defaults filled in; None (and lines in `problems`) where it does not fit."""
    known = check_keys(problems, kind, content, where)
    return validate(problems, kind, known, where)


def check_kind(
    problems: Problems, kinds: Mapping[str, type[Any] | None], content: Mapping[str, Any], where: Where
) -> Any | None:
    """As `check_settings`, the dataclass chosen by the mapping's `kind`; None also for a kind without one: `off`."""
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        guess = nearest(str(kind), kinds)
        problems.add(where(("kind",)), f"no kind {kind}; " + (f"did you mean {guess}?" if guess else _one_of(kinds)))
        return None
    if (settings := kinds[kind]) is None:
        for key in content.keys() - {"kind"}:
            problems.add(where((key,)), f"the kind is {kind}", f"name another: {_one_of(kinds)}")
        return None
    return check_settings(problems, settings, content, where)


def check_keys(
    problems: Problems, kind: type[Any], content: Mapping[str, Any], where: Where, path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`content` without the keys that `kind` (and the dataclasses inside it) does not have; `problems` gets those."""
    hints = get_type_hints(kind)
    names = [item.name for item in fields(kind)]
    known = {}
    for key, value in content.items():
        if key not in names:
            problems.unknown_key(where((*path, str(key))), names)
            continue
        inner = nested_kind(hints[key])
        if inner is not None and isinstance(value, Mapping):
            value = check_keys(problems, inner, value, where, (*path, key))
        known[key] = value
    return known


def nested_kind(hint: Any) -> type[Any] | None:
    """The dataclass in a type such as `Fisheye | None`."""
    return next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None)


def validate(problems: Problems, kind: type[Settings], content: Mapping[str, Any], where: Where) -> Settings | None:
    """A dataclass from a mapping whose keys are known; None (and lines in `problems`) where a value does not fit."""
    from pydantic import TypeAdapter, ValidationError

    wild = dict(_not_finite(content))
    for path, value in wild.items():  # a float for pydantic, and nothing that JSON or a run's files could hold
        problems.add(where(path), f"{value} is not {EXPECTED['finite_number']}")
    try:
        # Through JSON and strictly: lists become tuples, but "32" is no number and true is not 1.
        text = json.dumps(content)
        settings = TypeAdapter(kind).validate_json(text, strict=True)
        return None if wild else settings
    except ValidationError as error:
        for line in error.errors():
            path = tuple(str(part) for part in line["loc"] if not _is_branch(part, content, line["loc"]))
            if path not in wild:
                problems.add(where(path), _sentence(line))
    except MidogError as error:
        if not wild:  # it may be about the same number
            problems.add_error(where(()), error)
    except TypeError as error:
        problems.add(where(()), f"holds something that is no plain value ({error})")
    return None


def _not_finite(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Infinite numbers and those that are none, with their key paths; one inside a list has the list's."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _not_finite(inner, path)


def _is_branch(part: Any, content: Mapping[str, Any], path: tuple[Any, ...]) -> bool:
    """pydantic names the branch of a union in the path ("str", "tuple[str, ...]"): that is not what the user wrote."""
    if isinstance(part, int):
        return False
    value: Any = content
    for step in path:
        if step == part:
            return not (isinstance(value, Mapping) and part in value)
        value = value.get(step) if isinstance(value, Mapping) else None
    return False


def _sentence(line: Any) -> str:
    value, kind = line["input"], line["type"]
    if kind == "literal_error":
        return f"{_show(value)} is none of {line['ctx']['expected']}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(line["ctx"]["error"])
    return f"{_show(value)} is not {EXPECTED[kind]}" if kind in EXPECTED else f"{_show(value)}: {line['msg']}"


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:60]


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(sorted(names))}"


def switch_words(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """`off` and `on` at a section's first level as its dataclass wants them: None or False, the defaults or True."""
    hints = get_type_hints(kind)
    switched = {}
    for key, value in content.items():
        hint = hints.get(key)
        optional = NoneType in get_args(hint)
        inner = nested_kind(hint)
        if value == OFF or value is False:
            switched[key] = None if optional else False if hint is bool else value
        elif value == ON or value is True:
            switched[key] = asdict(inner()) if inner is not None else True if hint is bool else value
        else:
            switched[key] = value
    return switched


def off_words(content: Mapping[str, Any]) -> dict[str, Any]:
    """None → `off`, as a recipe writes it."""
    return {key: OFF if value is None else value for key, value in content.items()}


def plain(value: Any) -> Any:
    """The same value after a trip through JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value, allow_nan=False))


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings → {"training.lr": 1e-4, …}; an empty mapping stays a value."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{path}.{key}" if path else str(key)))
    return flat
