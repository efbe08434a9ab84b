"""Where a local attack may change a patch: bool masks (1, 1, h, w), True = may change. `share` is their budget q."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from midog.errors import ArgumentError
from midog.robustness.perturbation import check_budget


def token_mask(size: int, patch: int, row: int, column: int) -> Tensor:
    """The cell of one ViT token: `patch` pixels square, counted from the top left, in an input of `size` pixels.

    Raises: ArgumentError when the cells do not tile the input, or there is no such cell.
    """
    if patch < 1 or size % patch:
        raise ArgumentError(
            f"tokens of {patch} pixels do not tile {size} pixels", "the model's own input and token size"
        )
    cells = size // patch
    if not (0 <= row < cells and 0 <= column < cells):
        raise ArgumentError(f"no token at row {row}, column {column}", f"rows and columns from 0 to {cells - 1}")
    return box_mask(size, row * patch, column * patch, patch, patch)


def rim_mask(size: int, q: float) -> Tensor:
    """A rim along the border, as wide as whole pixels allow with at most the share `q` of all; the figure stays inside.

    Raises: ArgumentError for a `q` outside [0, 1].
    """
    check_budget("q", q)
    width = max(w for w in range((size + 1) // 2 + 1) if size**2 - max(0, size - 2 * w) ** 2 <= q * size**2)
    mask = torch.ones((1, 1, size, size), dtype=torch.bool)
    mask[:, :, width : size - width, width : size - width] = False
    return mask


def centre_mask(size: int, q: float) -> Tensor:
    """A square at the centre, as large as whole pixels allow with at most the share `q` of all.

    Raises: ArgumentError for a `q` outside [0, 1].
    """
    check_budget("q", q)
    side = math.isqrt(math.floor(q * size**2))
    return box_mask(size, (size - side) // 2, (size - side) // 2, side, side)


def box_mask(size: int, top: int, left: int, height: int, width: int) -> Tensor:
    """A box of `height` × `width` pixels whose first row and column are `top` and `left`.

    Raises: ArgumentError when it does not lie within `size` × `size` pixels.
    """
    if min(top, left, height, width) < 0 or top + height > size or left + width > size:
        raise ArgumentError(f"a box of {height} × {width} at ({top}, {left}) leaves {size} × {size} pixels")
    mask = torch.zeros((1, 1, size, size), dtype=torch.bool)
    mask[:, :, top : top + height, left : left + width] = True
    return mask


def share(mask: Tensor) -> float:
    """q: the share of pixels that may change."""
    return float(mask.double().mean())
