"""One pass over a saved container image: what its members and its layers hold.

Nothing is unpacked, no link is followed, and no member is held in memory but small JSON and what a rule asks about.
Layers come before or after the manifest that orders them, so each is looked at by itself; `content` joins them.
"""

from __future__ import annotations

import hashlib
import heapq
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from midog.archive import LARGEST_JSON
from submission.preflight.credentials import find_credential
from submission.preflight.streams import (
    BLOCK,
    UNREADABLE,
    ArchiveMember,
    Joined,
    LayerMember,
    Once,
    Tee,
    Unended,
    compression_of,
    decompress,
    drain,
    entries,
    is_tar,
    open_tar,
)

LARGEST_DOCUMENT = 1 << 20
"""Bytes of a JSON member; the platform's own are a few thousand."""
DOCUMENTS = 16 * LARGEST_DOCUMENT  # of all of them together
SHOWN_FILES = 10
NOTED = 200  # paths of one kind and layer
PASSWD = "etc/passwd"
SCRIPT = "opt/app/inference.py"
MODEL = "opt/app/model"
WATCHED = {"etc", PASSWD, "opt", "opt/app", SCRIPT, MODEL}
EMPTY_PLACES = ("tmp", "input", "output")


@dataclass(frozen=True)
class Item:
    """What a layer has at a watched path. `kind` is file, folder or link; `content` only of passwd and the manifest."""

    kind: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    size: int = 0
    sha256: str = ""
    content: bytes = b""


@dataclass
class Layer:
    """One layer's tar. Paths have no leading slash; `opaque` are folders of which lower layers' content is hidden."""

    name: str
    size: int  # bytes as it lies in the archive
    unpacked: int = 0
    files: int = 0
    diff_id: str = ""  # sha256 of the uncompressed tar
    problem: str = ""
    items: dict[str, Item] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    leftovers: dict[str, int] = field(default_factory=dict)  # below /tmp, /input, /output → bytes
    repositories: dict[str, int] = field(default_factory=dict)  # .git
    bytecode: dict[str, int] = field(default_factory=dict)  # __pycache__ outside /opt and /usr
    credentials: dict[str, str] = field(default_factory=dict)  # path → what it is
    largest: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Scan:
    """A whole archive. `problem`: its stream or its tar does not read to the end; `unended`: no end-of-archive mark."""

    name: str
    size: int = 0
    sha256: str = ""
    compression: str = ""  # "", gzip, xz, bzip2, zstd
    problem: str = ""
    unended: bool = False
    members: dict[str, str] = field(default_factory=dict)  # name → file or link
    documents: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)


def scan_archive(path: Path) -> Scan:
    """Read `path` once, to its end. What is wrong with it is in the result. Raises: OSError when not to be opened."""
    scan = Scan(path.name)
    with path.open("rb") as raw:
        scan.compression = compression_of(raw.read(8))
        raw.seek(0)
        whole = Tee(raw)
        try:
            source = Once(decompress(whole, scan.compression))
            with open_tar(source, ArchiveMember) as archive:
                for entry in entries(archive):
                    _read_member(scan, archive, entry)
            drain(source)  # the checksum of gzip and xz stands at the end
        except Unended:
            scan.unended = True
        except UNREADABLE as error:
            scan.problem = str(error) or type(error).__name__
        drain(whole)
    scan.size, scan.sha256 = whole.size, whole.sha256
    return scan


def _read_member(scan: Scan, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    name = entry.name
    scan.documents.pop(name, None)  # a later member of the same name replaces the earlier one
    scan.layers.pop(name, None)
    scan.members[name] = "file" if entry.isreg() else "folder" if entry.isdir() else "link"
    body = archive.extractfile(entry) if entry.isreg() else None
    if body is None:
        return
    head = body.read(tarfile.BLOCKSIZE)
    compression = compression_of(head)
    if compression or is_tar(head):
        scan.layers[name] = _read_layer(name, entry.size, Joined(head, body), compression)
    elif entry.size <= LARGEST_DOCUMENT and sum(map(len, scan.documents.values())) < DOCUMENTS:
        scan.documents[name] = head + body.read()


def _read_layer(name: str, size: int, stored: Any, compression: str) -> Layer:
    layer = Layer(name, size)
    try:
        tar = Tee(decompress(stored, compression))
        with open_tar(tar, LayerMember) as archive:
            for entry in entries(archive):
                _look(layer, archive, entry)
        drain(tar)
        layer.diff_id = f"sha256:{tar.sha256}"
    except UNREADABLE as error:
        layer.problem = str(error) or type(error).__name__
    return layer


def _look(layer: Layer, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    """Note what the rules ask about one file, folder or link of a layer."""
    path = clean(entry.name)
    folder, _, base = path.rpartition("/")
    if base == ".wh..wh..opq":
        layer.opaque.append(folder)
    elif base.startswith(".wh.") and not base.startswith(".wh..wh."):
        layer.deleted.append(f"{folder}/{base[4:]}".lstrip("/"))
    if base.startswith(".wh."):
        return
    if path in WATCHED or path.startswith(f"{MODEL}/"):
        layer.items[path] = _item(layer, archive, entry, path)
    parts = path.split("/")
    for part, noted in ((".git", layer.repositories), ("__pycache__", layer.bytecode)):
        if part in parts and not (part == "__pycache__" and parts[0] in ("opt", "usr")):
            _note(noted, "/".join(parts[: parts.index(part) + 1]), entry.size)
    if not entry.isreg():
        return
    layer.unpacked += entry.size
    layer.files += 1
    push = heapq.heappush if len(layer.largest) < SHOWN_FILES else heapq.heappushpop
    push(layer.largest, (entry.size, path))
    if entry.size and len(parts) > 1 and parts[0] in EMPTY_PLACES:
        _note(layer.leftovers, path, entry.size)
    if entry.size and path not in layer.items:  # a stream is read once
        found = find_credential(path, lambda: _read(archive, entry, LARGEST_DOCUMENT))
        if found and len(layer.credentials) < NOTED:
            layer.credentials[path] = found


def _item(layer: Layer, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> Item:
    if entry.islnk():  # another name of a file of the same layer
        return layer.items.get(clean(entry.linkname), Item("link"))
    kind = "file" if entry.isreg() else "folder" if entry.isdir() else "link"
    content, digest = b"", hashlib.sha256()
    if kind == "file" and path in (PASSWD, f"{MODEL}/manifest.json"):
        content = _read(archive, entry, LARGEST_JSON)
        digest.update(content)
    elif kind == "file" and path.startswith(f"{MODEL}/"):
        body = cast(IO[bytes], archive.extractfile(entry))
        while block := body.read(BLOCK):
            digest.update(block)
    return Item(kind, entry.uid, entry.gid, entry.mode, entry.size, digest.hexdigest(), content)


def _note(noted: dict[str, int], path: str, size: int) -> None:
    if path in noted or len(noted) < NOTED:
        noted[path] = noted.get(path, 0) + size


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo, most: int) -> bytes:
    return cast(IO[bytes], archive.extractfile(entry)).read(most)


def clean(name: str) -> str:
    """A layer's path without `./`, leading and trailing slashes."""
    while name.startswith("./"):
        name = name[2:]
    return name.strip("/")
