"""Two defences: a low-pass filter before the model, and attacked batches for its training.

A defence holds only against those who know of it: attack `behind_low_pass(encode)` too, not `encode` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from midog.errors import ArgumentError, DataError
from midog.robustness.local import Local, raise_objective
from midog.robustness.perturbation import check_above_zero, check_pixels, evaluating


@dataclass(frozen=True)
class LowPass:
    """Frequencies up to `radius` cycles in `of` pixels pass, all beyond are cut.

    Source: radius 50 of 224 px, an unofficial reimplementation of UTAP (second hand); scaling to other sizes: ours.
    """

    radius: float = 50
    of: int = 224

    def __post_init__(self) -> None:
        check_above_zero("low_pass.radius", self.radius)
        check_above_zero("low_pass.of", self.of)


def low_pass(pixels: Tensor, settings: LowPass | None = None, clip: bool = True) -> Tensor:
    """`pixels` without high frequencies: a circular mask in Fourier space, each channel apart. Differentiable.

    Args:
        pixels: (n, 3, h, w) float in [0, 1].
        clip: Cut what overshoots at edges back to [0, 1].

    Returns: the same shape and dtype. Half precision is filtered in float32.
    """
    settings = settings or LowPass()
    height, width = pixels.shape[-2:]
    exact = pixels if pixels.dtype in (torch.float32, torch.float64) else pixels.float()
    spectrum = torch.fft.rfft2(exact)
    passing = pass_mask(height, width, settings).to(pixels.device)
    # The real transform holds half of the columns; s tells an odd width from an even one.
    filtered: Tensor = torch.fft.irfft2(spectrum * passing[:, : width // 2 + 1], s=(height, width))
    return (filtered.clamp(0, 1) if clip else filtered).to(pixels.dtype)


def pass_mask(height: int, width: int, settings: LowPass | None = None) -> Tensor:
    """(height, width) bool in the order of an unshifted spectrum: True where (u, v), in cycles per `of` px, pass."""
    settings = settings or LowPass()
    u, v = (
        torch.fft.fftfreq(side, 1 / side, dtype=torch.float64).round() * (settings.of / side)
        for side in (height, width)
    )
    # A hair of slack keeps frequencies that lie on the circle on the same side of it at every size.
    passing: Tensor = u[:, None].square() + v[None, :].square() <= settings.radius**2 * (1 + 1e-9)
    return passing


def behind_low_pass(call: Callable[[Tensor], Tensor], settings: LowPass | None = None) -> Callable[[Tensor], Tensor]:
    """`call` on low-passed pixels: the defended model, through which gradients flow."""
    return lambda pixels: call(low_pass(pixels, settings))


def adversarial_batch(
    logit: Callable[[Tensor], Tensor],
    pixels: Tensor,
    label: Tensor,
    settings: Local,
    generator: torch.Generator,
) -> Tensor:
    """The batch, attacked so that the loss on its labels rises: for adversarial training. Unlike `local`, with labels.

    Args:
        logit: (n, 3, h, w) to (n,). A module is in eval mode while it is attacked, so that batch norms keep their
            statistics and dropout is off, and comes back as it was; its weights' `.grad` is not touched. A lambda
            hides its module: call this within `with evaluating(module)`.
        pixels: (n, 3, h, w) in [0, 1], before normalisation. label: (n,) 0 to 1, soft labels too.
        settings: kind `fgsm`, `pgd`, …, and its budget; `seed` is not used, `distance` neither.
        generator: On the CPU; another start for every batch.

    Returns: pixels without gradient, to be put into the training loss; with epsilon 0 the given ones bit for bit.

    Raises: as `local.attack`; DataError for labels that do not fit.

    Source: Goodfellow 2015 (FGSM), Madry 2018 (PGD). Eval mode inside: our choice.
    """
    check_pixels(pixels)
    if label.shape != (len(pixels),):
        raise DataError(f"labels are {tuple(label.shape)} for {len(pixels)} images", "(n,), 0 to 1")
    if generator.device.type != "cpu":
        raise ArgumentError(
            f"the generator is on {generator.device}", "torch.Generator() draws the same on every device"
        )
    if settings.epsilon == 0:
        return pixels.detach().clone()
    target = label.to(pixels)

    def loss(x: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logit(x).reshape(len(x)).to(x), target, reduction="none")

    with evaluating(logit):
        return raise_objective(loss, pixels.detach(), settings, generator)
