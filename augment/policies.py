"""Kinds of augmentation and the policy that carries one out: seeded per sample, a patch in, a patch out.

Order (our choice): colour first, at native resolution (normalisation, Fourier, stain, brightness), then geometry
(fisheye, scale and shift read the pixels once, together), then a symmetry of the square, then what a scanner does last
(blur, JPEG).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment.checks import between
from augment.fisheye import Fisheye, lens_map, resample
from augment.fourier import Fourier, TargetAmplitude, fourier_domain_adaptation
from augment.normalise import Normalise, normalise
from augment.optics import Blur, Brightness, Jpeg, blur, brighten, compress
from augment.placement import Dihedral, Shift, turn
from augment.stain import Stain, draw_jitter, jitter_stain
from augment.views import DIHEDRAL
from midog.errors import DataError, MidogError, UsageError, unknown

Patch = NDArray[np.uint8]


@dataclass(frozen=True)
class Augment:
    """What happens to a training patch; None switches a transform off. The defaults are those of kind `paper`."""

    kind: str = "paper"
    fourier: Fourier | None = field(default_factory=Fourier)
    stain: Stain | None = field(default_factory=Stain)
    brightness: Brightness | None = field(default_factory=Brightness)
    fisheye: Fisheye | None = field(default_factory=Fisheye)
    shift: Shift | None = field(default_factory=Shift)
    dihedral: Dihedral | None = field(default_factory=Dihedral)
    blur: Blur | None = None
    jpeg: Jpeg | None = None
    normalise: Normalise | None = None

    def __post_init__(self) -> None:
        if self.kind not in KIND_NAMES:
            raise unknown("augmentation kind", self.kind, KIND_NAMES)


KIND_NAMES = ("none", "light", "paper", "strong")
TRANSFORMS = tuple(item.name for item in fields(Augment) if item.name != "kind")
TYPES: dict[str, type[Any]] = {
    "fourier": Fourier,
    "stain": Stain,
    "brightness": Brightness,
    "fisheye": Fisheye,
    "shift": Shift,
    "dihedral": Dihedral,
    "blur": Blur,
    "jpeg": Jpeg,
    "normalise": Normalise,
}
KINDS: dict[str, Augment] = {
    "none": Augment("none", **dict.fromkeys(TRANSFORMS)),
    "light": Augment("light", fourier=None, fisheye=None),
    "paper": Augment(),
    "strong": Augment(
        "strong",
        stain=Stain(p=0.9, scale=0.3, shift=0.06),
        brightness=Brightness(p=0.8, brightness=0.15, contrast=0.2),
        blur=Blur(),
        jpeg=Jpeg(),
    ),
}


def settings(kind: str = "paper", **overrides: Any) -> Augment:
    """The settings of a kind, with some replaced.

    Args:
        kind: `none`, `light` (symmetries, shift, scale, mild colour), `paper` (light + fisheye + FDA) or `strong`.
        overrides: transform name → its settings; a mapping of the keys that differ; None, False or "off"; True or "on".

    Raises: UsageError for an unknown kind, transform or key (with the nearest name), or a value out of range.
    """
    if kind not in KINDS:
        raise unknown("augmentation kind", kind, KIND_NAMES)
    changes = {name: _resolve(name, getattr(KINDS[kind], name, None), value) for name, value in overrides.items()}
    return replace(KINDS[kind], **changes)


def _resolve(name: str, default: Any, value: Any) -> Any:
    if name not in TYPES:
        raise unknown("augmentation", name, TRANSFORMS)
    kind = TYPES[name]
    if value is None or value is False or value == "off":
        return None
    if value is True or value == "on":
        return default or kind()
    if isinstance(value, Mapping):
        keys = [item.name for item in fields(kind)]
        for key in value:
            if key not in keys:
                raise unknown(f"key of {name}", str(key), keys)
        return replace(default or kind(), **{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
    if is_dataclass(value) and isinstance(value, kind):
        return value
    raise UsageError(f"{name} is {value!r}", f"off, on, or settings such as {{p: {kind().p}}}")


class Policy:
    """Carries out an `Augment`. Holds no state between calls, so threads may share it."""

    def __init__(self, augment: Augment, targets: Sequence[TargetAmplitude] = ()) -> None:
        self.augment = augment
        self.targets = tuple(targets)

    def __call__(self, image: Patch, rng: np.random.Generator) -> Patch:
        """(h, w, 3) uint8 RGB → a new contiguous array of the same shape and dtype.

        The same generator state gives the same bytes.
        """
        settings, drawn = self.augment, self._draw(rng)
        patch = image
        if settings.normalise and (u := drawn.get("normalise")):
            patch = normalise(patch, settings.normalise, u[1:7])
        if settings.fourier and (u := drawn.get("fourier")):
            target = self.targets[int(u[2] * len(self.targets))]
            beta = between(settings.fourier.beta, u[1])
            patch = fourier_domain_adaptation(patch, target, beta, settings.fourier.include_dc)
        if settings.stain and (u := drawn.get("stain")):
            patch = jitter_stain(patch, *draw_jitter(settings.stain, u[1:]))
        if settings.brightness and (u := drawn.get("brightness")):
            most = settings.brightness
            patch = brighten(patch, most.brightness * (2 * u[1] - 1), most.contrast * (2 * u[2] - 1))
        if "fisheye" in drawn or "shift" in drawn:
            patch = resample(patch, *self._map(patch, drawn))
        if u := drawn.get("dihedral"):
            patch = turn(patch, DIHEDRAL[int(u[1] * len(DIHEDRAL))])
        if settings.blur and (u := drawn.get("blur")):
            patch = blur(patch, between(settings.blur.sigma, u[1]))
        if settings.jpeg and (u := drawn.get("jpeg")):
            patch = compress(patch, round(between(settings.jpeg.quality, u[1])))
        return patch.copy() if patch is image else np.ascontiguousarray(patch)

    def _draw(self, rng: np.random.Generator) -> dict[str, list[float]]:
        """Eight numbers for each transform that happens now.

        Every transform has its own numbers whether it is on or off, so that switching one off leaves the others as they
        were: what an ablation compares then differs in that transform alone.
        """
        numbers = rng.random((len(TRANSFORMS), 8)).tolist()
        drawn = zip(TRANSFORMS, numbers, strict=True)
        return {name: u for name, u in drawn if (one := getattr(self.augment, name)) and u[0] < one.p}

    def _map(self, patch: Patch, drawn: Mapping[str, list[float]]) -> tuple[NDArray[Any], NDArray[Any]]:
        strength, scale, moved = 0.0, 1.0, (0.0, 0.0)
        if self.augment.fisheye and (u := drawn.get("fisheye")):
            strength = between(self.augment.fisheye.strength, u[1])
        if self.augment.shift and (u := drawn.get("shift")):
            scale, most = between(self.augment.shift.scale, u[1]), self.augment.shift.pixels
            moved = (most * (2 * u[2] - 1), most * (2 * u[3] - 1))
        return lens_map(patch.shape[0], patch.shape[1], strength, scale, moved)


def build_policy(augment: Augment, targets: Sequence[TargetAmplitude] | None = None) -> Policy:
    """The policy of `augment`; `targets` are the amplitudes that FDA draws from, alike.

    Raises: DataError when FDA is on without targets; UsageError when they hold too few frequencies for its β.
    """
    if augment.fourier is None or augment.fourier.p == 0:
        return Policy(augment)
    if not targets:
        raise DataError(
            "Fourier Domain Adaptation is on and there are no targets",
            "augment: {fourier: {targets: natural}}, a folder of photographs, or fourier: off",
        )
    held = min((target.b + 1) / min(target.size) for target in targets)
    if augment.fourier.beta[1] >= held:
        raise UsageError(
            f"fourier.beta reaches {augment.fourier.beta[1]:g}, these targets serve beta below {held:.3f}",
            f"augment: {{fourier: {{beta: [{min(augment.fourier.beta[0], 0.01):g}, 0.1]}}}}",
        )
    return Policy(augment, targets)


def sample_rng(seed: int, member: str, fold: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one draw: it depends on these five alone, never on the worker that makes the patch."""
    digest = hashlib.sha256(repr((int(seed), str(member), int(fold), int(epoch), int(position))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def refuse_agpl() -> None:
    """Raises: MidogError when albumentationsx (AGPL) is installed: it hides behind the name `albumentations`."""
    try:
        version = importlib.metadata.version("albumentationsx")
    except importlib.metadata.PackageNotFoundError:
        return
    raise MidogError(
        f"albumentationsx {version} is installed; it is AGPL, and this project is MIT",
        "pip uninstall albumentationsx && pip install albumentations==2.0.8",
    )
