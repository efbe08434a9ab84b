"""Macenko's stain normalisation: the patch's own haematoxylin and eosin, shown in fixed ones of fixed strength.

On tensors, a batch at a time, with gradients, and without waiting for the device: no eigenvalue routine, no loop over
patches. `macenko_patches` is the same for uint8 arrays: a view, and an augmentation (`augment.normalise`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

WHITE = 240.0
"""Intensity of unstained glass, of 255."""
FAINT = 0.15
"""Pixels with less optical density in any channel are no tissue. Source: Macenko et al. 2009 (β)."""
PERCENT = 1.0
"""Angles of the stains are these percentiles, from either end. Source: Macenko et al. 2009 (α)."""
STRONGEST = 99.0
"""A stain's strength is this percentile of its amounts."""
STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
STRENGTHS = (1.9705, 1.0308)
"""Haematoxylin and eosin that patches are shown in, and their strengths: the reference that public implementations of
the method carry (also torchstain); fitted to no case of ours."""
LEAST_TISSUE = 0.01
"""Below this share of tissue pixels a patch stays as it is (our choice)."""
SQUARINGS = 8


def macenko(x: Tensor, strengths: Sequence[float] = STRENGTHS) -> Tensor:
    """Give each patch the stains of the reference.

    Args:
        x: (n, 3, h, w) float RGB in 0…1. Pure black pixels are border padding: they do not count and stay black.
        strengths: optical density of the strongest haematoxylin and eosin, above 0.

    Returns: the same shape, dtype and device, in 0…1, not rounded to grey levels. A patch that is almost all glass, or
        in which two stains cannot be told apart, comes back as it is.

    Raises: ArgumentError for strengths that are not two finite numbers above 0.

    Source: Macenko et al. 2009, ISBI, 1107; centred covariance as in the method's public implementations.
    """
    import torch

    if len(strengths) != 2 or not all(0 < strength < math.inf for strength in strengths):
        raise ArgumentError(f"stain strengths {list(strengths)}", "two finite numbers above 0: haematoxylin, eosin")
    n, _, height, width = x.shape
    seen = (x > 0).any(dim=1).flatten(1)
    density = -((255 * x + 1) / WHITE).log().flatten(2)
    tissue = (density >= FAINT).all(dim=1) & seen
    count = tissue.sum(dim=1)
    haematoxylin, eosin = _stains(density, tissue, count)
    overlap = (haematoxylin * eosin).sum(dim=1)
    own = [torch.einsum("nc,ncp->np", stain, density) for stain in (haematoxylin, eosin)]
    apart = (1 - overlap**2).clamp_min(1e-6)[:, None]
    both = [(own[0] - overlap[:, None] * own[1]) / apart, (own[1] - overlap[:, None] * own[0]) / apart]
    strongest = [_percentile(amount, seen, STRONGEST) for amount in both]
    enough = (count >= LEAST_TISSUE * height * width) & (1 - overlap**2 > 1e-4)
    for strength in strongest:
        enough = enough & (strength > 0.01)
    shown = [
        amount * (wanted / strength.clamp_min(0.01))[:, None]
        for amount, strength, wanted in zip(both, strongest, strengths, strict=True)
    ]
    # Channel by channel: numbers of this program need no copy to the device.
    channels = [shown[0] * STAINS[0][c] + shown[1] * STAINS[1][c] for c in range(3)]
    intensity = (WHITE * (-torch.stack(channels, dim=1)).exp() - 1).clamp(0, 255) / 255
    changed = seen[:, None] & enough[:, None, None]
    return torch.where(changed.view(n, 1, height, width), intensity.view_as(x), x)


def macenko_patches(patches: NDArray[np.uint8], strengths: Sequence[float] = STRENGTHS) -> NDArray[np.uint8]:
    """`macenko` of (n, h, w, 3) uint8 RGB patches, rounded to grey levels.

    In double precision, so that threads and the other patches of a batch change no grey level.
    """
    import torch

    shown = macenko(torch.tensor(patches).permute(0, 3, 1, 2).double() / 255, strengths)
    return np.ascontiguousarray((255 * shown).round().byte().permute(0, 2, 3, 1).numpy())


def _stains(density: Tensor, tissue: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 3) unit vectors of haematoxylin and eosin: the outermost directions in the plane of tissue's densities."""
    import torch
    from torch.nn.functional import normalize

    weight = tissue[:, None].to(density.dtype)
    size = count.clamp_min(2).to(density.dtype)
    mean = (density * weight).sum(dim=2) / size[:, None]
    away = (density - mean[:, :, None]) * weight
    normal = _least_direction(away @ away.transpose(1, 2) / (size - 1)[:, None, None])
    # The plane's own axes: along the mean, so that no angle comes near a half turn, and at right angles to it.
    along = normalize(mean - (mean * normal).sum(dim=1, keepdim=True) * normal, dim=1)
    across = torch.linalg.cross(normal, along, dim=1)
    first, second = (torch.einsum("nc,ncp->np", axis, density) for axis in (along, across))
    angle = torch.atan2(torch.where(tissue, second, 0.0), torch.where(tissue, first, 1.0))
    ends = [_percentile(angle, tissue, percent)[:, None] for percent in (PERCENT, 100 - PERCENT)]
    low, high = (end.cos() * along + end.sin() * across for end in ends)
    redder = (low[:, :1] > high[:, :1]).expand_as(low)  # haematoxylin takes more of the red
    return torch.where(redder, low, high), torch.where(redder, high, low)


def _least_direction(covariance: Tensor) -> Tensor:
    """(n, 3, 3) symmetric to the (n, 3) unit eigenvector of the smallest eigenvalue.

    The adjugate has the same eigenvectors, that one with the largest eigenvalue: squaring makes it the only one.
    """
    import torch
    from torch.nn.functional import normalize

    a, b, c = covariance.unbind(dim=1)
    rows = [torch.linalg.cross(b, c, dim=1), torch.linalg.cross(c, a, dim=1), torch.linalg.cross(a, b, dim=1)]
    power = torch.stack(rows, dim=1)
    for _ in range(SQUARINGS):
        power = power / power.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
        power = power @ power
    longest = power.norm(dim=2).argmax(dim=1)
    return normalize(power.gather(1, longest[:, None, None].expand(-1, 1, 3)).squeeze(1), dim=1)


def _percentile(values: Tensor, chosen: Tensor, percent: float) -> Tensor:
    """(n, p) to (n,): the percentile over the `chosen` of each row, interpolated as numpy does.

    Only the values beyond it are put in order, from its nearer end: of a patch's 16,384 a hundredth.
    """
    upper = percent > 50
    size = values.shape[1]
    needed = min(size, int(size * min(percent, 100 - percent) / 100) + 3)
    ordered = values.masked_fill(~chosen, -1e6 if upper else 1e6).topk(needed, dim=1, largest=upper).values
    last = (chosen.sum(dim=1) - 1).clamp_min(0)
    place = last * (percent / 100)
    low = place.floor().long()
    high = (low + 1).minimum(last)
    ends = (last - at if upper else at for at in (low, high))
    below, above = (ordered.gather(1, at[:, None]).squeeze(1) for at in ends)
    return below + (above - below) * (place - low)
