"""A fold model as attacks see it, and quick attacks on it with their noise controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from midog.audit.patches import Patches
from midog.audit.subject import Member, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from midog.robustness.attack_report import Victim

STEPS, EPOCHS, RIM = 5, 4, 0.1


def as_tensor(patches: Patches) -> Tensor:
    """(n, 3, 128, 128) float32 in 0…1, on the device that models run on."""
    import torch

    from midog.models.predict import pick_device

    images = np.ascontiguousarray(patches.pixels[:].transpose(0, 3, 1, 2))
    return (torch.from_numpy(images).to(pick_device()).float() / 255).contiguous()


def victim_of(subject: Subject, member: Member) -> Victim:
    """The member's first fold model as attacks see it: it resizes and normalises inside, with gradients."""
    from midog.robustness.attack_report import Victim

    model = subject.single(member).eval()

    def encode(x: Tensor) -> Tensor:
        return model.features(model.prepare_pixels(x))

    def logit(x: Tensor) -> Tensor:
        found: Tensor = model(model.prepare_pixels(x))
        return found

    return Victim(logit, encode, subject.threshold(member))


def versions(
    kind: str, victim: Victim, pixels: Tensor, delta: Tensor, epsilon: float, crop: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Attacked pixels and the noise control of equal budget.

    Args:
        kind: universal, local or rim. delta: the universal change for the budget `epsilon`.
        crop: pixels around the centre that the network sees: the rim is theirs.
    """
    from midog.robustness.local import Local, attack, noise
    from midog.robustness.perturbation import add, sign_noise

    assert victim.encode is not None
    if kind == "universal":
        return add(pixels, delta), add(pixels, sign_noise(delta.shape, epsilon, delta, seed))
    mask = seen_rim(pixels.shape[-1], crop).to(pixels.device) if kind == "rim" else None
    settings = Local(epsilon=epsilon, steps=STEPS, alpha=max(epsilon / 2, 1 / 255), seed=seed)
    return attack(victim.encode, pixels, settings, mask), noise(pixels, epsilon, mask, seed)


def seen_rim(side: int, crop: int) -> Tensor:
    """Bool mask (1, 1, side, side): the outer tenth of the central `crop` pixels, which is what the network sees."""
    from torch.nn import functional

    from midog.robustness.masks import rim_mask

    margin = (side - crop) // 2
    return functional.pad(rim_mask(crop, RIM), (margin, side - crop - margin) * 2, value=False)


def universal(victim: Victim, pixels: Tensor, epsilon: float, seed: int) -> Tensor:
    """A universal change from few images and epochs with long steps: a patient attacker finds no weaker one. Ours."""
    from midog.robustness.universal import Universal, fit_universal

    assert victim.encode is not None
    settings = Universal(epsilon, epochs=EPOCHS, batch=8, alpha=epsilon / 10, seed=seed)
    return fit_universal(victim.encode, pixels, settings)
