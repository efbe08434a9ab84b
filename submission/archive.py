"""The upload check: what the platform refuses in a saved image, and what would go wrong later, found beforehand.

    checked = preflight(Path("image.tar.gz"), bundle=Path("model.tar.gz"), ledger=Path("submissions.jsonl"))
    print(checked.text())

Any archive is read, ours or not. Where the platform has words for a refusal, a failing line opens with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midog.archive import manifest_bytes, read_manifest
from midog.errors import DataError
from midog.files import sha256_bytes
from submission.challenge import plain
from submission.ledger import Entry, read_ledger
from submission.preflight.content import Baked, find_bundle, find_user, lay_over
from submission.preflight.image_file import Image, intact, open_image, read_to_end
from submission.preflight.layers import SHOWN_FILES, Scan, scan_archive
from submission.preflight.rules import (
    LIMIT,
    LINES,
    SIZES,
    configured,
    contained,
    in_units,
    new_digest,
    sized,
    tested_bundle,
    user_of,
)
from submission.verdict import Verdict, failures, verdict_table


@dataclass(frozen=True)
class LayerSize:
    name: str
    stored: int
    unpacked: int
    files: int
    made_by: str = ""


@dataclass(frozen=True)
class Sizes:
    """In bytes: the archive file, all files of all layers, each layer lowest first, the largest files."""

    compressed: int
    unpacked: int
    layers: tuple[LayerSize, ...]
    largest: tuple[tuple[str, int], ...]

    def text(self) -> str:
        """One line per layer and per file, for people."""
        lines = [
            f"archive {in_units(self.compressed)}, unpacked {in_units(self.unpacked)} in {len(self.layers)} layers"
        ]
        lines += [
            f"{in_units(layer.unpacked):>10}  {layer.files:>6} files  {plain(layer.made_by or layer.name)[:80]}"
            for layer in self.layers
        ]
        lines += ["largest files", *(f"{in_units(size):>10}  /{plain(path)}" for path, size in self.largest)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Preflight:
    """What the check found. Digests are "" where unknown; `bundle_digest` is the one the container's banner prints."""

    verdicts: tuple[Verdict, ...]
    sizes: Sizes
    sha256: str
    image_digest: str
    bundle_digest: str

    @property
    def good(self) -> bool:
        return not failures(self.verdicts)

    def text(self) -> str:
        digests = [
            f"sha256 of the archive: {self.sha256}",
            f"image digest:          {self.image_digest or 'unknown'}",
            f"bundle in the image:   {self.bundle_digest or 'none'}",
        ]
        return "\n".join([verdict_table(self.verdicts), "", self.sizes.text(), "", *digests])

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


def preflight(archive: Path, *, bundle: Path | str | None = None, ledger: Path | None = None) -> Preflight:
    """Check a saved image against the platform's upload rules, reading it once as a stream.

    Args:
        archive: .tar, .tar.gz or .tar.xz, as `docker save` or `podman save --format docker-archive` write it.
        bundle: the bundle that was tested, model.tar.gz, a folder or `default`; without it A15 is skipped.
        ledger: the ledger of submissions; without it A16 is skipped.

    Raises: DataError when `archive` is no file or the ledger is damaged; WeightsError when `bundle` is no bundle.
        Whatever is wrong with the archive itself is a verdict.
    """
    archive = Path(archive)
    if not archive.is_file():
        kind = "is a folder" if archive.is_dir() else "does not exist"
        raise DataError(f"the archive {archive} {kind}", "give the file that midog container save wrote")
    tested = None if bundle is None else sha256_bytes(manifest_bytes(read_manifest(bundle)))
    entries = None if ledger is None else read_ledger(ledger)
    try:
        scan = scan_archive(archive)
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror or error}", "check its permissions") from error
    return judge(scan, tested, entries)


def judge(scan: Scan, tested: str | None, entries: Sequence[Entry] | None, limit: int = LIMIT) -> Preflight:
    """Apply every rule to what was read. `tested` is the digest of the tested bundle; `limit` in bytes."""
    image = open_image(scan)
    sizes, baked = _measure(scan, image), Baked()
    found = [*read_to_end(scan), *image.verdicts]
    if scan.members and not scan.problem:
        found += [sized(sizes.unpacked, limit), intact(scan, image)]
    shown = f"{in_units(sizes.compressed)}, unpacked {in_units(sizes.unpacked)}, sha256 {scan.sha256}"
    found.append(Verdict(LINES[SIZES], SIZES, "info", shown))
    if image.config is not None:
        content = lay_over(image.layers)
        user = find_user(user_of(image.config), content)
        baked = find_bundle(content, user)
        found += [*configured(image.config, image.digest), *contained(image.config, content, user, baked)]
        found += [tested_bundle(baked, tested), new_digest(image.digest, entries)]
    by_rule = {verdict.what: verdict for verdict in found}
    why = "the archive does not read to its end" if scan.problem else "no image to look at"
    verdicts = [by_rule.get(rule) or Verdict(line, rule, "skip", why) for rule, line in LINES.items()]
    return Preflight(tuple(verdicts), sizes, scan.sha256, image.digest, baked.digest)


def _measure(scan: Scan, image: Image) -> Sizes:
    layers = {layer.name: layer for layer in image.layers or scan.layers.values()}  # a layer used twice is stored once
    made_by = dict(zip((layer.name for layer in image.layers), _commands(image), strict=False))
    rows = tuple(
        LayerSize(name, layer.size, layer.unpacked, layer.files, made_by.get(name, ""))
        for name, layer in layers.items()
    )
    largest = sorted((-size, path) for layer in layers.values() for size, path in layer.largest)[:SHOWN_FILES]
    unpacked = sum(row.unpacked for row in rows)
    return Sizes(scan.size, unpacked, rows, tuple((path, -size) for size, path in largest))


def _commands(image: Image) -> list[str]:
    """The build commands that made a layer, lowest first."""
    history = (image.config or {}).get("history")
    steps = [step for step in history if isinstance(step, dict)] if isinstance(history, list) else []
    commands = [str(step.get("created_by", "")) for step in steps if not step.get("empty_layer")]
    return commands if len(commands) == len(image.layers) else []  # squashed: no telling which made what
