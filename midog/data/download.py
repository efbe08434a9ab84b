"""Public data sets, fetched when asked: resumed where a transfer broke off, checked, unpacked defensively.

What is checked: every byte count that the server states, and every file's CRC-32 in the zip. The repositories state
no sha256 of their archives (they are packed anew on request), so none is held against them; the archive's own sha256
and address are written beside the data.
"""

from __future__ import annotations

import http.client
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from midog import errors, files, progress
from midog.errors import DataError, MidogError, UsageError

BLOCK = 1 << 18
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4
"""How often a broken transfer is taken up again before the user is asked to."""
LARGEST_BYTES = 20_000_000_000
"""More than this unpacked is not one of these data sets."""


@dataclass(frozen=True)
class Source:
    """A public archive: `path` below `base`; `keep` names the parts of the data set, matched below its top folder."""

    base: str
    path: str
    keep: tuple[str, ...]
    citation: str


GITHUB = "https://github.com"
SOURCES = {
    "amibr": Source(
        GITHUB,
        "/DeepMicroscopy/AMi-Br/archive/refs/heads/main.zip",
        ("AMI-BR.csv", "patches/", "LICENSE", "README.md"),
        "Bertram et al. 2025, AMi-Br (BVM 2025)",
    ),
    "atnorm": Source(
        GITHUB,
        "/DeepMicroscopy/AMi-Br_Benchmark/archive/refs/heads/main.zip",
        ("AtNorM-Br/", "AtNorM-MD/", "LICENSE", "README.md"),
        "Banerjee et al. 2025, AtNorM-Br and AtNorM-MD (arXiv:2506.21444)",
    ),
}


def download(name: str, folder: Path | str, base_url: str | None = None) -> Path:
    """Fetch a public data set into `<folder>/<name>`; returns that folder. A complete one is left as it is.

    name: amibr or atnorm. base_url: another server with the same paths (a mirror).
    A transfer that breaks off continues where it stopped, in this call and in the next.
    Raises: UsageError for another name, or when another process fetches the same; DataError when the server cannot be
    reached, or what came is damaged or is not the data set.
    """
    if name not in SOURCES:
        raise errors.unknown("data set", name, SOURCES)
    source, folder = SOURCES[name], Path(folder)
    target = folder / name
    if (target / "source.json").is_file():
        return target
    if target.exists():
        raise UsageError(f"{target} exists and was not made by this command", "name another folder, or move it away")
    url = (base_url or source.base).rstrip("/") + source.path
    with files.lock(folder / f".{name}.lock", f"another process downloads {name} into {folder}"):
        for left in folder.glob(f".{name}.*"):  # of a process that was killed while unpacking
            if left.is_dir():
                shutil.rmtree(left)
        archive = folder / f".{name}.zip"
        try:
            if not archive.is_file():
                fetch(url, archive)
            facts = {"name": name, "url": url, "sha256": files.sha256_file(archive), "cite": source.citation}
            unpack(archive, target, source.keep, facts)
        except OSError as error:
            raise files.write_problem(target, error) from error
        archive.unlink()
    return target


# ── transfer ──────────────────────────────────────────────────────────────────────────────────────────────────────


def fetch(url: str, path: Path) -> Path:
    """Download `url` to `path`, continuing `<path>.part` where the server can and its file is still the same one.

    Raises: DataError when it cannot be reached, answers with an error, or breaks off again and again.
    """
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.tag")
    reason = ""
    for _ in range(ATTEMPTS):
        held = part.stat().st_size if part.is_file() else 0
        try:
            if _transfer(url, part, tag, held):
                part.replace(path)
                tag.unlink(missing_ok=True)
                return path
            reason = "the transfer broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing left to send, or another file by now: begin anew
                part.unlink(missing_ok=True)
                tag.unlink(missing_ok=True)
                reason = "the server has another file by now"
                continue
            raise DataError(f"{url}: the server answers {error.code} {error.reason}", "check the address") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            if not part.is_file():  # never reached: asking again at once does not help
                break
    held = part.stat().st_size if part.is_file() else 0
    raise DataError(
        f"{url} could not be fetched: {reason} ({held / 1e6:.1f} MB are here)",
        "repeat the same command: it continues where it stopped; without network, copy the data and name its folder",
    )


def _transfer(url: str, part: Path, tag: Path, held: int) -> bool:
    """One request; True when every byte the server stated has come."""
    request = urllib.request.Request(url, headers={"User-Agent": "midog", "Accept-Encoding": "identity"})
    if held and tag.is_file():
        request.add_header("Range", f"bytes={held}-")
        request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        resumed = answer.status == 206
        if not resumed:
            held = 0
            _remember(answer, tag)
        stated = answer.headers.get("Content-Length")
        expected = held + int(stated) if stated is not None else None
        with part.open("ab" if resumed else "wb") as out, _bar(expected, held) as advance:
            while block := answer.read(BLOCK):
                out.write(block)
                held += len(block)
                advance(held)
    return expected is None or held == expected


def _remember(answer: Any, tag: Path) -> None:
    """Keep what identifies the server's file, so that only the same file is ever continued."""
    mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if mark and not mark.startswith("W/"):
        files.write_text(tag, mark)
    else:
        tag.unlink(missing_ok=True)


class _bar:
    """Progress in MB on a terminal; without a stated size it counts in steps of 25 MB up to no known end."""

    def __init__(self, expected: int | None, held: int) -> None:
        self.total = max(1, (expected or 0) // 1_000_000)
        self.done = held // 1_000_000
        self.steps = progress.steps("downloading (MB)", self.total)

    def __enter__(self) -> Callable[[int], None]:
        step = self.steps.__enter__()
        for _ in range(self.done):
            step("")

        def advance(held: int) -> None:
            while self.done < held // 1_000_000:
                self.done += 1
                step(f"{self.done}")

        return advance

    def __exit__(self, *error: Any) -> None:
        self.steps.__exit__(*error)


# ── archive ───────────────────────────────────────────────────────────────────────────────────────────────────────


def unpack(archive: Path, target: Path, keep: tuple[str, ...], facts: dict[str, Any]) -> Path:
    """Unpack the kept parts of a zip below its top folder into `target`, whole or not at all.

    Raises: DataError (and deletes the archive) when it is damaged, reaches outside its folder, holds links, is absurdly
    large, or has none of the kept parts.
    """
    holding = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as zipped:
            wanted = [(info, place) for info in zipped.infolist() if (place := _place(info, keep))]
            if sum(info.file_size for info, _ in wanted) > LARGEST_BYTES:
                raise DataError(f"{archive} unpacks to more than {LARGEST_BYTES / 1e9:.0f} GB", "fetch it by hand")
            for info, place in progress.track(wanted, "unpacking", len(wanted)):
                file = holding / place
                file.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(info) as packed, file.open("wb") as out:  # reading to the end checks the CRC
                    shutil.copyfileobj(packed, out, BLOCK)
        parts = [part for part in keep if part not in ("LICENSE", "README.md")]
        lacking = [part for part in parts if not (holding / part).exists()]
        if lacking:
            raise DataError(f"{facts['url']} does not hold {', '.join(lacking)}", "the repository may have moved")
        files.write_json(holding / "source.json", facts)
        holding.chmod(0o755)
        holding.replace(target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        archive.unlink(missing_ok=True)
        raise DataError(f"what came from {facts['url']} is damaged: {error}", "repeat the command") from error
    except MidogError:
        archive.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(holding, ignore_errors=True)
    return target


def _place(info: zipfile.ZipInfo, keep: tuple[str, ...]) -> str:
    """Where an entry goes below the target, "" when it is not wanted. Raises: DataError for a path that escapes."""
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"the archive holds a path outside its folder: {info.filename}", "do not trust this server")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"the archive holds a link: {info.filename}", "do not trust this server")
    if info.is_dir() or len(path.parts) < 2:
        return ""
    inside = "/".join(path.parts[1:])
    return inside if any(inside == part or (part.endswith("/") and inside.startswith(part)) for part in keep) else ""
