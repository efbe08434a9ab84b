"""The battery: every part measures and is written at once; a part whose inputs are unchanged is not repeated.

FOLDER/parts/<part>.json   what a part found, or the reason why it did not run, and the hash of its inputs
FOLDER/<part>/             the run of a part that trains
FOLDER/audit.json          all of them, with what was audited and where it ran
FOLDER/audit.html          the same as figures

Nothing here tunes anything: operating point, threshold and weights are taken as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from midog.audit.measure import ONCE, Settings
from midog.audit.opening import open_subject
from midog.audit.page import page
from midog.audit.parts import FROZEN, PARTS, TRAINING, lines, part
from midog.audit.patches import Patches, read_patches
from midog.audit.subject import Subject
from midog.errors import DataError, MidogError, unknown
from midog.files import lock, read_json, sha256_file, sha256_json, write_json, write_text
from midog.metrics import case_index
from midog.provenance import provenance

AUDIT_FILE, PAGE_FILE = "audit.json", "audit.html"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Audit:
    """What an audit found. `parts` maps a part's name to {seconds, inputs_sha256, found} or {not_run}."""

    folder: Path
    about: dict[str, Any]
    parts: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {**self.about, "parts": self.parts}

    def text(self) -> str:
        """A line for each part."""
        return "\n".join([self.about["what"], *(f"{name:<12}{line}" for name, line in lines(self.parts).items())])


def audit(
    source: Path | str,
    patches: Path | str,
    folder: Path | str,
    only: Sequence[str] = (),
    split: str | None = None,
    use: str | None = None,
    pretrained: Path | None = None,
    settings: Settings | None = None,
    say: Say = lambda line: None,
) -> Audit:
    """Run the battery on a bundle, blend or run and write what it finds.

    Args:
        source: see `opening.open_subject`, as `use` and `pretrained`.
        patches: a table with labels. split: only these rows of it.
        folder: of the results; the same call continues.
        only: of `PARTS`; the others are taken from the folder where they are there. Empty: all but those of `TRAINING`.
        say: told of each part when it is done.

    Raises: UsageError for unknown names; DataError where there is nothing to look at, or one class; what a part
        raises is its reason for not being run.
    """
    settings, folder = settings or Settings(), Path(folder)
    for name in only:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    subject, given = open_subject(source, use, pretrained), read_patches(patches, split)
    many = given.draw(ONCE * settings.limit, settings.seed)
    if len(set(many.labels.tolist())) < 2:
        word = "atypical" if many.labels[0] else "normal"
        raise DataError(f"all {len(many)} patches are {word}: nothing can be scored", "a table with both classes")
    about = describe(subject, given, many, settings)
    with lock(folder / ".lock", f"another process audits into {folder}"):
        parts, asked = {}, only or [name for name in PARTS if name not in TRAINING]
        for name in PARTS:
            file = folder / "parts" / f"{name}.json"
            inputs = inputs_of(name, subject, many, settings)
            known = _known(file, inputs)
            if known is None and name in asked:
                known = run_part(name, subject, many, settings, folder)
                write_json(file, {**known, "inputs_sha256": inputs})
                say(f"{name:<12}{lines({name: known})[name]}  [{known['seconds']:.0f} s]")
            if known is not None:
                parts[name] = {key: value for key, value in known.items() if key != "schema_version"}
        found = Audit(folder, about, parts)
        write_json(folder / AUDIT_FILE, {**found.to_dict(), "provenance": provenance()})
        write_text(folder / PAGE_FILE, page(about, parts))
    return found


def inputs_of(name: str, subject: Subject, patches: Patches, settings: Settings) -> str:
    """Hash of all that a part's numbers depend on: the models' bytes, the point, the patches, release and own code; for
    one of `FROZEN` the weights that training started from, so that it runs again once they are there."""
    asked = [subject.identity, subject.kind, subject.point.to_dict(), subject.rule]
    content = [*asked, patches.identity, asdict(settings), subject.start() if name in FROZEN else ""]
    code = sha256_file(Path(__file__).with_name(f"{name}.py"))
    return sha256_json([name, *content, subject.seen(patches).tolist(), metadata.version("midog"), code])


def _known(file: Path, inputs: str) -> dict[str, Any] | None:
    """What the file holds, where it ran on the same inputs; a part that did not run is tried again."""
    if not file.is_file():
        return None
    content = read_json(file)
    return content if content.get("inputs_sha256") == inputs and "not_run" not in content else None


def run_part(name: str, subject: Subject, patches: Patches, settings: Settings, folder: Path) -> dict[str, Any]:
    """{found, seconds}, or {not_run: the reason, seconds}: one part must not cost the others."""
    began, place = time.monotonic(), [folder / name] if name in TRAINING else []
    try:
        content = {"found": part(name).measure(subject, patches, settings, *place)}
    except MidogError as error:
        content = {"not_run": error.render()}
    return {**content, "seconds": round(time.monotonic() - began, 1)}


def describe(subject: Subject, given: Patches, many: Patches, settings: Settings) -> dict[str, Any]:
    """What was audited, on what, as plain JSON."""
    few = many.draw(settings.limit, settings.seed)
    seen = int(subject.seen(many).sum())
    how = "" if subject.kind == "bundle" else ", each fold model on what it never saw"
    return {
        "what": (
            f"{subject.kind} {subject.name} at operating point {subject.point.name}{how}: {len(many):,} of "
            f"{given.given:,} patches, {len(few):,} in the parts that ask again and again"
        ),
        "subject": {
            "name": subject.name,
            "kind": subject.kind,
            "sha256": subject.identity,
            "point": subject.point.to_dict(),
        },
        "patches": {
            "given": given.given,
            "once": len(many),
            "again": len(few),
            "atypical": int(many.labels.sum()),
            "cases": case_index(many.cases)[1],
            "seen_in_training": seen,
            "sha256": many.identity,
        },
        "settings": asdict(settings),
    }
