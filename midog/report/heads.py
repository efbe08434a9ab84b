"""Where joint heads look and which concepts concept heads find, on patches that the fold model never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.data.patches import Patch, PatchTable
from midog.errors import MidogError
from midog.report.drawing import ATYPICAL, NORMAL, sheet
from midog.report.findings import Findings
from midog.report.markup import CLASSES, Drawing, Section, Thumbnail, escape, thumbnails
from midog.report.text import cell_text

DIM = 0.3
"""Brightness of what gets no attention."""
NAMED = 3
"""Concepts named under a patch."""
CAUTION = (
    "Patches that the first finished fold model never saw. Attention and concept scores show what a head weighs, not "
    "why it answers so: nothing was deleted to test them. The two pictures are principal components of the same "
    "features before and after the head."
)


def head_section(found: Findings) -> Section | None:
    """Maps and pictures of every member whose head has them."""
    table = found.predictions.table if found.predictions is not None else None
    if not found.head_maps or table is None:
        return None
    patches = {patch.patch_id: patch for patch in table}
    parts, drawings = [], []
    for name, maps in found.head_maps.items():
        items = [
            item for at, patch_id in enumerate(maps["ids"]) if (item := _item(table, patches.get(patch_id), maps, at))
        ]
        parts.append(f"<h3>{escape(name)}: {_what(maps)}</h3>\n{thumbnails(items)}")
        for word in ("before", "after"):
            kept = [at for at, patch_id in enumerate(maps["plotted"]) if patch_id in patches]
            labels = np.array([patches[maps["plotted"][at]].label for at in kept])
            points = np.asarray(maps[word], dtype=np.float64)[kept]
            caption = f"{name}, {word} the head: first two components, atypical in vermillion."
            drawings.append(Drawing(components(points, labels, f"{name}, {word} the head"), caption))
    return Section("What the heads look at", CAUTION, tuple(drawings), "\n".join(parts), small=True)


def _what(maps: Mapping[str, Any]) -> str:
    if maps["kind"] == "joint":
        return "attention, bright where it lies"
    origin = "prototype anchors, no language prior" if maps["anchors"] == "prototypes" else "text-derived anchors"
    return f"nearest concepts ({origin})"


def _item(table: PatchTable, patch: Patch | None, maps: Mapping[str, Any], at: int) -> Thumbnail | None:
    if patch is None:
        return None
    pixels, lines = _pixels(table, patch), tuple[str, ...]()
    truth = bool(patch.label)
    if maps["kind"] == "joint":
        attention = np.asarray(maps["attention"][at], dtype=np.float64)
        lines = (f"largest share {cell_text(float(attention.max()))} of {attention.size} tokens",)
        pixels = overlay(pixels, attention, int(maps["crop"])) if pixels is not None else None
    else:
        scores = np.asarray(maps["scores"][at], dtype=np.float64)
        order = np.argsort(-scores, kind="stable")[:NAMED]
        lines = tuple(f"{maps['concepts'][one]}: {scores[one]:+.1f}" for one in order)
    return Thumbnail(pixels, patch.patch_id, truth, f"label {CLASSES[int(truth)]}", lines)


def overlay(pixels: NDArray[np.uint8], attention: NDArray[np.float64], crop: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8, dimmed where a map over its central `crop` pixels is low, and all around them."""
    height, width = pixels.shape[:2]
    light = np.full((height, width), DIM)
    top, left = (height - crop) // 2, (width - crop) // 2
    down, along = ((np.arange(crop) * side // crop) for side in attention.shape)
    strength = attention / max(float(attention.max()), 1e-12)
    light[top : top + crop, left : left + crop] = DIM + (1 - DIM) * strength[down[:, None], along[None, :]]
    return np.asarray((pixels * light[..., None]).round(), dtype=np.uint8)


def components(points: NDArray[np.float64], labels: NDArray[np.int64], name: str) -> str:
    """(n, 2) principal components as dots, atypical ones on top."""
    with sheet(f"principal components of the features of {name}", 1.9, 1.9) as drawn:
        axes = drawn.axes()
        for label, colour in ((0, NORMAL), (1, ATYPICAL)):
            chosen = labels == label
            axes.plot(points[chosen, 0], points[chosen, 1], "o", color=colour, ms=2.4, mew=0, alpha=0.7)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("component 1")
        axes.set_ylabel("component 2")
    return drawn.svg


def _pixels(table: PatchTable, patch: Patch) -> NDArray[np.uint8] | None:
    from midog.data.images import read_image

    try:
        return np.asarray(read_image(table.file(patch)), dtype=np.uint8)
    except MidogError:
        return None
