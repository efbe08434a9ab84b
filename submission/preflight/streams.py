"""Tar and compressed streams, read strictly from front to end: tarfile alone passes over damage and cut ends."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, cast

BLOCK = 1 << 20
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, IndexError)
MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


class Unended(Exception):
    """The tar stops between two members, without its end mark: its last part may be missing."""


class LayerMember(tarfile.TarInfo):
    """A member whose damaged header is an error anywhere: tarfile takes one after the first member for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged at byte {archive.offset} of the tar: {error}") from None


class ArchiveMember(LayerMember):
    """The same in the outer archive, which has to be ended by its mark, too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.offset:
                raise Unended from None
            raise


class Tee:
    """Counts and hashes what is read through it."""

    def __init__(self, source: Any) -> None:
        self._source, self._hash, self.size = source, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._source.read(size)
        self._hash.update(block)
        self.size += len(block)
        return block

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Once:
    """Fails again after the first failure: a layer that meets the end of a cut stream is not the one to blame."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            return cast(bytes, self._source.read(size))
        except UNREADABLE as error:
            self._error = error
            raise


class Joined:
    """`head`, then the rest of `body`."""

    def __init__(self, head: bytes, body: Any) -> None:
        self._head, self._body = head, body

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return cast(bytes, self._body.read(size))
        block, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        return block


def compression_of(head: bytes) -> str:
    """ "" when the first bytes are none of a known compression."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


def decompress(source: Any, compression: str) -> Any:
    """A stream of what `source` holds; raises a tarfile.ReadError for a compression that is not read here."""
    # Not tarfile's own "r|*": that one never looks at gzip's checksum, nor at a stream that is cut short.
    if compression == "gzip":
        return gzip.GzipFile(fileobj=source, mode="rb")
    if compression == "xz":
        return lzma.LZMAFile(source)
    if compression:
        raise tarfile.ReadError(f"compressed by {compression}, which is not read here")
    return source


def open_tar(source: Any, member: type[tarfile.TarInfo]) -> tarfile.TarFile:
    return tarfile.open(fileobj=source, mode="r|", bufsize=BLOCK, tarinfo=member)


def entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (entry := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember every one
        yield entry


def is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return True  # an empty tar
    except tarfile.HeaderError:
        return False
    return True


def drain(source: Any) -> None:
    while source.read(BLOCK):
        pass
