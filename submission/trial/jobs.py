"""Job folders that cover what the platform can hand to an algorithm, made the same way every time.

Each job says what must come of it, so that any algorithm for this challenge can be tried on them, ours or not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from submission.challenge import TRACK2
from submission.trial.odd_tiffs import plain_page, planar_page, tiled_page, write_tiff, zero_page

Pixels = NDArray[np.uint8]
Fill = Callable[[Path], object]

SHAPES = ("A", "B", "C")
"""Of inputs.json: `interface` alone (2025), both keys (since December 2025), `socket` alone (new templates)."""
COUNT = 17
"""Patches that the jobs show: one more than the usual stack holds."""
BASE = "sixteen"
"""The job that is repeated under other conditions: a usual stack."""
DPI = (101600.0, 101600.0)
STRANGE = "stäck 😀\n\x1b[31m\ud800 " + "x" * 300 + ".tiff"
"""A user's file name that must not reach the log as it is; the lone surrogate is no valid text."""


@dataclass(frozen=True)
class Job:
    """One job folder and what must come of it.

    lines: of the check-list it serves. pages: entries expected; None: the algorithm must end with `status` and answer
    nothing. warns: at least one line on stderr is due. shows: per page, the number of the patch it shows unchanged, so
    that equal patches can be compared between jobs, or -1. labels: class words of the pages, where they are known.
    """

    name: str
    lines: tuple[str, ...]
    folder: Path
    pages: int | None
    status: int = 0
    warns: bool = False
    shows: tuple[int, ...] = ()
    labels: tuple[str, ...] | None = None


def make_jobs(folder: Path, patches: Pixels | None = None, labels: ArrayLike | None = None) -> tuple[Job, ...]:
    """Write all jobs below `folder`, which is emptied first; the same patches give the same bytes.

    Args:
        patches: (n, 128, 128, 3) uint8, the first 17 are used and repeated if there are fewer; None: drawn ones.
        labels: (n,) 0 normal, 1 atypical, of `patches`; None: not known.
    """
    if patches is None:
        patches, labels = draw_patches()
    order = np.arange(COUNT) % len(patches)
    words = None if labels is None else tuple(TRACK2.classes[int(label)] for label in np.asarray(labels)[order])
    shutil.rmtree(folder, ignore_errors=True)
    maker = Maker(folder, np.asarray(patches)[order], words)
    made = (*maker.usual(), *maker.layouts(), *maker.pixels(), *maker.listings(), *maker.refused())
    open_to_all(folder)
    return made


def open_to_all(folder: Path) -> None:
    """Let every user read below `folder`, whatever this user's umask: the algorithm runs as another."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def draw_patches(count: int = COUNT) -> tuple[Pixels, NDArray[np.int8]]:
    """Drawn mitotic figures, (n, 128, 128, 3) uint8, and their labels."""
    from midog.data.synthetic import draw_patch

    rng = np.random.default_rng(0)
    labels = np.array([i % 3 == 1 for i in range(count)], dtype=np.int8)
    return np.stack([draw_patch(bool(label), rng) for label in labels]), labels


def listing(shape: str, name: str = "stack.tiff", slug: str = TRACK2.input_slug) -> list[dict[str, Any]]:
    """inputs.json with one image, in one of the platform's three shapes."""
    where = f"images/{slug}"
    old = {"slug": slug, "kind": "Image", "super_kind": "Image", "relative_path": where}
    item: dict[str, Any] = {"file": None, "image": {"name": name}, "value": None}
    if shape == "A":
        return [{"interface": old | {"example_value": None}, **item}]
    if shape == "B":
        both: dict[str, Any] = old | {
            "title": "Stack",
            "description": "",
            "pk": 611,
            "overlay_segments": [],
            "look_up_table": None,
        }
        return [{"socket": both, "interface": both, **item, "pk": 90210}]
    kinds = {"is_image_kind": True, "is_panimg_kind": True, "is_dicom_image_kind": False, "is_json_kind": False}
    return [{"socket": {"slug": slug, "relative_path": where, **kinds}, **item}]


def save_pages(path: Path, images: Sequence[Image.Image], compression: str | None = "tiff_adobe_deflate") -> Path:
    """A TIFF as Pillow writes it, with the resolution that the platform asks for."""
    first, *rest = images
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, "TIFF", save_all=True, append_images=rest, compression=compression, dpi=DPI)
    return path


def pictures(patches: Sequence[Pixels] | Pixels) -> list[Image.Image]:
    return [Image.fromarray(patch) for patch in patches]


def write_mha(path: Path, array: NDArray[Any], vector: bool) -> None:
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=vector), str(path.with_suffix(".mha")), True)


@dataclass(frozen=True)
class Maker:
    """Writes jobs below `root` that show `patches`, (n, 128, 128, 3) uint8; `words`: their classes, where known."""

    root: Path
    patches: Pixels
    words: tuple[str, ...] | None

    def job(self, name: str, lines: str, fill: Fill, shows: Sequence[int], **more: Any) -> Job:
        """One job: `fill` writes the file whose path it is given. `shape` "" leaves inputs.json out."""
        suffix, shape = more.pop("suffix", ".tiff"), more.pop("shape", "B")
        stem = more.pop("stem", f"0b5e3c5e-6f0f-4a59-8a3b-{len(name):012x}")
        content, slug = more.pop("listing", None), more.pop("slug", TRACK2.input_slug)
        of = more.pop("of", tuple(shows))  # the patches behind the pages, altered ones too
        folder = self.root / name
        images = folder / "images" / slug
        images.mkdir(parents=True)
        fill(images / f"{stem}{suffix}")
        if content is None and shape:
            content = listing(shape, f"{name}.tiff", slug)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content, indent=1)
            (folder / TRACK2.inputs_file).write_text(text, encoding="utf-8")
        words = tuple(self.words[i] for i in of) if self.words and of and min(of) >= 0 else None
        pages = more.pop("pages", len(shows))
        return Job(name, tuple(lines.split()), folder, pages, shows=tuple(shows), labels=words, **more)

    def some(self, *which: int) -> Pixels:
        return self.patches[list(which)]

    def usual(self) -> Iterator[Job]:
        """B1 shapes, B2 suffixes, B3 numbers of pages, C7 order, C8 extremes."""

        def deflated(*which: int) -> Fill:
            return lambda path: save_pages(path, pictures(self.some(*which)))

        yield self.job(BASE, "B1 B2 B3", deflated(*range(16)), range(16))
        yield self.job("one", "B1 B2 B3", deflated(5), [5], shape="A", suffix=".tif")
        yield self.job("fifteen", "B1 B2 B3", deflated(*range(2, 17)), range(2, 17), shape="C", suffix=".TIF")
        yield self.job(
            "two", "B1 B2 B3 B7", lambda p: write_mha(p, self.some(0, 1), True), [0, 1], shape="", suffix=".mha",
            warns=True,
        )  # fmt: skip
        order = [int(i) for i in np.random.default_rng(7).permutation(COUNT)]
        yield self.job("permuted", "B3 C7", deflated(*order), order)
        black, white, even = (np.full((128, 128, 3), value, np.uint8) for value in (0, 255, 200))
        extremes = [black, white, even, even, self.patches[3]]
        yield self.job("extremes", "C8", lambda p: save_pages(p, pictures(extremes)), [-1, -1, -1, -1, 3])

    def layouts(self) -> Iterator[Job]:
        """B4: the same pages, otherwise laid out in the file."""
        pair = self.some(0, 1)
        yield self.job("planar", "B4", lambda p: write_tiff(p, [planar_page(x) for x in pair]), [0, 1])
        yield self.job("tiled", "B4", lambda p: write_tiff(p, [tiled_page(x, 48) for x in pair]), [0, 1])
        yield self.job("bigtiff", "B4", lambda p: write_tiff(p, [plain_page(x) for x in pair], big=True), [0, 1])
        yield self.job("uncompressed", "B4", lambda p: save_pages(p, pictures(pair), None), [0, 1])
        yield self.job("lzw", "B4", lambda p: save_pages(p, pictures(pair), "tiff_lzw"), [0, 1])
        yield self.job("jpeg", "B4", lambda p: save_pages(p, pictures(pair), "jpeg"), [-1, -1], of=(0, 1))

    def pixels(self) -> Iterator[Job]:
        """B5 kinds of pixels, B6 sizes, B7 MHA, B8 a damaged page."""
        pair = self.some(0, 1)
        grey = pair[0].mean(axis=2).astype(np.uint8)
        alpha = np.dstack([pair[0], grey])
        first, second = pictures(pair)
        mixed = [Image.fromarray(alpha), second.convert("P"), Image.fromarray(grey), first.convert("CMYK")]
        yield self.job("mixed", "B5", lambda p: save_pages(p, mixed), [0, -1, -1, -1], of=(0, 1, 0, 0))
        wide = [plain_page(x.astype(np.uint16) * 256 + 77) for x in pair]
        yield self.job("rgb16", "B5", lambda p: write_tiff(p, wide), [0, 1])
        deep = [plain_page(grey.astype(np.uint16) << 8), plain_page(grey.astype(np.float32) / 255)]
        yield self.job("grey-deep", "B5", lambda p: write_tiff(p, deep), [-1, -1], of=(0, 0))
        floats = [plain_page(x.astype(np.float32) / 255) for x in pair]
        yield self.job("rgb-float", "B5", lambda p: write_tiff(p, floats), [0, 1])

        sizes = [(64, 64), (256, 256), (100, 140), (129, 127), (1, 1), (200, 20000)]
        odd = [np.resize(pair[0], (*size, 3)) for size in sizes]
        yield self.job("sizes", "B6", lambda p: save_pages(p, pictures(odd)), [-1] * len(odd))
        huge = [zero_page(20000, 20000), plain_page(pair[1]), zero_page(20000, 20000)]
        yield self.job("huge", "B6", lambda p: write_tiff(p, huge), [-1, 1, -1])

        for name, array, vector, shows in (
            ("mha-flat", pair[0], True, [0]),
            ("mha-colour", pair[0], False, [0]),
            ("mha-colours", pair, False, [0, 1]),
            ("mha-grey", grey, False, [-1]),
            ("mha-greys", pair[..., 1], False, [-1, -1]),
        ):
            fill = self._mha(array, vector)
            yield self.job(name, "B7", fill, shows, suffix=".mha", of=tuple(range(len(shows))))

        yield self.job("damaged", "B8", self._damaged, [0, -1, 2], warns=True, of=(0, 1, 2))

    def _mha(self, array: NDArray[Any], vector: bool) -> Fill:
        return lambda path: write_mha(path, array, vector)

    def _damaged(self, path: Path) -> None:
        """Three pages; the second's strip is no deflate stream."""
        save_pages(path, pictures(self.some(0, 1, 2)))
        with Image.open(path) as image:
            image.seek(1)
            tags: Any = getattr(image, "tag_v2", {})
            start, size = tags[273][0], tags[279][0]
        content = bytearray(path.read_bytes())
        content[start : start + size] = b"\xff" * size
        path.write_bytes(content)

    def listings(self) -> Iterator[Job]:
        """B10 links, B11 hidden files, B12 foreign inputs, and the names that log lines must survive."""

        def stack(path: Path) -> object:
            return save_pages(path, pictures(self.some(0, 1)))

        def hidden(path: Path) -> None:
            stack(path)
            for name in (".DS_Store", "._stack.tiff", ".stack.tif"):
                (path.parent / name).write_bytes(b"\0\0\0\1Bud1")

        made = self.job("link-target", "B10", stack, [0, 1])
        link = self.root / "link"
        link.symlink_to(made.folder.name)
        yield Job("link", ("B10",), link, 2, shows=(0, 1), labels=made.labels)
        yield self.job("hidden", "B11", hidden, [0, 1])
        foreign = listing("C", "other.tiff", "colon-biopsy")
        number = {"socket": {"slug": "age", "relative_path": "age.json"}, "value": 61, "image": None, "file": None}
        extra = [{**number, "later": {"a": [1]}}, {**listing("C")[0], "later": "unknown"}]
        yield self.job("extra-keys", "B12", stack, [0, 1], listing=extra)
        yield self.job("foreign", "B12", stack, [0, 1], listing=foreign, slug="colon-biopsy", warns=True)
        yield self.job("strange-name", "B12 D10", stack, [0, 1], listing=listing("B", STRANGE))
        yield self.job("no-json", "B1", stack, [0, 1], listing="[{", warns=True)

    def refused(self) -> Iterator[Job]:
        """B9 and what else no answer can be given to: status 5 and one clear line."""

        def stack(path: Path) -> Path:
            return save_pages(path, pictures(self.some(0, 1)))

        def cut(path: Path) -> None:
            path.write_bytes(stack(path).read_bytes()[:-40])

        def two(path: Path) -> None:
            stack(path)
            for name in (b"second.tif", b"third \xff\xfe.tiff", "vierte 😀\n.mha".encode()):
                with open(bytes(path.parent) + b"/" + name, "wb") as file:  # noqa: PTH123 (a name that is no text)
                    file.write(b"II*\0")

        def one_foreign(path: Path) -> None:
            path.with_suffix(".png").write_bytes(b"\x89PNG")

        def none(path: Path) -> None:
            pass

        several = [*listing("C", "a", "one-slug"), *listing("C", "b", "another-slug")]
        outside = listing("C")
        outside[0]["socket"]["relative_path"] = "../../etc"
        for name, lines, fill, more in (
            ("cut", "B9", cut, {}),
            ("empty", "B9", none, {}),
            ("several", "B9 D10", two, {}),
            ("no-page", "B9", lambda p: write_tiff(p, []), {}),
            ("no-image", "B9", lambda p: p.write_bytes(b"not an image" * 50), {}),
            ("zero-bytes", "B9", lambda p: p.write_bytes(b""), {}),
            ("png", "B9", one_foreign, {}),
            ("foreign-several", "B12", stack, {"listing": several}),
            ("outside", "B12", stack, {"listing": outside}),
            ("no-folder", "B9", lambda p: p.parent.rmdir(), {}),
        ):
            yield self.job(name, lines, fill, [], status=5, **{"pages": None, **more})
