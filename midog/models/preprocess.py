"""THE way from pixels to a network's input: training, out-of-fold scoring and the container all take this one.

Make scanners alike or cut fine detail where a member asks for it, crop the centre, resize (antialiased, in float, on
the device, a batch at a time), normalise. No other module resizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import UsageError
from midog.models.harmonise import Harmonise, harmonise_pixels

if TYPE_CHECKING:
    from torch import Tensor, device

    from midog.models.backbones import Backbone

PATCH = 128
"""Side of a patch in pixels, at about 0.25 µm per pixel."""
SMALLEST = 16


@dataclass(frozen=True)
class Image:
    """What of a patch the network sees: `crop` pixels around the centre, resized to `size` pixels.

    `size: native` is the backbone's own input size. An odd crop would move the centre by half a pixel: it is refused.
    """

    crop: int = PATCH
    size: int | str = "native"

    def __post_init__(self) -> None:
        if not SMALLEST <= self.crop <= PATCH or self.crop % 2:
            raise UsageError(
                f"image.crop is {self.crop}",
                f"an even number of pixels from {SMALLEST} to {PATCH} keeps the figure centred",
            )
        if isinstance(self.size, str) and self.size != "native":
            raise UsageError(f"image.size is {self.size}", "`native`, or the side in pixels")
        if not isinstance(self.size, str) and not SMALLEST <= self.size <= 1024:
            raise UsageError(f"image.size is {self.size}", f"a side from {SMALLEST} to 1024 pixels, or `native`")


def input_size(image: Image, record: Backbone) -> int:
    """Side in pixels of the network's square input.

    Raises: UsageError when a ViT's patches do not tile it.
    """
    size = record.input_size if isinstance(image.size, str) else int(image.size)
    if record.patch and size % record.patch:
        below, above = size // record.patch * record.patch, (size // record.patch + 1) * record.patch
        raise UsageError(
            f"image.size {size} is no multiple of the {record.patch}-pixel patches of {record.name}",
            f"image.size: {below or above} or {above}",
        )
    return size


def fit_patch(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image of any size as one patch: taken as 0.25 µm/px, its centre cut out, mirrored at the border when smaller.

    Args:
        image: (h, w, 3) uint8 RGB.

    Returns: (128, 128, 3) uint8 RGB; an image of that size comes back as it is. With an odd margin the cut lies half
        a pixel further to the top left.
    """
    height, width = image.shape[:2]
    missing = [max(0, PATCH - side) for side in (height, width)]
    if any(missing):
        before = [pixels // 2 for pixels in missing]
        padding = [(first, pixels - first) for first, pixels in zip(before, missing, strict=True)]
        image = np.pad(image, (*padding, (0, 0)), mode="reflect")
        height, width = image.shape[:2]
    top, left = (height - PATCH) // 2, (width - PATCH) // 2
    return image[top : top + PATCH, left : left + PATCH]


def prepare(
    patches: NDArray[np.uint8] | Tensor,
    image: Image,
    record: Backbone,
    device: device | str | None = None,
    harmonise: Harmonise | None = None,
) -> Tensor:
    """A network's input from patches.

    Args:
        patches: (n, 128, 128, 3) uint8 RGB, an array or a tensor on any device.
        image: Crop and size.
        record: The backbone, for native size, interpolation, mean and standard deviation.
        device: Where to compute; the bytes travel as uint8.
        harmonise: What makes scanners alike or cuts fine detail, on whole patches, before they are cropped.

    Returns: (n, 3, s, s) float32, normalised. Interpolation overshoot is clipped to the range of the pixels, as image
        libraries do.
    """
    import torch

    if patches.ndim != 4 or patches.shape[1:] != (PATCH, PATCH, 3) or patches.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"patches must be (n, {PATCH}, {PATCH}, 3) uint8, not {patches.shape} {patches.dtype}")
    margin = (PATCH - image.crop) // 2 if harmonise is None else 0
    cropped = patches[:, margin : PATCH - margin, margin : PATCH - margin]
    # The copy also makes a read-only memory map writable, which torch asks for.
    pixels = torch.from_numpy(np.array(cropped, order="C")) if isinstance(cropped, np.ndarray) else cropped.contiguous()
    x = pixels.to(device or pixels.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return _network_input(x, image, record) if harmonise is None else prepare_pixels(x, image, record, harmonise)


def prepare_pixels(x: Tensor, image: Image, record: Backbone, harmonise: Harmonise | None = None) -> Tensor:
    """`prepare` for pixels in 0…1, with gradients: what an attack needs. Bit for bit the same from uint8 / 255.

    Args:
        x: (n, 3, 128, 128) float in [0, 1]; it is not changed.

    Returns: (n, 3, s, s), dtype and device of `x`, normalised.
    """
    if x.ndim != 4 or x.shape[1:] != (3, PATCH, PATCH) or not x.is_floating_point():
        raise ValueError(f"pixels must be (n, 3, {PATCH}, {PATCH}) float, not {tuple(x.shape)} {x.dtype}")
    margin = (PATCH - image.crop) // 2
    x = harmonise_pixels(x, harmonise)
    return _network_input(x[:, :, margin : PATCH - margin, margin : PATCH - margin], image, record)


def _network_input(x: Tensor, image: Image, record: Backbone) -> Tensor:
    """Cropped pixels in 0…1 → resized, clipped, normalised; nothing in place, so that gradients pass."""
    from torch.nn import functional

    size = input_size(image, record)
    if size != image.crop:
        x = functional.interpolate(x, size=(size, size), mode=record.interpolation, antialias=True, align_corners=False)
        x = x.clamp(0, 1)
    return (x - _channels(record.mean, str(x.device))) / _channels(record.std, str(x.device))


@lru_cache(maxsize=64)
def _channels(values: tuple[float, float, float], device: str) -> Tensor:
    """(1, 3, 1, 1) float32, kept: making it anew on a GPU would halt the queue at every step."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
