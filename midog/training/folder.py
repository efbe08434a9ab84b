"""The fold folder while it is being made: one process at a time, a log that matches the checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midog.errors import UsageError
from midog.files import lock, write_text
from midog.status import locked, read_log

PATIENCE = 0.5
"""Seconds to wait for a lock: `midog status` holds it for an instant when it looks."""


class Busy(UsageError):
    """Another process trains this fold."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own the fold folder for the block; the kernel lets go if the process dies.

    Raises: Busy when another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while locked(folder) and time.monotonic() < deadline:
        time.sleep(PATIENCE / 10)
    with _lock(folder):
        yield


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    held = lock(folder / ".lock", f"another process is training {folder}")
    try:
        held.__enter__()
    except UsageError as error:
        raise Busy(error.problem, error.fix) from None
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def write_log_line(folder: Path, line: dict[str, Any]) -> None:
    """Add one epoch to log.jsonl; the file is replaced, so that it never ends in half a line."""
    _write_log(folder, [*read_log(folder), line])


def cut_log(folder: Path, epochs: int) -> None:
    """Forget epochs after the checkpoint's: they are trained again."""
    log = read_log(folder)
    if len(log) > epochs:
        _write_log(folder, log[:epochs])


def _write_log(folder: Path, lines: list[dict[str, Any]]) -> None:
    write_text(folder / "log.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written; call it while holding the folder."""
    for pattern in (".*.tmp", ".tmp*"):  # ours, and those of safetensors
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)
