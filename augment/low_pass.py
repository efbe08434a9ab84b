"""A low-pass filter: what is finer than a few pixels is cut, in Fourier space. On tensors, with gradients.

The radius is a frequency, not a number of waves over the image: 50 cycles in 224 pixels let waves of 4.48 pixels and
more pass, which are up to 28 cycles across a patch of 128 pixels. Opposite borders of an image meet, as in every
filter of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from midog.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowPass:
    """Frequencies up to `radius` cycles in `of` pixels pass, all beyond are cut; from `radius` 0.71 · `of`, none is.

    Source: radius 50 of 224 px, an unofficial reimplementation of UTAP (second hand); scaling to other sizes: ours.
    """

    kind: Literal["low_pass"] = "low_pass"
    radius: float = 50
    of: int = 224

    def __post_init__(self) -> None:
        for name in ("radius", "of"):
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise UsageError(f"low_pass.{name} is {value}", "a number above 0; radius 50 of 224 pixels is usual")


def low_pass(pixels: Tensor, settings: LowPass | None = None, clip: bool = True) -> Tensor:
    """`pixels` without high frequencies: a circular mask in Fourier space, each channel apart. Differentiable.

    Args:
        pixels: (n, 3, h, w) float in [0, 1].
        clip: Cut what overshoots at edges back to [0, 1].

    Returns: the same shape, dtype and device; nothing waits for it. Half precision is filtered in float32.
    """
    import torch

    height, width = pixels.shape[-2:]
    exact = pixels if pixels.dtype in (torch.float32, torch.float64) else pixels.float()
    # The real transform holds half of the columns; s tells an odd width from an even one.
    spectrum = torch.fft.rfft2(exact) * _half_mask(height, width, settings or LowPass(), str(pixels.device))
    filtered: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return (filtered.clamp(0, 1) if clip else filtered).to(pixels.dtype)


def pass_mask(height: int, width: int, settings: LowPass | None = None) -> Tensor:
    """(height, width) bool in the order of an unshifted spectrum: True where (u, v), in cycles per `of` px, pass."""
    import torch

    settings = settings or LowPass()
    u, v = (
        torch.fft.fftfreq(side, 1 / side, dtype=torch.float64).round() * (settings.of / side)
        for side in (height, width)
    )
    # A hair of slack keeps frequencies that lie on the circle on the same side of it at every size.
    passing: Tensor = u[:, None].square() + v[None, :].square() <= settings.radius**2 * (1 + 1e-9)
    return passing


@lru_cache(maxsize=16)
def _half_mask(height: int, width: int, settings: LowPass, device: str) -> Tensor:
    """The columns of `pass_mask` that a real transform has, kept: a copy at every step would halt a GPU's queue."""
    import torch

    with torch.inference_mode(False):
        return pass_mask(height, width, settings)[:, : width // 2 + 1].to(device)
