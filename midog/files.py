"""Files that are whole or absent: atomic writes, versioned JSON, CSV, hashes, locks."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from midog.errors import DataError, MidogError, UsageError

SCHEMA_VERSION = 1
"""Version of every JSON this release writes; a newer one is refused."""
LOOK = 0.05
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends well.

    Killed at any moment, `path` holds either what it held before or the whole new content.

    Raises: MidogError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise write_problem(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_problem(path: Path, error: OSError) -> MidogError:
    """What a user is told when `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MidogError(
            f"the disk is full: {path} was not written; what was there before is untouched",
            "free some space and repeat the same command: it continues where it stopped",
        )
    fix = "check the folder's permissions"
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        fix = "name another path: a file stands where a folder must be, or a folder where the file must be"
    return MidogError(f"cannot write {path}: {error.strerror or error}", fix)


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write `content` to `path` atomically; returns the path."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: Path | str, content: str) -> Path:
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path | str, content: dict[str, Any]) -> Path:
    """Write a JSON object atomically, with `schema_version` as its first key. NaN is refused."""
    whole = {"schema_version": SCHEMA_VERSION, **content}
    return write_text(path, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object written by `write_json`.

    Raises: DataError when missing, not JSON or no object; UsageError when newer than this release.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    check_schema(content, str(path))
    return content


def check_schema(content: dict[str, Any], where: str) -> None:
    """Raises: UsageError when `content` was written by a newer release."""
    version = content.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UsageError(
            f"{where} has schema version {version}, this release reads up to {SCHEMA_VERSION}",
            "install the midog release that wrote it (its manifest names the version), or a newer one",
        )


def write_csv(path: Path | str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV with LF line ends atomically; floats as `repr`, so that they read back equal."""
    return write_text(path, csv_text(header, rows))


def csv_text(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """What `write_csv` writes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path | str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file (UTF-8, BOM accepted). Blank lines are dropped.

    Raises: DataError when missing, empty, not text, or when rows differ in length from the header.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            lines = [(number, row) for number, row in enumerate(csv.reader(handle, strict=True), 1) if row]
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a readable CSV file: {error}", "save it as UTF-8 text, comma separated"
        ) from error
    if not lines:
        raise DataError(f"{path} is empty", "it needs a header line and one line per patch")
    header = lines[0][1]
    ragged = [f"row {number}: {len(row)} columns" for number, row in lines[1:] if len(row) != len(header)]
    if ragged:
        raise DataError(
            f"{path}: rows that do not have the header's {len(header)} columns", "repair these rows", ragged
        )
    return header, [row for _, row in lines[1:]]


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path | str) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hash of a JSON-able value, independent of key order."""
    return sha256_bytes(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8"))


@contextmanager
def lock(path: Path | str, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the block; the kernel drops it if the process dies.

    patience: seconds to wait while another process holds it.
    Raises: UsageError with the text `busy` when another process holds it; MidogError when the file cannot be made, or
    its file system keeps no locks.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise write_problem(path, error) from error
    with handle:
        _acquire(handle, path, busy, time.monotonic() + patience)
        yield


def _acquire(handle: IO[str], path: Path, busy: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UsageError(busy, "wait for it, or stop that process and repeat the command") from None
        except OSError as error:  # ENOSYS, ENOLCK: Lustre without `flock`, NFS without its lock service
            raise MidogError(
                f"the file system of {path.parent} keeps no locks ({error.strerror or error}): two processes could "
                "write the same files",
                "mount it with locks (Lustre: option flock), or name a folder on another file system",
            ) from error
        time.sleep(LOOK)
