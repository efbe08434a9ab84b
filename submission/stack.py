"""One job: find its stack of patches and read every page; write such a job.

Torch-free, so that the input is read before anything heavy is imported. Pages never share state.
Source of the rules: public code of grand-challenge.org and readings of Pillow, tifffile and SimpleITK side by side.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from midog.data.pixels import to_rgb
from midog.errors import ContractError
from midog.files import write_text
from submission.arrays import array_to_rgb, split_pages
from submission.challenge import TRACK2, plain

Pixels = NDArray[np.uint8]

REDUCED = 1  # bit of TIFF tag 254 that marks a reduced-resolution page


@dataclass(frozen=True)
class Stack:
    """The pages of one job in file order.

    `pages` holds (h, w, 3) uint8 RGB, or None where a page could not be decoded; `name` is the user's file name,
    for messages and for the evaluator's join; `notes` are warnings, one line each.
    """

    path: Path
    name: str
    pages: tuple[Pixels | None, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def readable(self) -> tuple[int, ...]:
        """Indices of the pages that hold an image."""
        return tuple(i for i, page in enumerate(self.pages) if page is not None)


def read_job(folder: Path | str) -> Stack:
    """Read the one stack of a job folder (`/input` on the platform).

    Accepts the three shapes of inputs.json the platform has used, and none at all.

    Raises: ContractError where no single stack can be told, or its number of pages.
    """
    path, name, notes = find_stack(Path(folder))
    stack = read_stack(path)
    return Stack(path, name or path.name, stack.pages, (*notes, *stack.notes))


def find_stack(folder: Path) -> tuple[Path, str, tuple[str, ...]]:
    """Path of the stack, the user's name for it ("" if unknown), and warnings.

    Raises: ContractError for a missing folder, foreign inputs only, a path outside `folder`, none or several files.
    """
    notes: list[str] = []
    relative, name = TRACK2.image_folder, ""
    listing = folder / TRACK2.inputs_file
    items = _read_items(listing, notes)
    if items is not None:
        item = _choose_item(items, notes)
        socket = _socket(item)
        relative = socket.get("relative_path") or relative
        image = item.get("image")
        name = str(image.get("name") or "") if isinstance(image, dict) else ""
    inside = PurePosixPath(str(relative))
    if inside.is_absolute() or ".." in inside.parts:
        raise ContractError(
            f"{TRACK2.inputs_file} points outside the input folder: {plain(relative)}",
            "relative_path must stay below the input folder",
        )
    return _only_image(folder / inside), name, tuple(notes)


def _read_items(listing: Path, notes: list[str]) -> list[dict[str, Any]] | None:
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"no {TRACK2.inputs_file}: looking in {TRACK2.image_folder}")
        return None
    except (OSError, ValueError) as error:
        notes.append(f"{TRACK2.inputs_file} is not readable ({plain(error)}): looking in {TRACK2.image_folder}")
        return None
    if not isinstance(content, list):
        content = [content]
    return [item for item in content if isinstance(item, dict)]


def _socket(item: dict[str, Any]) -> dict[str, Any]:
    for key in ("socket", "interface"):
        if isinstance(item.get(key), dict):
            return dict(item[key])
    return {}


def _choose_item(items: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    ours = [item for item in items if _socket(item).get("slug") == TRACK2.input_slug]
    if len(ours) == 1:
        return ours[0]
    images = [item for item in items if isinstance(item.get("image"), dict)]
    slugs = [plain(_socket(item).get("slug", "no slug")) for item in items]
    if not ours and len(images) == 1:
        notes.append(f"no input {TRACK2.input_slug}: taking the only image, {plain(_socket(images[0]).get('slug'))}")
        return images[0]
    raise ContractError(
        f"{TRACK2.inputs_file} has {len(ours)} inputs named {TRACK2.input_slug}",
        "give the job exactly one stack of patches",
        [f"input {slug}" for slug in slugs] or ["the list is empty"],
    )


def _only_image(folder: Path) -> Path:
    try:
        visible = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        reason = error.strerror or "not a folder"
        raise ContractError(f"cannot list {folder}: {reason}", "put the stack of patches there") from error
    found = [entry for entry in visible if entry.suffix.casefold() in TRACK2.image_suffixes and entry.is_file()]
    if len(found) == 1:
        return found[0]
    raise ContractError(
        f"{folder} holds {len(found)} images, not one",
        f"leave exactly one {', '.join(TRACK2.image_suffixes)} file there",
        [plain(entry.name) for entry in visible] or ["the folder is empty"],
    )


def read_stack(path: Path | str) -> Stack:
    """Read every page of a TIFF or MHA stack; a page that cannot be decoded is None, with a warning.

    N is Pillow's page count for a TIFF, because the challenge's own container counts so.

    Raises: ContractError when the pages cannot be counted: no answer could be right.
    """
    path = Path(path)
    notes: list[str] = []
    # Pillow's and SimpleITK's complaints about odd tags would only clutter the log that participants see.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pages = tuple(_read_itk(path, notes) if path.suffix.casefold() == ".mha" else _read_tiff(path, notes))
    return Stack(path, path.name, pages, tuple(notes))


def _uncountable(path: Path, reason: object) -> ContractError:
    return ContractError(
        f"the pages of {plain(path.name)} cannot be counted: {plain(reason)}",
        "the file is damaged or cut short: write or upload the stack again",
    )


def _read_tiff(path: Path, notes: list[str]) -> Iterator[Pixels | None]:
    try:
        directories = count_directories(path)
        try:
            image = _open_image(path)
        except UnidentifiedImageError:
            yield from _read_itk(path, notes, directories)  # float RGB, which Pillow does not know
            return
        count: int = getattr(image, "n_frames", 1)
    except ContractError:
        raise
    except Exception as error:  # a cut file raises TypeError, SyntaxError or OSError, depending on where
        raise _uncountable(path, error) from error
    for page in range(count):
        try:
            image.seek(page)
            if getattr(image, "tag_v2", {}).get(254, 0) & REDUCED:
                notes.append(f"page {page} is marked as a reduced-resolution copy: kept, as the reference does")
            yield to_rgb(image)
        except Exception as error:
            notes.append(_undecodable(page, error))
            yield None
            image.close()  # what a failed decoder left behind must not touch the next page
            image = _open_image(path)
    image.close()


def _open_image(path: Path) -> Image.Image:
    """The file at its first page. Pillow refuses a file whose first page is too large; here only that page is lost."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        return TiffImageFile(path)


def _undecodable(page: int, error: Exception) -> str:
    return f"page {page} cannot be decoded ({plain(error)}): the training prevalence stands in"


def count_directories(path: Path) -> int | None:
    """Pages of a TIFF by its chain of directories; None where the file is no TIFF.

    Pillow takes a file cut inside a directory's last bytes for a shorter stack, so the chain is followed here too.

    Raises: EOFError when the file ends before its chain does.
    """
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return None
        magic = struct.unpack(order + "H", head[2:4])[0]
        if magic not in (42, 43):
            return None
        entries, pointer, size = ("H", "I", 12) if magic == 42 else ("Q", "Q", 20)
        file.seek(4 if magic == 42 else 8)
        offset = _number(file, order + pointer)
        seen: set[int] = set()
        while offset and offset not in seen:
            seen.add(offset)
            file.seek(offset)
            file.seek(_number(file, order + entries) * size, 1)
            offset = _number(file, order + pointer)
    return len(seen)


def _number(file: BinaryIO, form: str) -> int:
    content = file.read(struct.calcsize(form))
    if len(content) < struct.calcsize(form):
        raise EOFError("the file ends inside its list of pages")
    return int(struct.unpack(form, content)[0])


def _read_itk(path: Path, notes: list[str], expected: int | None = None) -> Iterator[Pixels | None]:
    """Pages of a file by SimpleITK; `expected` is the number the file itself announces, where known."""
    try:
        import SimpleITK

        # Named, because SimpleITK chooses a reader by the suffix and knows none for ".MHA".
        image: Any = SimpleITK.ReadImage(str(path), imageIO="MetaImageIO" if expected is None else "TIFFImageIO")
        array: NDArray[Any] = SimpleITK.GetArrayFromImage(image)
        pages = split_pages(array, vector=image.GetNumberOfComponentsPerPixel() > 1)
    except Exception as error:
        raise _uncountable(path, str(error).strip().rpartition("\n")[2]) from error
    if expected is not None and expected != len(pages):
        raise _uncountable(path, f"{len(pages)} of {expected} pages could be read")
    for number, page in enumerate(pages):
        try:
            yield array_to_rgb(page)
        except Exception as error:
            notes.append(_undecodable(number, error))
            yield None


def write_stack(path: Path | str, images: Sequence[Pixels]) -> Path:
    """Write (h, w, 3) uint8 images as the pages of a deflated TIFF at 0.25 µm/px.

    The resolution is set because the platform refuses a TIFF without one.
    """
    dpi = 25400 / TRACK2.mpp
    first, *rest = [Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8)) for image in images]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, "TIFF", save_all=True, append_images=rest, compression="tiff_adobe_deflate", dpi=(dpi, dpi))
    return path


def write_job(folder: Path | str, images: Sequence[Pixels], name: str = "stack.tiff") -> Path:
    """Write a whole job folder as the platform lays it out today: inputs.json and the stack. Returns the folder."""
    folder = Path(folder)
    write_stack(folder / TRACK2.image_folder / name, images)
    socket = {
        "slug": TRACK2.input_slug,
        "kind": "Image",
        "super_kind": "Image",
        "relative_path": TRACK2.image_folder,
    }
    item = {"socket": socket, "interface": socket, "value": None, "file": None, "image": {"name": name}}
    write_text(folder / TRACK2.inputs_file, json.dumps([item], indent=1) + "\n")
    return folder
