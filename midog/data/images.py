"""One image file: decoded to 8-bit RGB, or a word on why it cannot be."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from midog.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

PATCH = 128
"""Side of a patch in pixels; 32 µm at 0.25 µm/px."""
Bytes = npt.NDArray[np.uint8]


def to_rgb(image: Image.Image) -> Bytes:
    """Any Pillow image as (h, w, 3) uint8 RGB; alpha is dropped, not blended.

    16-bit grey is shifted by 8 bits; float grey is scaled from [0, 1], or clipped to 0–255 when its maximum is above 1
    (Pillow's own conversion clips both at 255).
    """
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    elif image.mode == "I":
        wide = np.asarray(image)
        grey = np.clip(wide >> 8 if wide.size and wide.max() > 255 else wide, 0, 255).astype(np.uint8)
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        scale = 1.0 if values.size and values.max() > 1 else 255.0
        grey = np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)
    else:
        return np.array(image.convert("RGB"), dtype=np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_image(path: Path | str) -> Bytes:
    """The image at `path` as (h, w, 3) uint8 RGB, of any size and mode.

    Raises: DataError when it is missing or unreadable.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", "check the path") from error
    try:
        return to_rgb(open_image(content))
    except Unusable as error:
        raise DataError(f"{path}: {error.text}", "replace the file by a whole PNG, TIFF or JPEG") from error


class Unusable(Exception):
    """Why an image cannot be used. kind: unreadable, mode or size."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text
        super().__init__(text)


def open_image(content: bytes) -> Image.Image:
    """Decoded image, or Unusable. Damage that Pillow lets pass (a wrong checksum) counts as damage."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise Unusable("unreadable", "empty file")
    try:
        with Image.open(io.BytesIO(content)) as probe:
            probe.verify()
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        text = "not an image" if isinstance(error, UnidentifiedImageError) else f"damaged or cut short ({error})"
        raise Unusable("unreadable", text) from error
    return image


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits per channel in the file: Pillow hands 16-bit colour out as 8-bit without a word."""
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(258, (8,))))  # type: ignore[attr-defined]
    return 8


def decode_patch(content: bytes) -> Bytes:
    """(128, 128, 3) uint8 of one patch file, or Unusable."""
    image = open_image(content)
    bits = _bits(image, content)
    names = {
        "L": "grey",
        "LA": "grey with alpha",
        "RGBA": "RGBA",
        "P": "palette",
        "1": "black and white",
        "F": "float grey",
    }
    if bits > 8 or image.mode.startswith("I"):
        raise Unusable("mode", f"{max(bits, 16)}-bit {'colour' if image.mode == 'RGB' else 'grey'}, not 8-bit RGB")
    if image.mode != "RGB":
        raise Unusable("mode", f"{names.get(image.mode, image.mode)}, not 8-bit RGB")
    if image.size != (PATCH, PATCH):
        raise Unusable("size", f"{image.width} × {image.height} pixels, not {PATCH} × {PATCH}")
    return np.asarray(image)


def is_padded(pixels: Bytes) -> bool:
    return not (pixels[0].any() and pixels[-1].any() and pixels[:, 0].any() and pixels[:, -1].any())
