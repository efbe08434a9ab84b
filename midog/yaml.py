"""YAML 1.2 in and out: `off` is a word, `1e-4` a number, a key that is there twice an error."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from midog.errors import DataError
from midog.files import write_text


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain objects (`off` is a word, `1e-4` a number).

    Raises: DataError when it is no YAML or repeats a key.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """As `read_yaml`, from text; `where` names it in errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        key = str(error.problem).partition('"')[2].partition('"')[0]
        raise DataError(f"{where}, line {_line(error)}: {key} is there twice", "rename or remove one of them") from None
    except MarkedYAMLError as error:
        raise DataError(f"{where}, line {_line(error)}: {error.problem}", "mend the YAML there") from None
    except YAMLError as error:
        raise DataError(f"{where} is no readable YAML: {' '.join(str(error).split())}") from None


def _line(error: Any) -> int:
    return int(error.problem_mark.line) + 1 if error.problem_mark is not None else 0


def yaml_text(content: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back equal."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    text = StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def write_yaml(path: Path, content: Any) -> Path:
    return write_text(path, yaml_text(content))
