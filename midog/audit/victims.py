"""A fold model as attacks see it, and quick attacks on it with their noise controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from midog.audit.patches import Patches
from midog.audit.subject import Member, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from midog.robustness.attack_report import Victim

STEPS, RIM = 5, 0.1


def as_tensor(patches: Patches) -> Tensor:
    """(n, 3, 128, 128) float32 in 0…1, on the device that models run on."""
    import torch

    from midog.models.predict import pick_device

    images = np.ascontiguousarray(patches.pixels[:].transpose(0, 3, 1, 2))
    return (torch.from_numpy(images).to(pick_device()).float() / 255).contiguous()


def victim_of(subject: Subject, member: Member) -> Victim:
    """The member's first fold model as attacks see it: it resizes and normalises inside, with gradients."""
    from midog.models.heads.linear import pool_features
    from midog.models.preprocess import prepare_pixels
    from midog.robustness.attack_report import Victim

    model = subject.single(member).eval()
    network = model.network

    def encode(x: Tensor) -> Tensor:
        seen = prepare_pixels(x, network.image, network.backbone).contiguous(memory_format=model.format)
        return pool_features(model.backbone, seen, network.backbone.pooling)

    def logit(x: Tensor) -> Tensor:
        found: Tensor = model(prepare_pixels(x, network.image, network.backbone))
        return found

    return Victim(logit, encode, subject.threshold(member))


def versions(
    kind: str, victim: Victim, pixels: Tensor, fit_pixels: Tensor, epsilon: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Attacked pixels and the noise control of equal budget."""
    from midog.robustness.local import Local, attack, noise
    from midog.robustness.masks import rim_mask
    from midog.robustness.perturbation import add, sign_noise

    encode = victim.encode
    assert encode is not None
    if kind == "universal":
        delta = universal(encode, fit_pixels, epsilon, seed)
        return add(pixels, delta), add(pixels, sign_noise(delta.shape, epsilon, delta, seed))
    mask = rim_mask(pixels.shape[-1], RIM).to(pixels.device) if kind == "rim" else None
    settings = Local(epsilon=epsilon, steps=STEPS, alpha=max(epsilon / 2, 1 / 255), seed=seed)
    return attack(encode, pixels, settings, mask), noise(pixels, epsilon, mask, seed)


def universal(encode: Callable[[Tensor], Tensor], pixels: Tensor, epsilon: float, seed: int) -> Tensor:
    """Few images and epochs, long steps: a bound from below on what a patient attacker finds (our choice)."""
    from midog.robustness.universal import Universal, fit_universal

    return fit_universal(encode, pixels, Universal(epsilon, epochs=3, batch=8, alpha=epsilon / 4 or None, seed=seed))
