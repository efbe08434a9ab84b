"""Two defences: a low-pass filter before the model, and attacked batches for its training.

A defence holds only against those who know of it: attack `behind_low_pass(encode)` too, not `encode` alone. A recipe
has both by key: `harmonise: low_pass`, whose filter is then part of the network, and `auxiliary: adversarial`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from augment.low_pass import LowPass, low_pass
from midog.errors import ArgumentError, DataError
from midog.robustness.local import Local, climb
from midog.robustness.perturbation import check_pixels, evaluating, uniform


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
    with evaluating(logit):
        start = uniform(pixels.shape, settings.radius, pixels, generator)
        return raise_loss(logit, pixels.detach(), label.to(pixels), settings, start)


def raise_loss(
    logit: Callable[[Tensor], Tensor],
    pixels: Tensor,
    label: Tensor,
    settings: Local,
    start: Tensor,
    checked: bool = True,
) -> Tensor:
    """`adversarial_batch` from a given start (n, 3, h, w), within ±`settings.radius`; the modes of modules stay.

    With `checked` False nothing waits for a GPU, and what is not finite shows in the training loss instead.
    """

    def loss(x: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logit(x).reshape(len(x)).to(x), label, reduction="none")

    return climb(loss, pixels, settings, start, checked=checked)
