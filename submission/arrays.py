"""Arrays as SimpleITK returns them: which of their axes are pages, and how their numbers become pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import ContractError

Pixels = NDArray[np.uint8]


def array_to_rgb(array: NDArray[Any]) -> Pixels:
    """(h, w) or (h, w, 1|3|4) numbers of any type → (h, w, 3) uint8 RGB; alpha is dropped.

    Wider integers lose their low byte; floats are scaled from [0, 1], or clipped to 0-255 if their maximum exceeds 1.

    Raises: ContractError for another number of channels.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[-1] not in (1, 3, 4) or array.size == 0:
        raise ContractError(f"a page of shape {array.shape} is no image", "write the stack as RGB pages")
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
    if array.dtype.kind == "f":
        values = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        array = np.rint(values if values.max() > 1 else values * 255)
    elif array.dtype == np.uint16 or (array.dtype.itemsize > 1 and array.max() > 255):
        array = array.astype(np.int64) >> 8
    return np.asarray(np.clip(array, 0, 255), dtype=np.uint8)


def split_pages(array: NDArray[Any], vector: bool) -> list[NDArray[Any]]:
    """Pages, (h, w) or (h, w, c), of an array as SimpleITK returns it.

    A scalar image whose last axis is 3 or 4 long is taken for colour.

    Raises: ContractError for a shape that is no stack of pages.
    """
    colour = vector or (array.ndim > 2 and array.shape[-1] in (3, 4))
    spatial = array.ndim - colour
    if spatial == 2:
        return [array]
    if spatial == 3:
        return list(array)
    raise ContractError(f"an array of shape {array.shape} is no stack of pages", "write the stack as TIFF pages")
