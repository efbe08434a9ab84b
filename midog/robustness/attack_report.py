"""Runs models on clean and attacked pixels: the effect by scanner and tumour, beside noise, and across members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from midog.errors import ArgumentError, DataError
from midog.metrics import REPLICATES
from midog.robustness.effects import Answers, Distortion, Effect, Estimate, drops, effect, group_rows
from midog.robustness.perturbation import BATCH, Encode, check_delta, check_pixels, evaluating, to_grey_levels

NOISE = "noise"
"""The control's name among `versions`: the others' excess is counted from it."""
STORED = "stored"
"""Added to the name of a version that was rounded to an 8-bit image first."""
ENSEMBLE = "ensemble mean"


@dataclass(frozen=True)
class Victim:
    """A model as attacks see it: callables on (n, 3, h, w) pixels in [0, 1], which resize and normalise inside.

    logit: to (n,) logits of atypical. encode: to (n, d) features, or None. threshold: logit from which a patch is
    called atypical.
    """

    logit: Callable[[Tensor], Tensor]
    encode: Encode | None = None
    threshold: float = 0.0


@dataclass(frozen=True)
class Row:
    """The effect of one version of the pixels on one group. `excess`: the drop beyond the noise control's, or None."""

    version: str
    by: str
    group: str
    effect: Effect
    excess: dict[str, Estimate] | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Cell:
    """The effect on `victim` of pixels attacked with the help of `surrogate`."""

    surrogate: str
    victim: str
    effect: Effect

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def answers(victim: Victim, pixels: Tensor, batch: int = BATCH) -> Answers:
    """Logits and features of all pixels in eval mode, float64.

    Raises: DataError for answers that are not finite, or not one for each image.
    """
    logits, features = [], []
    calls = [victim.logit] if victim.encode is None else [victim.logit, victim.encode]
    with torch.no_grad(), evaluating(*calls):
        for part in torch.split(pixels, batch):
            logits.append(_numbers(victim.logit(part)))
            if len(np.atleast_1d(logits[-1])) != len(part):
                raise DataError(f"{logits[-1].shape} logits for {len(part)} images", "one for each: (n,)")
            if victim.encode is not None:
                features.append(_numbers(victim.encode(part)))
    return Answers(np.concatenate(logits), np.concatenate(features) if features else None)


def distortion(clean: Tensor, attacked: Tensor) -> Distortion:
    """How far `attacked` (n, 3, h, w) is from `clean`, image by image."""
    parts = []
    for a, b in zip(torch.split(clean, BATCH), torch.split(attacked, BATCH), strict=True):
        change = (b.double() - a.double()).flatten(1)
        parts.append(torch.stack([change.norm(dim=1), change.abs().amax(dim=1), change.square().mean(dim=1)]))
    l2, linf, mean_square = _numbers(torch.cat(parts, dim=1))
    return Distortion(l2, linf, mean_square)


def attack_report(
    victim: Victim,
    pixels: Tensor,
    versions: Mapping[str, Tensor],
    label: ArrayLike,
    case: ArrayLike,
    groups: Mapping[str, ArrayLike] | None = None,
    quantise: bool = False,
    batch: int = BATCH,
    n: int = REPLICATES,
    seed: int = 0,
) -> tuple[Row, ...]:
    """What each version of the pixels does to a model, overall and by group.

    Args:
        pixels: (n, 3, h, w) clean. versions: name to attacked pixels of that shape, among them the control `noise`.
        label: (n,) 1 = atypical. case: (n,). groups: a column for each word, e.g. {"scanner": …, "tumour": …}.
        quantise: Report each version a second time, `<name>, stored`, as an 8-bit image would hold it. Changes below
            1/255 vanish there; `pixels` must be stored patches, not resized ones.

    Raises: DataError for versions of another size, unequal lengths, or answers that are not finite.
    """
    seen = _checked(pixels, versions)
    if quantise:
        seen |= {f"{name}, {STORED}": to_grey_levels(one, pixels) for name, one in seen.items()}
    clean = answers(victim, pixels, batch)
    found = {name: (answers(victim, one, batch), distortion(pixels, one)) for name, one in seen.items()}
    y, cases = np.asarray(label), np.asarray(case).astype(str)
    rows = []
    for by, group, chosen in group_rows(groups or {}, len(pixels)):
        about = (_rows(y, chosen), _rows(cases, chosen))
        for name, (attacked, change) in found.items():
            here = attacked.rows(chosen)
            control = f"{NOISE}, {STORED}" if name.endswith(f", {STORED}") else NOISE
            excess = None
            if name != control and control in found:
                excess = drops(*about, found[control][0].rows(chosen), here, victim.threshold, n, seed)
            result = effect(*about, clean.rows(chosen), here, victim.threshold, change.rows(chosen), n, seed)
            rows.append(Row(name, by, group, result, excess))
    return tuple(rows)


def transfer(
    members: Mapping[str, Victim],
    pixels: Tensor,
    versions: Mapping[str, Tensor],
    label: ArrayLike,
    case: ArrayLike,
    threshold: float = 0.0,
    batch: int = BATCH,
    n: int = REPLICATES,
    seed: int = 0,
) -> tuple[Cell, ...]:
    """The matrix surrogate × victim: every version of the pixels against every member and their mean logit.

    Args:
        members: The ensemble's members by name; their mean logit is the victim `ensemble mean`.
        versions: Surrogate's name to the pixels attacked with its help; add `noise`, the control, as one of them.
        threshold: Of the ensemble mean.

    Raises: as `attack_report`; ArgumentError for a member called `ensemble mean`, or no member.
    """
    if not members or ENSEMBLE in members:
        raise ArgumentError(f"members: {', '.join(members) or 'none'}", f"at least one, and none called {ENSEMBLE}")
    seen = _checked(pixels, versions)
    thresholds = {**{name: victim.threshold for name, victim in members.items()}, ENSEMBLE: threshold}
    clean = _all_answers(members, pixels, batch)
    cells = []
    for surrogate, attacked in seen.items():
        change = distortion(pixels, attacked)
        for name, found in _all_answers(members, attacked, batch).items():
            result = effect(label, case, clean[name], found, thresholds[name], change, n, seed)
            cells.append(Cell(surrogate, name, result))
    return tuple(cells)


def matrix(cells: tuple[Cell, ...], score: str = "roc_auc") -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Surrogates (rows), victims (columns) and the drop of `score` in each cell; NaN where undefined."""
    surrogates, victims = list(dict.fromkeys(c.surrogate for c in cells)), list(dict.fromkeys(c.victim for c in cells))
    drop = np.full((len(surrogates), len(victims)), np.nan)
    for cell in cells:
        value = cell.effect.drop[score].value
        if value is not None:
            drop[surrogates.index(cell.surrogate), victims.index(cell.victim)] = value
    return surrogates, victims, drop


def _checked(pixels: Tensor, versions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check_pixels(pixels)
    for version in versions.values():
        check_pixels(version)
        check_delta(version, pixels)
        if len(version) != len(pixels):
            raise DataError(f"{len(version)} attacked images for {len(pixels)} clean ones", "one for each, in order")
    return dict(versions)


def _all_answers(members: Mapping[str, Victim], pixels: Tensor, batch: int) -> dict[str, Answers]:
    found = {name: answers(victim, pixels, batch) for name, victim in members.items()}
    return {**found, ENSEMBLE: Answers(np.mean([one.logits for one in found.values()], axis=0))}


def _rows(column: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[Any]:
    if column.shape != chosen.shape:
        raise DataError(f"{len(column)} labels or cases for {len(chosen)} patches")
    return column[chosen]


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.detach().double().cpu().numpy(), dtype=np.float64)
