"""The same transforms for albumentations pipelines. The only importer of albumentations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment import fisheye as lens
from augment import fourier, stain
from augment import normalise as normalisation
from augment.policies import Augment, build_policy, refuse_agpl

refuse_agpl()
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # albumentations asks PyPI for news at import unless told not to

import albumentations  # noqa: E402
import cv2  # noqa: E402
from albumentations.core.type_definitions import Targets  # noqa: E402

Image = NDArray[Any]
Parameters = dict[str, Any]


class Fisheye(albumentations.DualTransform):  # type: ignore[misc]  # albumentations is not typed strictly
    """`augment.fisheye.fisheye` with a strength drawn from a range; a mask is read at the nearest pixel.

    Args: strength: range of k ≥ 0. p: probability.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, strength: tuple[float, float] = (0.0, 0.5), p: float = 0.5) -> None:
        settings = lens.Fisheye(p, tuple(strength))  # type: ignore[arg-type]
        super().__init__(p=settings.p)
        self.strength = settings.strength

    def get_params(self) -> Parameters:
        return {"k": self.py_random.uniform(*self.strength)}

    def apply(self, img: Image, k: float, **params: Any) -> Image:
        return lens.fisheye(img, k)

    def apply_to_mask(self, mask: Image, k: float, **params: Any) -> Image:
        return lens.resample(mask, *lens.fisheye_map((mask.shape[0], mask.shape[1]), k), cv2.INTER_NEAREST)


class FourierDomainAdaptation(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """`augment.fourier.fourier_domain_adaptation` towards a target drawn from `targets`.

    Args: targets: amplitudes of images of the size that comes in. beta: range of β. p: probability.

    float32 images are taken as 0 to 1, as everywhere in albumentations, and clipped to it.

    Raises: DataError without targets.
    """

    def __init__(
        self,
        targets: Sequence[fourier.TargetAmplitude],
        beta: tuple[float, float] = (0.01, 0.09),
        include_dc: bool = True,
        p: float = 0.5,
    ) -> None:
        settings = fourier.Fourier(p, tuple(beta), include_dc)  # type: ignore[arg-type]
        super().__init__(p=settings.p)
        self.targets_held = build_policy(Augment(fourier=fourier.Fourier(1.0, settings.beta)), targets).targets
        self.beta, self.include_dc = settings.beta, include_dc

    def get_params(self) -> Parameters:
        return {"target": self.py_random.choice(self.targets_held), "b": self.py_random.uniform(*self.beta)}

    def apply(self, img: Image, target: fourier.TargetAmplitude, b: float, **params: Any) -> Image:
        if img.dtype == np.uint8:
            return fourier.fourier_domain_adaptation(img, target, b, self.include_dc)
        adapted = fourier.fourier_domain_adaptation(img * np.float32(255), target, b, self.include_dc)
        return np.asarray(np.clip(adapted / np.float32(255), 0, 1))


class StainJitter(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """`augment.stain.jitter_stain` of uint8 RGB. Args: scale, shift, p as in `augment.stain.Stain`."""

    def __init__(self, scale: float = 0.15, shift: float = 0.03, p: float = 0.5) -> None:
        self.settings = stain.Stain(p, scale, shift)
        super().__init__(p=p)

    def get_params(self) -> Parameters:
        factors, shifts = stain.draw_jitter(self.settings, [self.py_random.random() for _ in range(6)])
        return {"factors": factors, "shifts": shifts}

    def apply(self, img: Image, factors: list[float], shifts: list[float], **params: Any) -> Image:
        return stain.jitter_stain(img, factors, shifts)


class StainNormalisation(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """`augment.normalise.normalise` of uint8 RGB. Args: method, spread, p as in `augment.normalise.Normalise`."""

    def __init__(self, method: str = "reinhard", spread: float = 0.1, p: float = 0.5) -> None:
        self.settings = normalisation.Normalise(p, method, spread)
        super().__init__(p=p)

    def get_params(self) -> Parameters:
        return {"u": [self.py_random.random() for _ in range(6)]}

    def apply(self, img: Image, u: list[float], **params: Any) -> Image:
        return normalisation.normalise(img, self.settings, u)


class PatchPolicy(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """A whole kind of augmentation (`augment.policies`) as one transform of uint8 RGB patches."""

    def __init__(
        self, augment: Augment, targets: Sequence[fourier.TargetAmplitude] | None = None, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.policy = build_policy(augment, targets)

    def get_params(self) -> Parameters:
        return {"seed": self.py_random.getrandbits(64)}

    def apply(self, img: Image, seed: int, **params: Any) -> Image:
        return self.policy(img, np.random.default_rng(seed))
