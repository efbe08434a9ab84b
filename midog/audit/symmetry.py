"""The eight symmetries of the square, and turns by other angles: none of them changes what a mitotic figure is."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from augment.placement import turn
from augment.views import DIHEDRAL
from midog.audit.figures import said
from midog.audit.geometry import rotate
from midog.audit.measure import Settings, estimate, mean, score
from midog.audit.patches import Change, Patches
from midog.audit.subject import Answers, Subject
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section
from midog.robustness.stability import view_stability

TITLE = "Symmetry"
ANGLES = (15, 30, 45, 60, 75)
TEXT = (
    "Look for dots that lie in one line: turning or mirroring a patch changes nothing about the figure, so good is "
    "a flip rate near 0 and the same score in every view. A model that averages all eight symmetries has exactly 0 "
    "there; other angles are resampled and mirrored at the border, so a little is lost without anybody's fault."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores in each view, and how often, how far the answer moves over them."""
    few = patches.draw(settings.limit, settings.seed)
    clean = subject.answer(few)
    views: dict[str, Change] = {name: _turned(name) for name in DIHEDRAL[1:]}
    angles: dict[str, Change] = {f"{angle}°": _rotated(angle) for angle in ANGLES}
    found = {"identity": clean, **{name: subject.answer(few, change) for name, change in {**views, **angles}.items()}}
    return {
        "scores": {name: score(few.labels, a.p, a.called, few.cases) for name, a in found.items()},
        "dihedral": moved([found[name] for name in DIHEDRAL], few, subject.point.threshold),
        "rotations": moved([clean, *(found[name] for name in angles)], few, subject.point.threshold),
    }


def moved(views: list[Answers], patches: Patches, threshold: float) -> dict[str, Any]:
    """Over views of the same patches: share whose class changes, mean sd and range of the calibrated logit."""
    u = np.stack([view.u for view in views], axis=1)
    # The classes come from the one class function; `view_stability` would derive them again.
    called = np.stack([view.called for view in views], axis=1)
    stable = view_stability(u, patches.cases, threshold)
    spread = u.std(axis=1)
    spread[(u == u[:, :1]).all(axis=1)] = 0.0  # rounding in a mean of equal numbers is no spread
    return {
        "flip_rate": mean(called.any(axis=1) & ~called.all(axis=1), patches.cases),
        "logit_sd": mean(spread, patches.cases),
        "logit_range": estimate(stable.logit_range, stable.intervals["logit_range"]),
    }


def headline(found: dict[str, Any]) -> str:
    flips = said(found["dihedral"]["flip_rate"])
    return f"class changes over the eight symmetries in {flips} of patches, over other angles in " + said(
        found["rotations"]["flip_rate"]
    )


def section(found: dict[str, Any]) -> Section:
    dots = []
    for name, row in found["scores"].items():
        ba = row["balanced_accuracy"]
        dots.append(Dot(name, ba["value"], ba["low"], ba["high"], strong=name == "identity"))
    known = [row["balanced_accuracy"]["value"] for row in found["scores"].values()]
    known = [value for value in known if value is not None]
    lines = [
        f"- {words}: class changes in {said(part['flip_rate'])} of patches, sd of the logit {said(part['logit_sd'])}"
        for words, part in (("eight symmetries", found["dihedral"]), ("other angles", found["rotations"]))
    ]
    between = f"Balanced accuracy lies between {min(known):.3f} and {max(known):.3f}." if known else ""
    drawing = Drawing(interval_plot(dots, "balanced accuracy", 0.5), "95 % case-bootstrap intervals. " + between)
    return Section(TITLE, f"{TEXT}\n\n" + "\n".join(lines), (drawing,))


def _turned(name: str) -> Change:
    return lambda image, seed: np.ascontiguousarray(turn(image, name))


def _rotated(angle: float) -> Change:
    rotated = partial(rotate, degrees=angle)
    return lambda image, seed: rotated(image)
