"""The ledger of submissions: which image was saved from what, whether it was sent, and what the site reported.

One JSON object per line. An image is `saved` once the upload check is through, `sent` when a person says so, `scored`
when the site's scores are noted; a later line repeats what the first one knew. The platform refuses an image that was
uploaded before, to any algorithm: hence `used_before`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from midog.errors import DataError, UsageError, unknown
from midog.files import SCHEMA_VERSION, check_schema, lock, write_text
from submission.challenge import TRACK2

LEDGER_FILE = "submissions.jsonl"
EVENTS = ("saved", "sent", "scored")
OFFICIAL = "overall_"  # what the site puts before a metric's name
SHOWN_DIGEST = 12  # hexadecimal digits


def now() -> str:
    """The time as the ledger writes it, UTC to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Entry:
    """One line. Digests are hexadecimal sha256, that of the image with `sha256:` before it; "" where unknown.

    `scores` are cross-fitted on the training data, `reported` by the site; metric name → value in [0, 1].
    """

    event: str
    image: str
    date: str = field(default_factory=now)
    archive: str = ""
    tarball: str = ""
    bundle: str = ""
    submission: str = ""
    commit: str = ""
    recipe: str = ""
    data_sha256: str = ""
    folds_sha256: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)
    note: str = ""


def read_ledger(path: Path | str = LEDGER_FILE) -> tuple[Entry, ...]:
    """All entries, oldest first; none where there is no file. A last line that was cut short is passed over.

    Raises: DataError for any other damaged line, all at once; UsageError when a newer release wrote one.
    """
    path = Path(path)
    lines, problems, entries = _whole_lines(path), [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_parse(line, f"{path}, line {number}"))
        except (ValueError, TypeError) as error:
            problems.append(f"line {number}: {error}")
    if problems:
        fix = "repair or delete these lines; the other ones are whole"
        raise DataError(f"the ledger {path} has damaged lines", fix, problems)
    return tuple(entries)


def _whole_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read the ledger {path}: {error.strerror or error}", "check its permissions") from error
    *whole, last = content.split(b"\n")
    if last.strip():  # no line end: cut short by a kill, unless an editor left it away
        try:
            json.loads(last)
        except ValueError:
            pass
        else:
            whole.append(last)
    return [line.decode("utf-8", errors="backslashreplace") for line in whole]


def _parse(line: str, where: str) -> Entry:
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    check_schema(content, where)
    known = {item.name for item in fields(Entry)}
    entry = Entry(**{key: value for key, value in content.items() if key in known})
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    """Raises: ValueError for a field of another type, or an unknown event."""
    for item in fields(entry):
        value = getattr(entry, item.name)
        if item.name in ("scores", "reported"):
            numbers = isinstance(value, dict) and all(_is_share(score) for score in value.values())
            if not numbers:
                raise ValueError(f"{item.name} is no object of numbers from 0 to 1")
        elif not isinstance(value, str):
            raise ValueError(f"{item.name} is no text")
    if entry.event not in EVENTS:
        raise ValueError(f"event is {entry.event!r}, not one of {', '.join(EVENTS)}")


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1  # NaN is not


def append(path: Path | str, entry: Entry) -> Path:
    """Add `entry` as the last line: the file is whole before and after, and a cut last line goes.

    Raises: DataError for an entry or a ledger that is not valid; UsageError while another process writes to it.
    """
    path = Path(path)
    try:
        _check(entry)
    except ValueError as error:
        raise DataError(f"this is no entry of a ledger: {error}") from None
    with lock(path.with_name(f".{path.name}.lock"), f"another process writes to {path}"):
        read_ledger(path)  # raises
        line = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(entry)}, ensure_ascii=False, allow_nan=False)
        return write_text(path, "".join(f"{text}\n" for text in [*_whole_lines(path), line]))


def used_before(entries: Iterable[Entry], digest: str) -> Entry | None:
    """The first entry that says that the image, or the model tarball, of this digest was uploaded; None for none.

    Saved alone is not uploaded; scored is, whether or not somebody noted that it was sent.
    """
    wanted = _bare(digest)
    uploaded = (entry for entry in entries if entry.event != "saved")
    return next((e for e in uploaded if wanted and wanted in (_bare(e.image), _bare(e.tarball))), None)


def mark_sent(path: Path | str, which: str, note: str = "") -> Entry:
    """Note that a saved image was uploaded. `which` as for `report_scores`, which also tells what is raised."""
    entry = replace(find_entry(read_ledger(path), which), event="sent", date=now(), reported={}, note=note)
    append(path, entry)
    return entry


def report_scores(path: Path | str, which: str, scores: Mapping[str, float], note: str = "") -> Entry:
    """Note what the site reported for an image.

    Args:
        which: submission id, or the first digits of the image's, archive's or bundle's digest.
        scores: metric → value in [0, 1], by the site's names (`overall_balanced_accuracy`) or the short ones.

    Raises: UsageError when `which` fits no image or several (they are listed), for an unknown metric (with the nearest
        name), or a value out of range.
    """
    reported = {}
    for name, value in scores.items():
        short = name.removeprefix(OFFICIAL)
        if short not in TRACK2.overall_keys:
            given = [OFFICIAL + key if name.startswith(OFFICIAL) else key for key in TRACK2.overall_keys]
            raise unknown("metric", name, given)
        if not _is_share(value) or not math.isfinite(value):
            raise UsageError(f"{name} is {value}", "a score lies between 0 and 1, such as 0.8842")
        reported[short] = float(value)
    if not reported:
        raise UsageError("no score was given", "such as balanced_accuracy=0.8842")
    entry = find_entry(read_ledger(path), which)
    entry = replace(entry, event="scored", date=now(), reported=reported, note=note)
    append(path, entry)
    return entry


def find_entry(entries: Sequence[Entry], which: str) -> Entry:
    """The last saved entry of the one image that `which` names. Raises: UsageError with the candidates."""
    saved = [entry for entry in entries if entry.event == "saved"]
    exact = [entry for entry in saved if which and entry.submission == which]
    fitting = exact or [entry for entry in saved if which and _fits(entry, which)]
    images = {entry.image: entry for entry in fitting}
    if len(images) == 1:
        return fitting[-1]
    shown = [_describe(entry) for entry in (images or {entry.image: entry for entry in saved}).values()]
    if images:
        raise UsageError(f"{which} fits {len(images)} images", "give more digits, or the submission id", shown)
    fix = "give a submission id, or the first digits of a digest" if shown else "save an image first"
    raise UsageError(f"the ledger holds no image {which!r}", fix, shown)


def _fits(entry: Entry, which: str) -> bool:
    digests = (entry.image, entry.archive, entry.tarball, entry.bundle)
    return entry.submission.startswith(which) or any(_bare(digest).startswith(_bare(which)) for digest in digests)


def _describe(entry: Entry) -> str:
    return f"{entry.submission or 'no id'}: image {_short(entry.image)}, archive {_short(entry.archive)}, {entry.date}"


def ledger_table(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One row per image, in order of saving: what it is, how far it came, its own scores and the site's.

    `ba` and `auroc` are cross-fitted, `site_ba` and `site_auroc` reported; None where unknown.
    """
    histories: dict[str, list[Entry]] = {}
    for entry in entries:
        histories.setdefault(entry.image, []).append(entry)
    return [_row(history) for history in histories.values()]


def _row(history: Sequence[Entry]) -> dict[str, Any]:
    saved = next((entry for entry in reversed(history) if entry.event == "saved"), history[0])
    reported = {name: value for entry in history for name, value in entry.reported.items()}
    own = {name.removeprefix(OFFICIAL): value for name, value in saved.scores.items()}
    return {
        "date": saved.date,
        "submission": saved.submission,
        "image": _short(saved.image),
        "bundle": _short(saved.bundle),
        "recipe": saved.recipe,
        "commit": saved.commit[:SHOWN_DIGEST],
        "state": max((entry.event for entry in history), key=EVENTS.index),
        "ba": own.get("balanced_accuracy"),
        "auroc": own.get("roc_auc"),
        "site_ba": reported.get("balanced_accuracy"),
        "site_auroc": reported.get("roc_auc"),
        "note": "; ".join(dict.fromkeys(entry.note for entry in history if entry.note)),
    }


def _bare(digest: str) -> str:
    return digest.lower().removeprefix("sha256:")


def _short(digest: str) -> str:
    return _bare(digest)[:SHOWN_DIGEST]
