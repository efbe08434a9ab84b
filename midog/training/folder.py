"""The fold folder while it is being made: one process at a time, a log that matches the checkpoint."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from midog.errors import UsageError
from midog.files import lock, write_text
from midog.status import CHECKPOINTS, LOG, holder, read_log

PATIENCE = 0.5
"""Seconds to wait for a lock: `midog status` holds it for an instant when it looks."""


class Busy(UsageError):
    """Another process trains this fold."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own the fold folder for the block, and say in its lock file who does; the kernel lets go if the process dies.

    Machines that share the folder must share its locks too: NFS does, unless it is mounted with `nolock` or
    `local_lock`; Lustre does when mounted with `flock`, and with `localflock` it does not. Where each machine keeps its
    own, what remains is that a fold is never submitted twice to a cluster; two processes on one fold would write the
    same bytes twice. Where there are no locks at all, nothing is trained.

    Raises: Busy when another process trains there, naming it; MidogError where the folder cannot be written or its file
        system keeps no locks.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(folder / ".lock", f"another process is training {folder}", PATIENCE))
        except UsageError as error:
            raise Busy(f"{holder(folder) or 'another process'} is training {folder}", error.fix) from None
        with suppress(OSError):  # a full disk: the lock holds without its name
            # Written in place: a file moved here would be another file, with another lock.
            (folder / ".lock").write_text(json.dumps(_me()), encoding="utf-8")
        yield


def _me() -> dict[str, Any]:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return {"pid": os.getpid(), "host": socket.gethostname(), "job": job}


def write_log_line(folder: Path, line: dict[str, Any], name: str = LOG) -> None:
    """Add one epoch to a log; the file is replaced, so that it never ends in half a line."""
    _write_log(folder, [*read_log(folder, name), line], name)


def cut_log(folder: Path, epochs: int, name: str = LOG) -> None:
    """Forget epochs after the checkpoint's: they are trained again."""
    log = read_log(folder, name)
    if len(log) > epochs:
        _write_log(folder, log[:epochs], name)


def _write_log(folder: Path, lines: list[dict[str, Any]], name: str) -> None:
    write_text(folder / name, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written; call it while holding the folder."""
    for pattern in (".*.tmp", ".tmp*"):  # ours, and those of safetensors
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


def drop_checkpoints(folder: Path) -> None:
    """Remove from a fold that is done what its process could not: it was killed between done.json and this."""
    left = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if left and not holder(folder):
        for path in left:
            with suppress(OSError):  # somebody else's run, which may only be read, is as good as it is
                path.unlink(missing_ok=True)
