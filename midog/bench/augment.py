"""Speed of augmentation as a ratio to albumentations in the same run, on 128-pixel patches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.progress import track

Patch = NDArray[np.uint8]
BETA = (0.01, 0.09)
GROUP = 10


def measure(n: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    """Median milliseconds per patch, ours and albumentations', interleaved so that other load meets both alike.

    Args:
        n: calls of each.
        seed: of the drawn patches and of every random choice.

    Returns: rows name, ours_ms, theirs_ms, ratio (theirs / ours).
    """
    patches = _smooth_noise(n, seed)
    rows = []
    for name, ours, theirs in track(_pairs(patches, seed), "benchmark"):
        ours_ms, theirs_ms = _interleaved(patches, ours, theirs)
        rows.append({"name": name, "ours_ms": ours_ms, "theirs_ms": theirs_ms, "ratio": theirs_ms / ours_ms})
    return rows


Pair = tuple[str, Callable[[Patch], Any], Callable[[Patch], Any]]


def _pairs(patches: Patch, seed: int) -> Sequence[Pair]:
    from augment import transforms  # refuses the AGPL release and silences the update check before albumentations loads
    from augment.fisheye import fisheye
    from augment.fourier import fourier_domain_adaptation, patch_targets
    from augment.policies import build_policy, sample_rng, settings

    albumentations: Any = vars(transforms)["albumentations"]
    rng = np.random.default_rng(seed)
    photographs = list(_smooth_noise(24, seed + 1))
    targets = patch_targets(photographs)
    their_fda = albumentations.FDA(beta_limit=BETA, p=1)
    their_lens = albumentations.OpticalDistortion(distort_limit=(0.0, 0.5), mode="fisheye", p=1)
    for transform in (their_fda, their_lens):
        transform.set_random_seed(seed)
    policy, positions = build_policy(settings("paper"), targets), iter(range(10**9))
    composed = _paper_of_albumentations(albumentations, seed)
    return [
        (
            "FDA, amplitudes kept",
            lambda patch: fourier_domain_adaptation(patch, targets[rng.integers(24)], rng.uniform(*BETA)),
            lambda patch: their_fda(image=patch, fda_metadata=photographs),
        ),
        (
            "FDA, target as image",
            lambda patch: fourier_domain_adaptation(patch, photographs[rng.integers(24)], rng.uniform(*BETA)),
            lambda patch: their_fda(image=patch, fda_metadata=photographs),
        ),
        ("fisheye", lambda patch: fisheye(patch, rng.uniform(0, 0.5)), lambda patch: their_lens(image=patch)),
        (
            "kind paper",
            lambda patch: policy(patch, sample_rng(seed, "bench", 0, 0, next(positions))),
            lambda patch: composed(image=patch, fda_metadata=photographs),
        ),
    ]


def _paper_of_albumentations(albumentations: Any, seed: int) -> Any:
    """Kind `paper` from albumentations' own parts: the same probabilities and, as far as they go, the same ranges."""
    return albumentations.Compose(
        [
            albumentations.FDA(beta_limit=BETA, p=0.5),
            albumentations.HEStain(
                method="preset",
                preset="ruifrok",
                intensity_scale_range=(0.85, 1.15),
                intensity_shift_range=(-0.03, 0.03),
                p=0.8,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.08, contrast_limit=0.1, p=0.5),
            albumentations.OpticalDistortion(distort_limit=(0.0, 0.5), mode="fisheye", p=0.5),
            albumentations.Affine(translate_px={"x": (-5, 5), "y": (-5, 5)}, scale=(0.9, 1.1), border_mode=4, p=1.0),
            albumentations.D4(p=1.0),
        ],
        seed=seed,
    )


def _interleaved(patches: Patch, ours: Callable[[Patch], Any], theirs: Callable[[Patch], Any]) -> tuple[float, float]:
    """Median over groups of ten patches, so that what happens to every other patch counts by its share."""
    for warm in patches[:3]:
        ours(warm), theirs(warm)
    times: tuple[list[float], list[float]] = ([], [])
    for first in range(0, len(patches), GROUP):
        group = patches[first : first + GROUP]
        for call, kept in zip((ours, theirs), times, strict=True):
            start = perf_counter()
            for patch in group:
                call(patch)
            kept.append((perf_counter() - start) * 1e3 / len(group))
    return statistics.median(times[0]), statistics.median(times[1])


def _smooth_noise(n: int, seed: int) -> Patch:
    """(n, 128, 128, 3) uint8: blocks of random colour under fine noise, so that no spectrum is degenerate."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 220, (n, 16, 16, 3)).repeat(8, axis=1).repeat(8, axis=2)
    noisy: Patch = np.clip(coarse + rng.integers(-20, 21, (n, 128, 128, 3)), 0, 255).astype(np.uint8)
    return noisy
