"""What commands print: results on stdout, notes on stderr, and at the end what was written and what to type next."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def show(content: Mapping[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text)


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def wrote(path: Path, next_command: str = "") -> None:
    note(f"wrote {path}" + (f"\nnext: {next_command}" if next_command else ""))
