"""Pixels of a patch table: every image looked at once, faults collected, patches by position."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midog.data import store
from midog.data.images import PATCH, Bytes, read_image, to_rgb
from midog.data.patches import PatchTable
from midog.errors import DataError, MidogError, UsageError

__all__ = ["PATCH", "Fault", "Pixels", "Scan", "default_cache", "open_pixels", "read_image", "scan_images", "to_rgb"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the image of patch `index` cannot be used. kind: missing, unreadable, mode or size."""

    index: int
    kind: str
    text: str


@dataclass(frozen=True)
class Scan:
    """What looking at every image of a table gave.

    records: (n,) int64 place in the store, -1 where faulty. hashes: 16 hex of sha256 over the RGB bytes, "" faulty.
    padded: (n,) bool, a whole border row or column is black, as patches at slide borders are.
    """

    store: Path
    records: npt.NDArray[np.int64]
    hashes: tuple[str, ...]
    padded: npt.NDArray[np.bool_]
    faults: tuple[Fault, ...]


class Pixels:
    """Patches by position: `pixels[3]` is (128, 128, 3) uint8 RGB, `pixels[[3, 5]]` is (2, 128, 128, 3). Always copies.

    hashes: 16 hex digits of sha256 over each patch's RGB bytes.
    """

    def __init__(self, scan: Scan) -> None:
        self.hashes = scan.hashes
        self._records = scan.records
        self._map = store.map_records(scan.store, int(scan.records.max()) + 1 if len(scan.records) else 0)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int | np.integer[Any] | slice | npt.ArrayLike) -> Bytes:
        if isinstance(index, int | np.integer):
            return np.array(self._map[self._records[index]])
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.intp)
        return np.array(self._map[self._records[index]])


def open_pixels(table: PatchTable, cache: Path | None = None) -> Pixels:
    """The table's pixels, decoded into the store where they are not there yet.

    cache: folder of the store; default `$MIDOG_CACHE`, else `~/.cache/midog`.
    Raises: DataError naming every image that is missing, damaged or no 8-bit RGB of 128 × 128.
    """
    scan = scan_images(table, cache)
    if scan.faults:
        raise DataError(
            f"{len(scan.faults)} of {len(table)} images cannot be used",
            "repair the files, or delete their rows",
            [f"{table.origin(fault.index)}: {fault.text}" for fault in scan.faults],
        )
    return Pixels(scan)


def default_cache() -> Path:
    """`$MIDOG_CACHE`, else `~/.cache/midog`."""
    named = os.environ.get("MIDOG_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "midog"


def scan_images(table: PatchTable, cache: Path | None = None) -> Scan:
    """Look at every image once: decode what the store lacks, collect every fault.

    Raises: MidogError when the store cannot be written, UsageError while another process writes it; images never raise.
    """
    folder = (cache or default_cache()) / "pixels"
    names = [os.path.normpath(name) for name in _absolute(table)]
    stats = [store.file_stat(name) for name in names]
    index = store.read_index(folder)
    found = {name: stat for name, stat in zip(names, stats, strict=True) if stat}
    bad: dict[str, tuple[str, str]] = {}
    if not all(index.knows(name, stat) for name, stat in found.items()):
        try:
            with store.writing(folder):
                index = store.read_index(folder)  # another process may have decoded them meanwhile
                todo = {name: stat for name, stat in found.items() if not index.knows(name, stat)}
                bad = store.decode_into(folder, index, todo)
        except UsageError:
            raise  # another process decodes, and nothing is wrong with the folder
        except (OSError, MidogError) as error:
            raise store.unwritable(folder, error) from error
    return _collect(folder, index, names, stats, bad)


def _absolute(table: PatchTable) -> list[str]:
    root = str(table.root.absolute())
    return [f"{root}/{patch.path}" if not patch.path.startswith("/") else patch.path for patch in table]


def _collect(
    folder: Path,
    index: store.Index,
    names: Sequence[str],
    stats: Sequence[tuple[int, int] | None],
    bad: dict[str, tuple[str, str]],
) -> Scan:
    records = np.full(len(names), -1, dtype=np.int64)
    padded = np.zeros(len(names), dtype=bool)
    hashes = [""] * len(names)
    faults: list[Fault] = []
    for i, (name, stat) in enumerate(zip(names, stats, strict=True)):
        if stat is None:
            faults.append(Fault(i, "missing", f"no such file: {name}"))
        elif name in bad:
            kind, text = bad[name]
            faults.append(Fault(i, kind, f"{name}: {text}"))
        else:
            entry = index.contents[index.seen[name][2]]
            records[i], hashes[i], padded[i] = entry.record, entry.pixels, entry.padded
    return Scan(folder, records, tuple(hashes), padded, tuple(faults))
