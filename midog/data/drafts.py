"""A table being read: what the readers of all layouts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midog.data.patches import Origin, Patch, PatchTable, Problem, parse_label
from midog.errors import DataError

IMAGES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
MIDOG21_SLIDES = 200
"""MIDOG++ and MIDOG25 number the slides of MIDOG 2021 (human breast) as that challenge did, 1 to 200."""


@dataclass
class Draft:
    """A table being read: rows, and everything wrong or remarkable, so that all of it is told at once."""

    source: Path
    dataset: str
    root: Path
    rows: list[tuple[Patch, Origin]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    findings: list[Problem] = field(default_factory=list)

    def note(self, problem: str, details: Sequence[str] = (), fix: str = "", kind: str = "data") -> None:
        self.findings.append(Problem(kind, f"{self.dataset}: {problem}", fix, tuple(details), fatal=False))

    def label(self, word: str, row: int) -> int | None:
        """The label of a word; an unknown one is noted with its row and counts as none."""
        try:
            return parse_label(word)
        except ValueError as error:
            self.bad.append(f"row {row}: {error}")
            return None

    def table(self) -> PatchTable:
        """Raises: DataError with every bad row; or when there is no row at all."""
        if self.bad:
            fix = "a label is one of: atypical, normal, AMF, NMF, 1, 0, True, False, or empty for unknown"
            raise DataError(f"{self.source}: {len(self.bad)} rows cannot be read", fix, self.bad)
        if not self.rows:
            raise DataError(f"{self.source} lists no patches", "it needs one line or one image per patch")
        alone = [patch.patch_id for patch, _ in self.rows if patch.case == patch.patch_id]
        if alone:
            self.note(
                f"{len(alone)} patches name no case, so each counts as its own; two of one slide may be told apart",
                fix="add a column case: slide or patient",
            )
        return PatchTable(
            tuple(p for p, _ in self.rows), self.root, tuple(o for _, o in self.rows), tuple(self.findings)
        )


def domain_of(tumour: str, scanner: str, laboratory: str) -> str:
    """The domain's words: tumour, scanner and laboratory, as far as they are known."""
    return " | ".join(word for word in (tumour, scanner, laboratory) if word)


def slide_case(filename: str) -> str:
    """Case of a slide of MIDOG++ or MIDOG25: "MIDOG21/002", the same as AMi-Br's, or "MIDOG++/403"."""
    stem = Path(filename).stem
    old = stem.isdigit() and int(stem) <= MIDOG21_SLIDES
    return f"MIDOG21/{int(stem):03d}" if old else f"MIDOG++/{stem}"


def locate(folder: Path, names: Sequence[str], usual: Sequence[str]) -> str:
    """The sub-folder of `folder` (a relative path, "." itself) that holds most of the first `names`.

    `usual` sub-folders are tried first, then the folder itself and all others in it. None holds any: the first tried.
    """
    sample = names[:: max(1, len(names) // 50)]
    others = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    candidates = list(dict.fromkeys([*usual, ".", *others]))
    return max(candidates, key=lambda sub: sum((folder / sub / name).is_file() for name in sample))


def tally_votes(votes: Sequence[int], label: int | None) -> tuple[str, bool]:
    """("atypical/all", whether the shown votes contradict the majority).

    Where they do, two further experts were asked whose votes are not in the file: a majority of five against three
    shown votes leaves one way to vote, both for the majority.
    """
    shown = sum(votes)
    if len(votes) < 2 or label is None:
        return (f"{shown}/{len(votes)}" if votes else ""), False
    if (2 * shown > len(votes)) == bool(label) or 2 * shown == len(votes):
        return f"{shown}/{len(votes)}", False
    return f"{shown + 2 * label}/{len(votes) + 2}", True


def note_contrary(draft: Draft, count: int) -> None:
    if count:
        draft.note(
            f"the majority column contradicts the three expert columns in {count} rows (five experts voted); "
            "the majority column is the label"
        )


def note_unlisted(draft: Draft, folder: str) -> None:
    """Note images of `folder` that no row of the draft names."""
    listed = {Path(patch.path).name for patch, _ in draft.rows}
    place = draft.root / folder
    if folder == "." or not place.is_dir():
        return
    extra = sorted(
        name for name in (p.name for p in place.iterdir()) if name not in listed and name.lower().endswith(IMAGES)
    )
    if extra:
        draft.note(f"{len(extra)} images in {folder} have no row and are not used", extra)


def without_repeats(draft: Draft) -> Draft:
    """One row per patch: a repeated one is kept once where all its rows agree, and left out where they do not."""
    counts = Counter(patch.patch_id for patch, _ in draft.rows)
    repeats: dict[str, list[tuple[Patch, Origin]]] = {}
    for patch, origin in draft.rows:
        if counts[patch.patch_id] > 1:
            repeats.setdefault(patch.patch_id, []).append((patch, origin))
    torn = {name for name, rows in repeats.items() if len({(p.label, p.case) for p, _ in rows}) > 1}
    lines = [f"{name}: rows {', '.join(str(o.row) for _, o in rows)}" for name, rows in repeats.items()]
    same = [line for line, name in zip(lines, repeats, strict=True) if name not in torn]
    other = [line for line, name in zip(lines, repeats, strict=True) if name in torn]
    if same:
        draft.note(f"{len(same)} file names are listed more than once, with one label; kept once", same)
    if other:
        draft.note(
            f"{len(other)} file names are listed more than once, with other labels or slides; left out", other,
            "to use one, delete its wrong rows",
        )  # fmt: skip
    seen: set[str] = set()
    kept = []
    for patch, origin in draft.rows:
        if patch.patch_id not in torn and patch.patch_id not in seen:
            kept.append((patch, origin))
        seen.add(patch.patch_id)
    draft.rows = kept
    return draft


def make_origin(path: Path, row: int, slide: str, x: str, y: str) -> Origin:
    return Origin(path.name, row, slide, _whole(x), _whole(y))


def _whole(word: str) -> int | None:
    try:
        return round(float(word))
    except ValueError:
        return None


def images_below(folder: Path) -> Iterator[tuple[str, str]]:
    """(relative path, name) of every image below a folder, sorted."""
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGES:
            yield file.relative_to(folder).as_posix(), file.name
