"""`midog predict`: a patch table, a folder of images, a stack or a job, classified in input order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from midog.errors import DataError, UsageError, unknown
from midog.result import Result, seen_note
from submission.challenge import TRACK2
from submission.model import import_heavy
from submission.stack import Stack, read_job, read_stack

if TYPE_CHECKING:
    from midog.bundle import Bundle
    from midog.data.patches import PatchTable

TABLE_SUFFIXES = (".csv",)


def predict_what(bundle: Bundle, what: Path | str, split: str | None = None) -> Result:
    """Classify whatever `what` is.

    Args:
        bundle: open, at its operating point.
        what: patch table (CSV), folder of images, challenge job folder, stack (.tif, .tiff, .mha) or one image. Patch
            ids are the table's, the path relative to the folder, or the page from 0.
        split: of a patch table, only these rows.

    Returns: one row per patch; the last note counts those the bundle was trained on.

    Raises: DataError for images that cannot be read, all at once; ContractError for a stack whose pages cannot be
        counted; UsageError for a split that is not there.
    """
    what = Path(what)
    if not what.exists():
        raise DataError(f"no such file or folder: {what}", "give a patch table, a folder of images, or a stack")
    if split is not None and what.suffix.casefold() not in TABLE_SUFFIXES:
        raise UsageError(f"{what} has no splits", "--split belongs to a patch table")
    import_heavy()
    if what.is_dir():
        if (what / TRACK2.inputs_file).is_file() or (what / TRACK2.image_folder).is_dir():
            return _finish(_predict_stack(bundle, read_job(what)))
        from midog.data.readers import read_images

        return _finish(_predict_table(bundle, read_images(what)))
    if what.suffix.casefold() in TABLE_SUFFIXES:
        from midog.data.readers import read_layout

        table = read_layout([what])
        return _finish(_predict_table(bundle, _rows_of(table, split)))
    if what.suffix.casefold() in TRACK2.image_suffixes:
        return _finish(_predict_stack(bundle, read_stack(what)))
    from midog.data.pixels import read_image

    return _finish(bundle.predict([read_image(what)], mpp=None, ids=[what.name]))


def _finish(result: Result) -> Result:
    return replace(result, notes=(*result.notes, *seen_note(result)))


def _rows_of(table: PatchTable, split: str | None) -> PatchTable:
    if split is None:
        return table
    splits = table.column("split")
    if split not in set(splits):
        raise unknown("split", split, {str(name) for name in splits})
    return table.subset(splits == split)


def _predict_stack(bundle: Bundle, stack: Stack) -> Result:
    result = bundle.predict(stack.pages, mpp=None)
    return replace(result, notes=(*stack.notes, *result.notes))


def _predict_table(bundle: Bundle, table: PatchTable) -> Result:
    """Patches through the same store as training; where some are of another size or mode, image by image."""
    from midog.data.pixels import Pixels, read_image, scan_images

    scan = scan_images(table)
    if not scan.faults:
        return bundle.predict(Pixels(scan), mpp=None, ids=table.ids)
    unusable = [fault for fault in scan.faults if fault.kind not in ("size", "mode")]
    if unusable:
        raise DataError(
            f"{len(unusable)} of {len(table)} images cannot be used",
            "repair the files, or delete their rows",
            [f"{table.origin(fault.index)}: {fault.text}" for fault in unusable],
        )
    result = bundle.predict([read_image(table.file(patch)) for patch in table], mpp=None, ids=table.ids)
    note = f"{len(scan.faults)} images are no 128 × 128 8-bit RGB: converted, centre cut out or mirrored, as in a stack"
    return replace(result, notes=(note, *result.notes))
