"""What every attack shares: distances between features, gradients with respect to pixels, sign steps within a budget.

Pixels are (n, 3, h, w) float in [0, 1], before the model's normalisation. A model is a callable that normalises inside:
`encode` gives features (n, d), `logit` gives logits (n,). An attack may work on patches as they are stored, 128 px, if
the callable resizes differentiably, or at the model's input size. Labels are not needed for features.

A module is put into eval mode while an attack runs and comes back as it was; a lambda around a module hides it:
call `.eval()` first, or attack within `with evaluating(module)`. Weights, buffers and `.grad` are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from midog.errors import ArgumentError, DataError, UsageError, unknown

Encode = Callable[[Tensor], Tensor]
"""(n, 3, h, w) pixels in [0, 1] to (n, d) features."""
Objective = Callable[[Tensor], Tensor]
"""(n, …) to a number for each image, (n,), which depends on that image alone."""
DISTANCES = ("cosine", "l2")
BATCH = 32
GREY = 255
SMALL = 1e-12


def check_pixels(pixels: Tensor) -> None:
    """Raises: DataError unless `pixels` are (n, 3, h, w) float with n ≥ 1, all in [0, 1]."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels) or not pixels.is_floating_point():
        raise DataError(
            f"pixels are {tuple(pixels.shape)} {pixels.dtype}",
            "(n, 3, h, w) float in [0, 1], at least one image: divide uint8 by 255 and permute",
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"pixels reach from {low:g} to {high:g}", "0 to 1, before the model's normalisation")


def check_delta(delta: Tensor, pixels: Tensor) -> None:
    """Raises: DataError unless `delta` is finite and fits: (1 or n, 3, h, w) for `pixels` (n, 3, h, w)."""
    if delta.shape[1:] != pixels.shape[1:] or len(delta) not in (1, len(pixels)):
        raise DataError(
            f"the perturbation is {tuple(delta.shape)}, the pixels are {tuple(pixels.shape)}",
            "a perturbation belongs to one input size: fit it again at this one",
        )
    if not bool(torch.isfinite(delta).all()):
        raise DataError("the perturbation holds numbers that are not finite", "fit it again")


def check_mask(mask: Tensor, pixels: Tensor) -> None:
    """Raises: DataError unless `mask` is bool (1 or n, 1, h, w) for `pixels` (n, 3, h, w)."""
    wanted = (1, *pixels.shape[2:])
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1:] != wanted or len(mask) not in (1, len(pixels)):
        raise DataError(
            f"the mask is {tuple(mask.shape)} {mask.dtype}, the pixels are {tuple(pixels.shape)}",
            f"a bool tensor (1 or n, {', '.join(map(str, wanted))}): see midog.robustness.masks",
        )


def check_budget(name: str, value: float, most: float = 1) -> None:
    """Raises: ArgumentError unless 0 <= `value` <= `most`."""
    if not 0 <= value <= most:
        raise ArgumentError(f"{name} is {value}", f"0 (no attack) to {most:g}; pixels reach from 0 to 1")


def check_above_zero(name: str, value: float) -> None:
    """Raises: ArgumentError unless `value` > 0."""
    if not value > 0:
        raise ArgumentError(f"{name} is {value}", "more than 0")


@contextmanager
def evaluating(*calls: Encode) -> Iterator[None]:
    """Modules among `calls` are in eval mode here, and afterwards each part is in the mode it was in."""
    modules = [part for call in calls if isinstance(call, nn.Module) for part in call.modules()]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def features_of(encode: Encode, pixels: Tensor, batch: int = BATCH) -> Tensor:
    """(n, d) features without gradient, `batch` images at a time.

    Raises: DataError for features that are not finite or not (n, d).
    """
    with torch.no_grad(), evaluating(encode):
        return torch.cat([checked_features(encode(part), len(part)) for part in torch.split(pixels, batch)])


def checked_features(features: Tensor, n: int) -> Tensor:
    """`features`, if they are finite and (n, d). Raises: DataError otherwise."""
    if features.ndim != 2 or len(features) != n:
        raise DataError(f"features are {tuple(features.shape)} for {n} images", "one row for each image: (n, d)")
    finite = torch.isfinite(features.detach()).all(dim=1)
    if not bool(finite.all()):
        raise DataError(
            f"features of {int((~finite).sum())} of {n} images are not finite", "run the model in float32, in eval mode"
        )
    return features


def distance(kind: str, features: Tensor, reference: Tensor) -> Tensor:
    """D of each row, (n,): `cosine` is 1 − cos, 0 to 2; `l2` is the squared Euclidean distance.

    Raises: UsageError for another kind.
    """
    if kind == "cosine":
        return 1 - cosine(features, reference)
    if kind == "l2":
        return (features - reference).square().sum(dim=1)
    raise unknown("distance", kind, DISTANCES)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row, (n,). A zero vector has cosine 1 with another zero vector and 0 with anything else."""
    product = a.norm(dim=1) * b.norm(dim=1)
    both_zero = ~a.detach().any(dim=1) & ~b.detach().any(dim=1)
    return torch.where(both_zero, 1.0, (a * b).sum(dim=1) / product.clamp_min(SMALL))


def value_and_gradient(objective: Objective, x: Tensor, checked: bool = True) -> tuple[Tensor, Tensor]:
    """The objective of each image, (n,), and the gradient of their sum with respect to `x`, of the shape of `x`.

    A model that answers the same to everything has gradient 0, which is an answer, not an error.

    Raises: UsageError where autograd was off inside the model; DataError, where it is `checked` (which waits for a
        GPU), for a value or gradient that is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():  # type: ignore[no-untyped-call]
        x = x.detach().clone().requires_grad_(True)
        values = objective(x)
        if not values.requires_grad:
            raise UsageError(
                "the model gives no gradient: it would look robust because it cannot be attacked",
                "no no_grad, inference_mode, detach or numpy inside the callable",
            )
        found = torch.autograd.grad(values.sum(), x, allow_unused=True)[0]
    gradient = torch.zeros_like(x) if found is None else found
    for name, numbers in (("value", values.detach()), ("gradient", gradient)) if checked else ():
        finite = torch.isfinite(numbers).flatten(1).all(dim=1) if numbers.ndim > 1 else torch.isfinite(numbers)
        if not bool(finite.all()):
            raise DataError(
                f"the attack's {name} is not finite for {int((~finite).sum())} of {len(numbers)} images",
                "run the model in float32, in eval mode; look for a square root or logarithm of 0",
            )
    return values.detach(), gradient.detach()


def add(pixels: Tensor, delta: Tensor, mask: Tensor | None = None) -> Tensor:
    """clip(pixels + delta) to [0, 1]; where `mask` is False, and where delta is 0, the pixels bit for bit.

    Args:
        pixels: (n, 3, h, w) in [0, 1]. delta: (1 or n, 3, h, w). mask: bool (1 or n, 1, h, w).

    Raises: DataError for a perturbation or mask of another size.
    """
    check_delta(delta, pixels)
    if mask is not None:
        check_mask(mask, pixels)
    return shifted(pixels, delta, mask)


def shifted(pixels: Tensor, delta: Tensor, mask: Tensor | None = None) -> Tensor:
    """`add` without its checks, which wait for a GPU: what an attack does at every step."""
    changed = (pixels + delta).clamp(0, 1)
    return changed if mask is None else torch.where(mask.to(pixels.device), changed, pixels)


def uniform(shape: tuple[int, ...] | torch.Size, radius: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from U(−radius, radius), dtype and device of `like`; drawn on the CPU, so the same on every device."""
    return ((2 * torch.rand(shape, generator=generator) - 1) * radius).to(like)


def sign_noise(shape: tuple[int, ...] | torch.Size, epsilon: float, like: Tensor, seed: int) -> Tensor:
    """The control of equal budget: +epsilon or −epsilon, each with one half, at every number of `shape`.

    All of it lies on the border of the budget, so its L2 norm is at least that of any attack with the same epsilon
    (where nothing is clipped at 0 or 1).
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, tuple(shape), generator=generator) * 2.0 - 1).to(like) * epsilon


def ascend(
    objective: Objective,
    pixels: Tensor,
    start: Tensor,
    epsilon: float,
    alpha: float,
    steps: int,
    momentum: float = 0.0,
    mask: Tensor | None = None,
    checked: bool = True,
) -> Tensor:
    """Sign steps that raise `objective` of pixels within ±epsilon and [0, 1]: the attacked pixels.

        m ← momentum·m + g/‖g‖₁,  x ← clip01(clip(x + alpha·sign m, ±epsilon))        (g alone where momentum is 0)

    Args:
        objective: (n, 3, h, w) to (n,). pixels: (n, 3, h, w). start: perturbation to begin with. mask: see `add`.
        checked: see `value_and_gradient`.

    Source: Madry et al. 2018 (PGD) and Dong et al. 2018 (momentum); the mask, our choice.
    """
    x, velocity = shifted(pixels, start, mask), torch.zeros_like(pixels)
    for _ in range(steps):
        gradient = value_and_gradient(objective, x, checked)[1]
        if momentum:
            if mask is not None:
                gradient = gradient * mask.to(gradient.device)
            norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
            velocity = gradient = momentum * velocity + gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        moved = x + alpha * gradient.sign()
        x = shifted(pixels, (moved - pixels).clamp(-epsilon, epsilon), mask)
    return x


def to_grey_levels(attacked: Tensor, clean: Tensor) -> Tensor:
    """What is left of an attack in an 8-bit image: each change rounded towards 0 in whole grey levels.

    A change below 1/255 vanishes, and none grows beyond its budget, as rounding to the nearest level would allow.
    Our choice.

    Args:
        attacked, clean: (n, 3, h, w) in [0, 1]; `clean` as stored, whole multiples of 1/255.

    Raises: DataError for clean pixels off that grid (resized ones: attack the stored patch and resize in the callable).
    """
    grey = (clean * GREY).round()
    if float((clean * GREY - grey).abs().max()) > 1e-3:
        raise DataError(
            "these pixels are no 8-bit image: resized ones cannot be stored in grey levels",
            "attack the stored 128 px patches, and resize inside the callable",
        )
    change = (attacked - clean) * GREY
    # A change of exactly 2 levels may read 1.9999 after float arithmetic.
    whole = (change + 1e-3 * change.sign()).trunc()
    return torch.where(whole == 0, clean, (grey + whole) / GREY)
