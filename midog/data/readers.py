"""From any layout to the patch table: recognise it by its header or folders, read it, one spelling per scanner."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from midog import files
from midog.data import published
from midog.data.drafts import IMAGES, Draft, domain_of, images_below, make_origin
from midog.data.patches import SPLITS, Patch, PatchTable, Problem, concatenate, parse_votes, read_table
from midog.errors import DataError

SPELLINGS = {"hamammatsuxr": "Hamamatsu XR"}
"""Known misspellings, letters and digits only, and the scanner they mean."""
PLAIN = (
    "path", "label", "case", "domain", "split", "fold", "tumour", "scanner", "laboratory", "species", "votes",
    "slide", "x", "y",
)  # fmt: skip
"""Columns of a plain CSV; path and label are needed. slide, x and y (pixels) find overlapping patches."""
SYNONYMS = {"tumor": "tumour", "lab": "laboratory"}


@dataclass(frozen=True)
class Layout:
    """A CSV layout: `needed` columns tell it, `read` reads (path, header, rows)."""

    name: str
    needed: tuple[str, ...]
    read: Callable[[Path, Sequence[str], Sequence[Sequence[str]]], PatchTable]


def read_layout(paths: Iterable[Path | str]) -> PatchTable:
    """Read one or more data sets, each a CSV file or a folder, into one table (in that order).

    Recognised: AMi-Br, MIDOG25, AtNorM-MD, AtNorM-Br, OMG-Octo, a plain CSV (`path,label[,case,domain,…]`) and this
    package's own patch table. Whatever is worth telling is in `.findings`.
    Raises: DataError for an unknown layout (naming its columns and the nearest layout) and for bad rows, all at once.
    """
    tables = [_read_one(Path(path)) for path in paths]
    if not tables:
        raise DataError("no data set named", "name a folder or a CSV file")
    return unify_scanners(concatenate(_with_unique_ids(tables)))


def read_images(folder: Path | str) -> PatchTable:
    """Every image below a folder, without labels, sorted by path; patch_id = path relative to the folder.

    Raises: DataError when it is no folder or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    found = [place for place, _ in images_below(folder)]
    if not found:
        raise DataError(f"{folder} holds no images", f"images end in {', '.join(IMAGES)}")
    return PatchTable(tuple(Patch(place, place, None, case=place) for place in found), folder.absolute())


def _read_one(path: Path) -> PatchTable:
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}", "check the path")
    header, rows = files.read_csv(path)
    header = [word.strip() for word in header]
    layout = recognise(header)
    if layout is None:
        raise _unknown_layout(str(path), header)
    if not rows:
        raise DataError(f"{path} has a header but no rows", "it needs one line per patch")
    return layout.read(path, header, rows)


def recognise(header: Sequence[str]) -> Layout | None:
    """The layout whose columns a header has, or None."""
    return next((layout for layout in LAYOUTS if set(layout.needed) <= set(header)), None)


def _read_folder(folder: Path) -> PatchTable:
    """The CSV of a layout in the folder; else its class folders; else the one data set a level below."""
    here = _table_in(folder)
    if here is not None:
        return here()
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _table_in(entry) is not None]
    if len(below) > 1:
        names = " ".join(str(entry) for entry in below)
        raise DataError(f"{folder} holds {len(below)} data sets", f"name those that are meant: midog check {names}")
    if below and (found := _table_in(below[0])) is not None:
        return found()
    headers = {path.name: ", ".join(files.read_csv(path)[0]) for path in sorted(folder.glob("*.csv"))}
    if len(headers) == 1:
        raise _unknown_layout(str(folder / next(iter(headers))), files.read_csv(folder / next(iter(headers)))[0])
    raise DataError(
        f"{folder} has no layout that is known: no CSV of one, and no folders Atypical and Normal",
        "name the CSV file; a plain one has the columns path,label[,case,domain]",
        [f"{name}: {header}" for name, header in headers.items()],
    )


def _table_in(folder: Path) -> Callable[[], PatchTable] | None:
    """What reads the data set that lies directly in a folder, None when none does."""
    chosen = _csv_in(folder)
    if chosen is not None:
        return lambda: _read_one(chosen)
    if {label for _, label, _ in published.class_folders(folder)} == {0, 1}:
        return lambda: published.read_class_folders(folder)
    return None


def _csv_in(folder: Path) -> Path | None:
    """The one CSV of the folder to read: a known name first, else the only one of a known layout."""
    known = [path for path in sorted(folder.glob("*.csv")) if (layout := _layout_of(path)) is not None and layout]
    for name in ("patches.csv", "AMI-BR.csv", "MIDOG25_Atypical_Classification_Train_Set.csv", "synthetic.csv"):
        if folder / name in known:
            return folder / name
    if len(known) > 1:
        raise DataError(
            f"{folder} holds {len(known)} CSV files that could be meant",
            f"name one, like: midog check {known[0]}",
            [path.name for path in known],
        )
    return known[0] if known else None


def _layout_of(path: Path) -> Layout | None:
    try:
        header, _ = files.read_csv(path)
    except DataError:
        return None
    return recognise([word.strip() for word in header])


def _unknown_layout(where: str, header: Sequence[str]) -> DataError:
    def likeness(layout: Layout) -> float:
        words = [word.lower() for word in header]
        found = [difflib.get_close_matches(name, words, 1, 0.6) for name in layout.needed]
        return sum(map(bool, found)) / len(layout.needed)

    near = max(reversed(LAYOUTS), key=likeness)
    lacking = [name for name in near.needed if name not in header]
    return DataError(
        f"{where}: unknown layout, its columns are {', '.join(header)}",
        f"nearest is {near.name}: it lacks {', '.join(lacking)}; a plain CSV has path,label[,case,domain]",
    )


# ── plain CSV and our own table ───────────────────────────────────────────────────────────────────────────────────


def _read_own(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> PatchTable:
    return read_table(path)


def _read_plain(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> PatchTable:
    """`path,label` and any of PLAIN. patch_id = the path as given, relative to the CSV's folder."""
    draft = Draft(path, path.name, path.absolute().parent)
    header = [SYNONYMS.get(name.lower(), name) for name in header]
    ignored = [name or "(no name)" for name in header if name not in PLAIN]
    if ignored:
        draft.note(f"columns that mean nothing here are ignored: {', '.join(ignored)}")
    first: dict[str, Patch] = {}
    again: dict[str, list[str]] = {"same": [], "other": []}
    for number, row in enumerate(rows, 2):
        cell = {name: word.strip() for name, word in zip(header, row, strict=True)}
        patch = _plain_patch(draft, cell, number)
        if patch.path in first:
            same = replace(patch, votes="") == replace(first[patch.path], votes="")
            again["same" if same else "other"].append(f"row {number}: {patch.path}")
            continue
        first[patch.path] = patch
        place = make_origin(path, number, cell.get("slide", ""), cell.get("x", ""), cell.get("y", ""))
        draft.rows.append((patch, place))
    if again["same"]:
        draft.note(f"{len(again['same'])} rows repeat an earlier one; kept once", again["same"])
    if again["other"]:
        text = f"{path.name}: {len(again['other'])} rows name an earlier row's image with another label, case or domain"
        draft.findings.append(Problem("contradiction", text, "delete the wrong rows", tuple(again["other"])))
    return draft.table()


def _plain_patch(draft: Draft, cell: dict[str, str], number: int) -> Patch:
    label = draft.label(cell["label"], number)
    split, fold, votes = cell.get("split", "") or "train", cell.get("fold", ""), cell.get("votes", "")
    if not cell["path"]:
        draft.bad.append(f"row {number}: empty path")
    if split not in SPLITS:
        draft.bad.append(f"row {number}: unknown split {split!r}, the splits are train and test")
    if fold and not fold.isdigit():
        draft.bad.append(f"row {number}: unknown fold {fold!r}, a whole number from 0 or empty")
    try:
        parse_votes(votes)
    except ValueError as error:
        draft.bad.append(f"row {number}: {error}")
    tumour, scanner, laboratory = (cell.get(name, "") for name in ("tumour", "scanner", "laboratory"))
    return Patch(
        cell["path"],
        cell["path"],
        label,
        cell.get("case", "") or cell["path"],
        cell.get("domain", "") or domain_of(tumour, scanner, laboratory),
        split,
        int(fold) if fold.isdigit() else None,
        tumour,
        scanner,
        laboratory,
        cell.get("species", ""),
        votes,
    )


LAYOUTS = (
    Layout("a patch table", ("patch_id", "path"), _read_own),
    Layout("AMi-Br", ("slide", "dataset", "uid", "majority_atypical"), published.read_amibr),
    Layout("MIDOG25", ("image_id", "filename", "majority"), published.read_image_ids),
    Layout("OMG-Octo", ("image_file", "label"), published.read_octo),
    Layout("a plain CSV", ("path", "label"), _read_plain),
)


# ── several tables, several spellings ─────────────────────────────────────────────────────────────────────────────


def _with_unique_ids(tables: Sequence[PatchTable]) -> list[PatchTable]:
    """Two data sets may use the same relative paths as ids: the later one's get its folder's name in front."""
    taken: set[str] = set()
    taken_files: set[str] = set()
    result: list[PatchTable] = []
    for number, table in enumerate(tables, 1):
        clash = [name for name in table.ids if name in taken]
        named = {str(table.file(patch)) for patch in table}
        if clash and not named <= taken_files:  # the same table named twice is left for the check to tell
            front = table.root.name
            if any(f"{front}/{name}" in taken for name in table.ids):
                front = f"{front}-{number}"
            renamed = tuple(
                replace(
                    p, patch_id=f"{front}/{p.patch_id}", case=f"{front}/{p.case}" if p.case == p.patch_id else p.case
                )
                for p in table
            )
            text = f"{len(clash)} patch ids are taken by an earlier data set; those of {table.root} begin with {front}/"
            table = replace(table, patches=renamed, findings=(*table.findings, Problem("data", text, fatal=False)))
        taken.update(table.ids)
        taken_files |= named
        result.append(table)
    return result


def unify_scanners(table: PatchTable) -> PatchTable:
    """One spelling per scanner, in `scanner` and in `domain`, with a note for each that was changed."""
    counts = Counter(patch.scanner for patch in table if patch.scanner)
    meant = same_scanners(counts)
    if not meant:
        return table
    notes = tuple(
        Problem("data", f"scanner {wrong!r} ({counts[wrong]} patches) is read as {right!r}", fatal=False)
        for wrong, right in sorted(meant.items())
    )

    def spelt(patch: Patch) -> Patch:
        right = meant.get(patch.scanner)
        return (
            patch if right is None else replace(patch, scanner=right, domain=patch.domain.replace(patch.scanner, right))
        )

    return replace(table, patches=tuple(spelt(patch) for patch in table), findings=(*table.findings, *notes))


def same_scanners(counts: dict[str, int] | Counter[str]) -> dict[str, str]:
    """Spelling → the spelling it is read as, for those that are another spelling of one scanner.

    Two are one when they differ in case, spaces and punctuation alone, or in one or two letters of a long name with
    the same digits (S60 and S360 are two scanners). The known right spelling wins, else the most frequent one.
    """
    names = sorted(counts, key=lambda name: (-counts[name], name))
    right = [SPELLINGS.get(_letters(name), name) for name in names]
    heads: list[str] = []
    meant: dict[str, str] = {}
    for name, spelling in zip(names, right, strict=True):
        head = next((h for h in heads if _alike(h, spelling)), None)
        if head is None:
            heads.append(spelling)
            head = spelling
        if head != name:
            meant[name] = head
    return meant


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _alike(one: str, two: str) -> bool:
    a, b = _letters(one), _letters(two)
    if a == b:
        return True
    if re.findall(r"\d+", a) != re.findall(r"\d+", b) or min(len(a), len(b)) < 8:
        return False
    # A model is the last word, as in CS and CS2 or XR and S210: only the maker's name may be misspelt.
    return one.split()[-1].lower() == two.split()[-1].lower() and difflib.SequenceMatcher(None, a, b).ratio() >= 0.9
