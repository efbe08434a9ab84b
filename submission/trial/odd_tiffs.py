"""TIFF files that Pillow does not write: planar, tiled, BigTIFF, 16-bit and float colour, pages of absurd size.

Written byte by byte after the TIFF 6.0 specification (Adobe, 1992) and its BigTIFF extension; little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE, DEFLATE = 1, 8
GREY, RGB = 1, 2
SHORT, LONG, RATIONAL, LONG8 = 3, 4, 5, 16
CODES = {SHORT: "H", LONG: "I", RATIONAL: "II", LONG8: "Q"}
DPI = 101600
"""0.25 µm per pixel."""


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF: its size, how its samples are stored, and the chunks (strips or tiles) themselves."""

    width: int
    height: int
    samples: int
    dtype: np.dtype[Any]
    chunks: tuple[bytes, ...]
    compression: int = NONE
    planar: bool = False
    tile: int = 0  # side; 0: strips


def plain_page(image: NDArray[Any]) -> Page:
    """(h, w) or (h, w, c) numbers as one uncompressed strip."""
    height, width, samples = _shape(image)
    return Page(width, height, samples, image.dtype, (np.ascontiguousarray(image).tobytes(),))


def planar_page(image: NDArray[Any]) -> Page:
    """(h, w, c) with each colour in a plane, and a strip, of its own."""
    height, width, samples = _shape(image)
    chunks = tuple(np.ascontiguousarray(image[..., k]).tobytes() for k in range(samples))
    return Page(width, height, samples, image.dtype, chunks, planar=True)


def tiled_page(image: NDArray[Any], tile: int = 64) -> Page:
    """(h, w, c) cut into deflated square tiles, the last ones filled with zeros."""
    height, width, samples = _shape(image)
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.zeros((rows * tile, columns * tile, samples), dtype=image.dtype)
    padded[:height, :width] = image.reshape(height, width, samples)
    cut = padded.reshape(rows, tile, columns, tile, samples).swapaxes(1, 2)
    chunks = tuple(zlib.compress(cut[r, c].tobytes()) for r in range(rows) for c in range(columns))
    return Page(width, height, samples, image.dtype, chunks, DEFLATE, tile=tile)


def zero_page(width: int, height: int, tile: int = 2000) -> Page:
    """A black RGB page of any size: every tile is the same few bytes, so a page of a gigabyte takes none."""
    count = -(-width // tile) * -(-height // tile)
    chunk = zlib.compress(bytes(tile * tile * 3), 9)
    return Page(width, height, 3, np.dtype(np.uint8), (chunk,) * count, DEFLATE, tile=tile)


def write_tiff(path: Path, pages: Sequence[Page], big: bool = False) -> Path:
    """Write the pages, in order; none at all gives a header that announces no page. Equal chunks are stored once."""
    magic = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0)
    content = bytearray(magic)
    link = len(magic) - (8 if big else 4)  # where the place of the next directory is noted
    for page in pages:
        places: dict[bytes, int] = {}
        for chunk in page.chunks:
            if chunk not in places:
                places[chunk] = len(content)
                content += chunk + bytes(len(chunk) % 2)
        tags = _tags(page, [places[chunk] for chunk in page.chunks])
        link = _append(content, tags, link, big)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _shape(image: NDArray[Any]) -> tuple[int, int, int]:
    return image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1


def _tags(page: Page, offsets: list[int]) -> dict[int, tuple[int, list[int]]]:
    """Number → type and values, in the ascending order that the format asks for."""
    sizes = [len(chunk) for chunk in page.chunks]
    form = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
    tags: dict[int, tuple[int, list[int]]] = {
        256: (LONG, [page.width]),
        257: (LONG, [page.height]),
        258: (SHORT, [page.dtype.itemsize * 8] * page.samples),
        259: (SHORT, [page.compression]),
        262: (SHORT, [RGB if page.samples >= 3 else GREY]),
        277: (SHORT, [page.samples]),
        282: (RATIONAL, [DPI, 1]),
        283: (RATIONAL, [DPI, 1]),
        284: (SHORT, [2 if page.planar else 1]),
        296: (SHORT, [2]),  # dots per inch
        339: (SHORT, [form] * page.samples),
    }
    if page.tile:
        tags |= {322: (LONG, [page.tile]), 323: (LONG, [page.tile]), 324: (LONG, offsets), 325: (LONG, sizes)}
    else:
        tags |= {273: (LONG, offsets), 278: (LONG, [page.height]), 279: (LONG, sizes)}
    if page.samples == 4:
        tags[338] = (SHORT, [2])  # the fourth is unassociated alpha
    return dict(sorted(tags.items()))


def _append(content: bytearray, tags: dict[int, tuple[int, list[int]]], link: int, big: bool) -> int:
    """Append one directory and note its place at `link`; returns where the next one's place belongs."""
    count, entry, number, room = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    rows = bytearray(struct.pack("<" + count, len(tags)))
    for tag, (kind, values) in tags.items():
        code = CODES[kind]
        items = len(values) // len(code)
        packed = struct.pack("<" + code * items, *values)
        rows += struct.pack("<" + entry, tag, kind, items)
        if len(packed) > room:
            rows += struct.pack("<" + number, len(content))
            content += packed + bytes(len(packed) % 2)
        else:
            rows += packed.ljust(room, b"\0")
    at = len(content)
    content += rows + bytes(room)
    struct.pack_into("<" + number, content, link, at)
    return at + len(rows)
