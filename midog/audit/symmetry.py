"""The eight symmetries of the square, and turns by other angles: none of them changes what a mitotic figure is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augment.placement import turn
from augment.views import DIHEDRAL
from midog.audit.figures import said
from midog.audit.geometry import rotate
from midog.audit.measure import ONCE, Settings, estimate, mean, score
from midog.audit.patches import Change, Patches
from midog.audit.subject import Answers, Subject
from midog.errors import DataError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section
from midog.report.text import cell_text
from midog.robustness.effects import cosine
from midog.robustness.inputs import unit_rows
from midog.robustness.neighbours import MUTUAL, mutual_neighbours
from midog.robustness.stability import view_stability

TITLE = "Symmetry"
ANGLES = (15, 30, 45, 60, 75)
MEAN = "seven views"
TEXT = (
    "Look for dots that lie in one line: turning or mirroring a patch changes nothing about the figure, so good is "
    "a flip rate near 0 and the same score in every view. A model that averages all eight symmetries has exactly 0 "
    "there; other angles are resampled and mirrored at the border, so a little is lost without anybody's fault."
)
FEATURES = (
    "The other figures ask the same of one fold model's features. Cosine: of a patch and itself in another view; the "
    "ring is that of two different patches, so good is a dot far to the right of its ring. Neighbours: how many of a "
    "patch's nearest patches stay the nearest when all are turned; the ring is chance, and 1 is good."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores in each view, and how often, how far the answer moves over them."""
    few = patches.draw(settings.limit, settings.seed)
    clean = subject.answer(few)
    views = {name: _turned(name) for name in DIHEDRAL[1:]}
    angles: dict[str, Change] = {f"{angle}°": _rotated(angle) for angle in ANGLES}
    found = {"identity": clean, **{name: subject.answer(few, change) for name, change in {**views, **angles}.items()}}
    return {
        "scores": {name: score(few.labels, a.p, a.called, few.cases) for name, a in found.items()},
        "dihedral": moved([found[name] for name in DIHEDRAL], few, subject.point.threshold),
        "rotations": moved([clean, *(found[name] for name in angles)], few, subject.point.threshold),
        "features": turned_features(subject, patches, settings),
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


def turned_features(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """`kept` of the first fold model's features, on as many patches that it may answer for as curves take."""
    member = subject.members[0]
    many = patches.draw(ONCE * settings.limit, settings.seed)
    chosen = many.take(subject.unseen(member, many)).draw(settings.limit, settings.seed)
    if len(chosen) < 2:
        return {"problem": f"fewer than two patches that fold model {member.first} left out: --limit 0"}
    views = {name: subject.adapted(chosen, _turned(name) if name != DIHEDRAL[0] else None) for name in DIHEDRAL}
    try:
        return {**kept(views, chosen.cases), "member": member.name, "fold": member.first}
    except DataError as error:
        return {"problem": error.render()}


def kept(views: Mapping[str, NDArray[Any]], case: ArrayLike) -> dict[str, Any]:
    """What is left of features in other views of the same patches: cosine and shared neighbours, with intervals.

    Args:
        views: name to (n, width) features, n from 2, the patch itself first.

    Returns: `views`: for each other one, and their mean, {cosine, neighbours}; `apart`: mean cosine of two different
        patches; `chance`: k/(n − 1), the neighbours that unrelated features share.

    Raises: DataError for features that are not finite, or all zeros.
    """
    (_, first), *others = views.items()
    n = len(first)
    k = min(MUTUAL, n - 1)
    rows = {name: (cosine(first, x), mutual_neighbours(first, x, k)) for name, x in others}
    rows[MEAN] = tuple(np.mean(values, axis=0) for values in zip(*rows.values(), strict=True))
    total = unit_rows(first).sum(axis=0, dtype=np.float64)
    return {
        "n": n,
        "k": k,
        "chance": k / (n - 1),
        "apart": float((total @ total - n) / (n * (n - 1))),
        "views": {name: {"cosine": mean(c, case), "neighbours": mean(s, case)} for name, (c, s) in rows.items()},
    }


def headline(found: dict[str, Any]) -> str:
    flips = {name: said(found[name]["flip_rate"]) for name in ("dihedral", "rotations")}
    text = f"class changes over the eight symmetries in {flips['dihedral']} of patches, over other angles in "
    text += flips["rotations"]
    features = found["features"]
    if "problem" in features:
        return text
    return f"{text}; neighbours kept {said(features['views'][MEAN]['neighbours'])}"


def section(found: dict[str, Any]) -> Section:
    """Balanced accuracy in each view, and how much the answer and the features move over them."""
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
    features = found["features"]
    if "problem" in features:
        note = f"- not run: features in other views: {features['problem']}".replace("\n", " ")
        return Section(TITLE, f"{TEXT}\n\n" + "\n".join(lines), (drawing,), note=note)
    text = f"{TEXT}\n\n" + "\n".join(lines) + f"\n\n{FEATURES}"
    return Section(TITLE, text, (drawing, *_feature_drawings(features)))


def _feature_drawings(features: dict[str, Any]) -> tuple[Drawing, Drawing]:
    def plot(measure: str, other: float, words: str) -> str:
        rows = {MEAN: features["views"][MEAN], **features["views"]}
        return interval_plot(
            [Dot(name, **row[measure], other=other, strong=name == MEAN) for name, row in rows.items()], words
        )

    whose = f"Fold model {features['fold']} of {features['member']}, {features['n']:,} patches, against the identity."
    return (
        Drawing(plot("cosine", features["apart"], "cosine of the features"), f"{whose} Ring: two different patches."),
        Drawing(
            plot("neighbours", features["chance"], "share of the nearest that stay"),
            f"The {features['k']} nearest other patches by cosine. Ring: chance, {cell_text(features['chance'])}.",
        ),
    )


def _turned(name: str) -> Change:
    return lambda image, seed: np.ascontiguousarray(turn(image, name))


def _rotated(angle: float) -> Change:
    rotated = partial(rotate, degrees=angle)
    return lambda image, seed: rotated(image)
