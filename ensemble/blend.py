"""What a blend is and how it is applied: one weighted logit, one calibration, the one class function. numpy only.

    z = Σ wᵢ zᵢ     confidence = sigmoid((z - shift) / temperature)     atypical iff confidence ≥ threshold

zᵢ is a member's logit of *atypical*: the mean of the operating point's fold models and views. Every kind of
blend is written in this one formula. Weights of `equal` and `tuned` blends lie on the simplex; those of a `stack` may
be negative and are scaled to Σ|wᵢ| = 1, its intercept and scale being taken up by shift and temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augment.views import VIEW_SETS
from midog.errors import DataError, unknown
from midog.files import read_json

BLEND_FILE = "blend.json"
SATURATED = 700.0
"""exp() of more than this overflows; a logit so large is 1.0 in float64 anyway."""


@dataclass(frozen=True)
class OperatingPoint:
    """A named set of members and views with the calibration and threshold that were fitted for exactly that set.

    `weights` has one number per member; `views` a set of `augment.views.VIEW_SETS`; `threshold` is a confidence;
    `fold_models` how many of each member's fold models answer, the first ones; 0: all.
    """

    name: str
    members: tuple[str, ...]
    weights: tuple[float, ...]
    views: str
    shift: float
    temperature: float
    threshold: float
    fold_models: int = 0

    def to_dict(self) -> dict[str, Any]:
        whole = asdict(self)
        return {**whole, "members": list(self.members), "weights": list(self.weights)}


@dataclass(frozen=True)
class BlendMember:
    """A member of a blend: where its fold models are and what network they belong to.

    `folds` maps "0", "1", … to {path, sha256} of the fold's model.safetensors; paths are absolute once read.
    """

    name: str
    run: str
    member: str
    folds: dict[str, dict[str, str]]
    network: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Blend:
    """A blend as read from blend.json, `content`. `prevalence` is the share of atypical training patches."""

    members: tuple[BlendMember, ...]
    points: dict[str, OperatingPoint]
    prevalence: float
    content: dict[str, Any]

    @property
    def threshold_rule(self) -> str:
        """How its thresholds were fitted, `pooled` or `across`; `pooled` where an earlier release did not say."""
        return str(self.content.get("settings", {}).get("threshold", "pooled"))

    def point(self, name: str = "full") -> OperatingPoint:
        """The operating point of that name. Raises: UsageError with the nearest name."""
        if name not in self.points:
            raise unknown("operating point", name, self.points)
        return self.points[name]

    def member(self, name: str) -> BlendMember:
        """The member of that name. Raises: UsageError with the nearest name."""
        found = {member.name: member for member in self.members}
        if name not in found:
            raise unknown("member", name, found)
        return found[name]


def combine(point: OperatingPoint, member_logits: ArrayLike) -> NDArray[np.float64]:
    """Blended logit z, (n,) float64, before calibration.

    `member_logits` is (n, members) in the order of `point.members`. A logit that is not finite leaves its member out
    for that patch and the other weights are scaled up to the same sum; a patch with none left gets NaN. Members are
    added one by one, so that a patch has the same bits alone and in a batch.
    """
    logits = np.asarray(member_logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] != len(point.members):
        raise DataError(f"logits {logits.shape} for the {len(point.members)} members of operating point {point.name}")
    z, kept = np.zeros(len(logits)), np.zeros(len(logits))
    whole = 0.0
    for column, weight in zip(logits.T, point.weights, strict=True):
        finite = np.isfinite(column)
        z += np.where(finite, weight * np.where(finite, column, 0.0), 0.0)
        kept += np.where(finite, weight, 0.0)
        whole += weight
    complete = np.isfinite(logits).all(axis=1)
    # A stack whose remaining weights cancel cannot be scaled up: such a patch counts as damaged.
    usable = np.isfinite(logits).any(axis=1) & (kept * whole > 0)
    scale = np.divide(whole, kept, out=np.full(len(logits), np.nan), where=usable)
    return np.where(complete, z, z * scale)


def confidence(point: OperatingPoint, z: ArrayLike) -> NDArray[np.float64]:
    """P(atypical), (n,) float64 in [0, 1], of blended logits; NaN stays NaN."""
    scaled = (np.asarray(z, dtype=np.float64) - point.shift) / point.temperature
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(scaled, -SATURATED, SATURATED))), dtype=np.float64)


def decide(point: OperatingPoint, confidence: ArrayLike) -> NDArray[np.bool_]:
    """THE class function: True = atypical, iff confidence ≥ threshold, in float64."""
    return np.asarray(np.asarray(confidence, dtype=np.float64) >= point.threshold, dtype=np.bool_)


def read_blend(path: Path | str) -> Blend:
    """Read a blend folder, or its blend.json.

    Raises: DataError when it is missing or damaged, all problems at once; UsageError when a newer release wrote it.
    """
    path = Path(path)
    if path.is_dir() and not (path / BLEND_FILE).is_file():
        raise DataError(f"{path} is no blend: it holds no {BLEND_FILE}", f"midog blend RUN -o {path}")
    file = path / BLEND_FILE if path.is_dir() else path
    return parse_blend(read_json(file), file)


def parse_blend(content: Mapping[str, Any], file: Path) -> Blend:
    """A blend from the content of `file`; paths of fold models are taken relative to the file's folder."""
    try:
        members = tuple(_member(entry, file.parent) for entry in content["members"])
        points = {str(name): _point(str(name), entry) for name, entry in content["points"].items()}
        prevalence = float(content["prevalence"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is no blend: {type(error).__name__} {error}", "repeat `midog blend`") from None
    problems = [text for point in points.values() for text in _point_problems(point, {m.name for m in members})]
    if "full" not in points:
        problems.append("operating point full is missing")
    if not 0 <= prevalence <= 1:
        problems.append(f"prevalence {prevalence} is no share")
    if problems:
        raise DataError(f"{file} contradicts itself", "repeat `midog blend`", problems)
    return Blend(members, points, prevalence, dict(content))


def _member(entry: Mapping[str, Any], folder: Path) -> BlendMember:
    folds = {
        str(k): {**fold, "path": str((folder / fold["path"]).absolute()), "sha256": str(fold["sha256"])}
        for k, fold in entry["folds"].items()
    }
    run = str((folder / entry["run"]).absolute()) if entry.get("run") else ""
    return BlendMember(str(entry["name"]), run, str(entry["member"]), folds, dict(entry["network"]))


def _point(name: str, entry: Mapping[str, Any]) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        members=tuple(map(str, entry["members"])),
        weights=tuple(map(float, entry["weights"])),
        views=str(entry["views"]),
        shift=float(entry["shift"]),
        temperature=float(entry["temperature"]),
        threshold=float(entry["threshold"]),
        fold_models=int(entry.get("fold_models", 0)),
    )


def _point_problems(point: OperatingPoint, members: set[str]) -> list[str]:
    numbers = (*point.weights, point.shift, point.temperature, point.threshold)
    rules = {
        "names no member": bool(point.members),
        f"names members that are not there: {', '.join(sorted(set(point.members) - members))}": set(point.members)
        <= members,
        "has not one weight per member": len(point.weights) == len(point.members),
        f"has unknown views {point.views}": point.views in VIEW_SETS,
        "holds a number that is not finite": all(map(math.isfinite, numbers)),
        f"has temperature {point.temperature}, which must be positive": point.temperature > 0,
        f"has threshold {point.threshold}, which must be 0 to 1": 0 <= point.threshold <= 1,
        f"has {point.fold_models} fold models, which must be 0 (all) or more": point.fold_models >= 0,
    }
    return [f"operating point {point.name} {text}" for text, kept in rules.items() if not kept]
