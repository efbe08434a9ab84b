"""The pixel store: every image decoded once, keyed by content, memory-mapped.

A folder with two files. `patches.u8` is a growing row of 128 × 128 × 3 byte records and `index.csv` says which image
file (sha256) each record came from, what its pixels hash to, and under which path, size and time of change that file
was last seen, so that a second visit asks the file system and decodes nothing. The index is replaced atomically after
the records are on disk: a process killed in between leaves a tail that nobody refers to, and the next writer cuts it
off. Records are never moved or changed, so a process that reads is not disturbed by one that writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from midog import files, progress
from midog.data.images import PATCH, Bytes, Unusable, decode_patch, is_padded
from midog.errors import DataError, MidogError

RECORD = PATCH * PATCH * 3
CHUNK = 512
"""Images decoded ahead of the writing: 24 MB of memory."""
PATIENCE_SECONDS = 900.0
"""How long to wait for another process that is decoding into the same store."""


@dataclass(frozen=True, slots=True)
class Entry:
    record: int
    pixels: str
    padded: bool


@dataclass
class Index:
    """contents: file sha256 → entry. seen: absolute path → (size, mtime_ns, file sha256)."""

    contents: dict[str, Entry]
    seen: dict[str, tuple[int, int, str]]

    def knows(self, name: str, stat: tuple[int, int]) -> bool:
        return self.seen.get(name, ())[:2] == stat


def file_stat(name: str) -> tuple[int, int] | None:
    try:
        found = Path(name).stat() if not name.startswith("/") else os.stat(name)  # noqa: PTH116 (12,000 of these)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def read_index(folder: Path) -> Index:
    """The store's index; an unreadable one, or records that are no longer there, count as never decoded."""
    index = Index({}, {})
    try:
        held = (folder / "patches.u8").stat().st_size // RECORD
        _, rows = files.read_csv(folder / "index.csv")
    except (OSError, DataError):
        return index
    for kind, *cells in rows:
        if kind == "content" and int(cells[1]) < held:
            index.contents[cells[0]] = Entry(int(cells[1]), cells[2], cells[3] == "1")
        elif kind == "seen" and cells[1] in index.contents:
            index.seen[cells[0]] = (int(cells[2]), int(cells[3]), cells[1])
    return index


def write_index(folder: Path, index: Index) -> None:
    rows: list[list[Any]] = [["content", sha, e.record, e.pixels, int(e.padded)] for sha, e in index.contents.items()]
    rows += [["seen", name, sha, size, mtime] for name, (size, mtime, sha) in index.seen.items()]
    files.write_csv(folder / "index.csv", ["kind", "key", "value", "a", "b"], rows)


def decode_into(folder: Path, index: Index, todo: dict[str, tuple[int, int]]) -> dict[str, tuple[str, str]]:
    """Decode the files of `todo` into the store, growing `index`; returns the unusable ones: path → (kind, text)."""
    bad: dict[str, tuple[str, str]] = {}
    pending = Index(dict(index.contents), dict(index.seen))
    path = folder / "patches.u8"
    count = 1 + max((entry.record for entry in index.contents.values()), default=-1)
    if not count:
        path.unlink(missing_ok=True)  # never cut below what another process may have mapped
    with path.open("ab") as records, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        records.truncate(count * RECORD)
        for name, stat, found in progress.track(_visit(pool, todo, pending), "decoding patches", len(todo)):
            if isinstance(found, Unusable):
                bad[name] = (found.kind, found.text)
                continue
            sha, pixels = found
            if sha not in pending.contents:
                records.write(pixels.tobytes())
                digest = files.sha256_bytes(pixels.tobytes())[:16]
                pending.contents[sha] = Entry(count, digest, is_padded(pixels))
                count += 1
            pending.seen[name] = (*stat, sha)
        records.flush()
        os.fsync(records.fileno())
    index.contents, index.seen = pending.contents, pending.seen
    write_index(folder, index)
    return bad


def _visit(
    pool: ThreadPoolExecutor, todo: dict[str, tuple[int, int]], index: Index
) -> Iterator[tuple[str, tuple[int, int], tuple[str, Bytes] | Unusable]]:
    """Read, hash and decode in a small pool (Pillow and hashlib release the GIL), at most CHUNK ahead, in order."""

    def visit(name: str) -> tuple[str, Bytes] | Unusable:
        try:
            content = Path(name).read_bytes()
            sha = files.sha256_bytes(content)
            return sha, np.empty(0, np.uint8) if sha in index.contents else decode_patch(content)
        except OSError as error:
            return Unusable("unreadable", error.strerror or str(error))
        except Unusable as error:
            return error

    names = list(todo)
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        for name, found in zip(chunk, list(pool.map(visit, chunk)), strict=True):
            yield name, todo[name], found


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the store for writing; wait for another process that does, because it may be decoding the same images."""
    with files.lock(folder / "lock", f"another process is decoding into {folder}", PATIENCE_SECONDS):
        yield


def unwritable(folder: Path, error: OSError | MidogError) -> MidogError:
    """The problem, and beside its own fix the way out that only the store has."""
    problem = error if isinstance(error, MidogError) else files.write_problem(folder, error)
    return MidogError(problem.problem, f"{problem.fix}; another folder for decoded patches: MIDOG_CACHE=FOLDER")


def map_records(folder: Path, count: int) -> Bytes:
    """(count, 128, 128, 3) uint8, read-only, straight from the file."""
    if not count:
        return np.empty((0, PATCH, PATCH, 3), dtype=np.uint8)
    return np.memmap(folder / "patches.u8", dtype=np.uint8, mode="r", shape=(count, PATCH, PATCH, 3))
