"""A bundle's files: the manifest, writing them as tar.gz byte by byte alike, unpacking defensively, their hashes."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any

from midog.errors import ContractError, MidogError, UsageError, WeightsError
from midog.files import SCHEMA_VERSION, atomic, check_schema, sha256_file

MANIFEST_FILE = "manifest.json"
CARD_FILE = "MODEL_CARD.md"
KIND = "midog bundle"
LEVEL = 1
"""Of gzip: weights hardly shrink, and a higher level takes minutes for a hundredth of the size."""
BLOCK = 1 << 20
LARGEST_JSON = 64 << 20
REPACK = "midog bundle BLEND -o model.tar.gz"
DEFAULT = "default"
DEFAULT_FOLDER = Path(__file__).parent / "bundles" / DEFAULT
"""The bundle that ships with the package, unpacked: its files are memory-mapped where they lie."""
MAKE_DEFAULT = (
    "midog train default patches.csv -o runs/default && midog blend runs/default -o blends/default && "
    "midog bundle blends/default -o model.tar.gz"
)


def write_archive(out: Path | str, contents: Mapping[str, Path | bytes]) -> Path:
    """Write `contents`, archive name → file or bytes, in that order; the same contents give the same bytes.

    Names, sizes and contents are all that goes in: no time, owner or machine. Whole or absent, as every file we write.

    Raises: MidogError when the disk is full.
    """
    with (
        atomic(out) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content) if isinstance(content, bytes) else content.stat().st_size
            entry.mode = 0o644
            if isinstance(content, bytes):
                archive.addfile(entry, io.BytesIO(content))
            else:
                with content.open("rb") as file:
                    archive.addfile(entry, file)
    return Path(out)


def bundle_path(bundle: Path | str) -> Path:
    """Where a bundle is: the typed word `default` is the one that ships, everything else, `./default` too, is a path.

    Raises: WeightsError when `default` is asked for and this installation has none.
    """
    if bundle != DEFAULT:  # a Path never equals a word
        return Path(bundle)
    if not (DEFAULT_FOLDER / MANIFEST_FILE).is_file():
        raise WeightsError(
            "this installation holds no default bundle", f"name a bundle of your own, or make it: {MAKE_DEFAULT}"
        )
    return DEFAULT_FOLDER


def locate(path: Path | str) -> Path | None:
    """The folder that holds manifest.json: `path` or its only sub-folder; None when neither does."""
    path = Path(path)
    if (path / MANIFEST_FILE).is_file():
        return path
    if not path.is_dir():
        return None
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return folders[0] if len(folders) == 1 and (folders[0] / MANIFEST_FILE).is_file() else None


def unpack(path: Path, folder: Path) -> dict[str, str]:
    """Unpack a bundle below `folder`; returns name → sha256 of every file.

    Regular files and folders only, below `folder`, none larger than the free space.

    Raises: ContractError for links, devices, absolute or outward names and doubled files; WeightsError for an archive
        that is damaged or cut short; MidogError when the disk is full.
    """
    hashes: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                name = _safe_name(entry, path)
                if entry.isdir() or not name:
                    continue
                if name in hashes:
                    raise ContractError(f"{path} holds {name} twice", f"make it again: {REPACK}")
                if entry.size > shutil.disk_usage(folder).free:
                    raise _no_room(path)
                source = archive.extractfile(entry)
                assert source is not None  # a regular file
                hashes[name] = _copy(source, folder / name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(path) from error
        raise WeightsError(
            f"{path} cannot be unpacked: {error}", f"it is damaged, cut short or no bundle; make it again: {REPACK}"
        ) from error
    return hashes


def _no_room(path: Path) -> MidogError:
    return MidogError(
        f"no room to unpack {path}",
        "free some space, set TMPDIR to a larger disk, or unpack it yourself and give the folder",
    )


def _safe_name(entry: tarfile.TarInfo, path: Path) -> str:
    inside = PurePosixPath(entry.name)
    kind = "a link" if entry.issym() or entry.islnk() else "" if entry.isreg() or entry.isdir() else "a special file"
    if kind or inside.is_absolute() or ".." in inside.parts or "\\" in entry.name or "\0" in entry.name:
        raise ContractError(
            f"{path} is not safe to unpack: {entry.name!a} is {kind or 'a name outside the archive'}",
            f"a bundle holds plain files only; get it from its author again, or make it: {REPACK}",
        )
    return "" if str(inside) == "." else str(inside)


def _copy(source: IO[bytes], target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while block := source.read(BLOCK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def unpack_to_temporary(path: Path) -> tuple[tempfile.TemporaryDirectory[str], dict[str, str]]:
    """`unpack` into a new temporary folder, which goes when the returned object does."""
    holder = tempfile.TemporaryDirectory(prefix="midog-bundle-")
    try:
        return holder, unpack(path, Path(holder.name))
    except BaseException:
        holder.cleanup()
        raise


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a bundle (archive, folder, or the word `default`) without unpacking the rest.

    Raises: WeightsError when there is none, or when a newer release wrote it.
    """
    path = bundle_path(path)
    if path.is_dir():
        folder = locate(path)
        if folder is None:
            raise _no_bundle(path)
        return parse_manifest((folder / MANIFEST_FILE).read_bytes(), path)
    if not path.is_file():
        raise WeightsError(f"no such bundle: {path}", f"check the path, or make one: {REPACK}")
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                inside = PurePosixPath(entry.name)
                if entry.isreg() and inside.name == MANIFEST_FILE and len(inside.parts) <= 2:
                    source = archive.extractfile(entry)
                    assert source is not None
                    return parse_manifest(source.read(LARGEST_JSON), path)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise WeightsError(f"{path} is no readable bundle: {error}", f"make it again: {REPACK}") from error
    raise _no_bundle(path)


def _no_bundle(path: Path) -> WeightsError:
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    return WeightsError(f"{path} is no bundle: it holds no {MANIFEST_FILE}", f"make one: {REPACK}", entries)


def parse_manifest(content: bytes, where: Path | str) -> dict[str, Any]:
    """The manifest as a dictionary. Raises: WeightsError when it is none, or newer than this release."""
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise WeightsError(f"the manifest of {where} is not readable: {error}", f"make it again: {REPACK}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise WeightsError(f"{where} is no bundle: its {MANIFEST_FILE} is another program's", f"make one: {REPACK}")
    try:
        check_schema(manifest, f"the bundle {where}")
    except UsageError as error:
        release = str(manifest.get("midog", "a newer release"))
        raise WeightsError(error.problem, f"install midog {release} or newer, which wrote it") from None
    return manifest


def verify(folder: Path, manifest: Mapping[str, Any], hashes: Mapping[str, str] | None, where: str) -> None:
    """Check that exactly the manifest's files are there, each with its hash; `hashes` of an archive are known already.

    Hidden files of an unpacked bundle (.DS_Store) are ignored.

    Raises: WeightsError listing every file that is missing, changed or foreign.
    """
    listed = _listed(manifest, where)
    there = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    there.pop(MANIFEST_FILE, None)
    problems = [f"missing: {name}" for name in listed if name not in there]
    problems += [f"foreign: {name}" for name in there if name not in listed]
    sizes = {name: there[name].stat().st_size for name in listed if name in there}
    problems += [
        f"wrong size: {name} has {size} bytes, not {listed[name]['bytes']}"
        for name, size in sizes.items()
        if size != listed[name]["bytes"]
    ]
    if not problems:
        found = hashes or _hash_all(there)
        problems = [f"wrong hash: {name}" for name in listed if found[name] != listed[name]["sha256"]]
    if problems:
        raise WeightsError(f"the bundle {where} is not as its manifest says", f"make it again: {REPACK}", problems)


def _listed(manifest: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The manifest's files, those its members name among them. Raises: WeightsError when it contradicts itself."""
    try:
        listed = {
            str(name): {"bytes": int(e["bytes"]), "sha256": str(e["sha256"])} for name, e in manifest["files"].items()
        }
        named = [name for member in manifest["members"] for name in (member["backbone"], *member["folds"].values())]
        set(manifest["training"]["pixels"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"the manifest of {where} is incomplete: {type(error).__name__} {error}"
        raise WeightsError(problem, f"make it again: {REPACK}") from None
    absent = [f"not listed: {name}" for name in dict.fromkeys(named) if name is not None and name not in listed]
    if absent:
        raise WeightsError(f"the manifest of {where} names members without a file", f"make it again: {REPACK}", absent)
    return listed


def _hash_all(files: Mapping[str, Path]) -> dict[str, str]:
    # hashlib lets go of the interpreter, so files are hashed side by side.
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(sha256_file, files.values()), strict=True))


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """A manifest as it is stored: one way to write equal content, so that its sha256 names the bundle."""
    whole = {"schema_version": SCHEMA_VERSION, "kind": KIND, **content}
    return (json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
