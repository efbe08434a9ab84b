"""Magnification, and how much of the surroundings the model needs."""

from __future__ import annotations

from typing import Any

from midog.audit.figures import curve, said
from midog.audit.geometry import keep_centre, magnify
from midog.audit.measure import Settings, score
from midog.audit.patches import Change, Patches
from midog.audit.subject import Subject
from midog.report.markup import Drawing, Section

TITLE = "Field and scale"
SCALES = (0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0)
CROPS = (32, 48, 64, 80, 96, 112, 128)
TEXT = (
    "Look at how fast the curve falls on both sides of 1: a scanner's nominal 0.25 µm per pixel may be off by some "
    "per cent, so good is a flat top from .8 to 1.25. In the second figure the surroundings are painted over with "
    "the patch's mean colour: good is a curve that has risen by 64 pixels, for the figure itself lies inside; one "
    "that only rises at the right end needs the surroundings. Below 1 the rim is mirrored tissue, so the left end "
    "is pessimistic."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores at each magnification, and with each central square alone."""
    few = patches.draw(settings.limit, settings.seed)

    def at(change: Change | None) -> dict[str, Any]:
        found = subject.answer(few, change)
        return score(few.labels, found.p, found.called, few.cases)

    return {
        "magnification": [{"scale": s, **at(None if s == 1 else _magnified(s))} for s in SCALES],
        "crop": [{"pixels": c, **at(None if c == CROPS[-1] else _cropped(c))} for c in CROPS],
    }


def headline(found: dict[str, Any]) -> str:
    scales = {row["scale"]: row["balanced_accuracy"] for row in found["magnification"]}
    return f"BA {said(scales[1.0])} as it is, {said(scales[0.8])} at .8 and {said(scales[1.25])} at 1.25 magnification"


def section(found: dict[str, Any]) -> Section:
    """Balanced accuracy over magnifications, and with the centre of the patch alone."""
    scales, crops = found["magnification"], found["crop"]
    drawings = (
        Drawing(
            curve(
                {"": [row["balanced_accuracy"] for row in scales]},
                "magnification",
                range(len(scales)),
                [f"{row['scale']:g}" for row in scales],
                mark=SCALES.index(1.0),
            ),
            "Balanced accuracy at other magnifications; the upright line is the patch as it is.",
        ),
        Drawing(
            curve(
                {"": [row["balanced_accuracy"] for row in crops]},
                "central pixels left",
                [row["pixels"] for row in crops],
                mark=CROPS[-1],
            ),
            "Balanced accuracy with the centre alone; dotted: chance. Bands: 95 % case-bootstrap intervals.",
        ),
    )
    return Section(TITLE, TEXT, drawings)


def _magnified(scale: float) -> Change:
    return lambda image, seed: magnify(image, scale)


def _cropped(pixels: int) -> Change:
    return lambda image, seed: keep_centre(image, pixels)
