"""Scanners made alike before the network (`reinhard`, `macenko`: part of `preprocess`), or on features (`combat`).

`low_pass` takes the same way: it does not make scanners alike, but takes away what an attack, or noise, hides in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augment.low_pass import LowPass, low_pass
from augment.macenko import macenko
from augment.reinhard import reinhard_pixels
from midog.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]

CONVERGED = 1e-4
"""Relative change at which the empirical Bayes iteration ends. Source: Johnson et al. 2007's published code."""


@dataclass(frozen=True)
class ReinhardColour:
    """Every patch gets the colour statistics of a typical one (`augment.reinhard.TYPICAL`), which no case was fitted
    for. Source: Reinhard et al. 2001."""

    kind: Literal["reinhard"] = "reinhard"


@dataclass(frozen=True)
class MacenkoStains:
    """Every patch is shown in the reference's stains (`augment.macenko`). Source: Macenko et al. 2009."""

    kind: Literal["macenko"] = "macenko"


@dataclass(frozen=True)
class CombatFeatures:
    """Once a member is trained, ComBat over the scanners of its training cases harmonises the features that its linear
    head is given, and the head is fitted again (`midog.training.refit`). Source: Johnson et al. 2007."""

    kind: Literal["combat"] = "combat"


Harmonise = ReinhardColour | MacenkoStains | LowPass | CombatFeatures
HARMONISERS: dict[str, type[Any] | None] = {
    "off": None,
    "reinhard": ReinhardColour,
    "macenko": MacenkoStains,
    "low_pass": LowPass,
    "combat": CombatFeatures,
}


def harmonise_pixels(x: Tensor, settings: Harmonise | None) -> Tensor:
    """(n, 3, 128, 128) float RGB in 0…1 to the same, with gradients; `x` itself where pixels stay as they are."""
    if isinstance(settings, ReinhardColour):
        return reinhard_pixels(x)
    if isinstance(settings, MacenkoStains):
        return macenko(x)
    return low_pass(x, settings) if isinstance(settings, LowPass) else x


# ── ComBat on features ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Combat:
    """Location and scale of each batch (scanner), feature by feature: `out = sd·(z − γ_b)/√δ_b + mean`, with
    `z = (x − mean)/sd`.

    Attributes:
        batches: names. Fit on training cases alone.
        mean, sd: (d,) of all batches; sd is 1 where a feature is constant.
        gamma, delta: (batches, d).
        effects: (covariates, d), taken out before and added back after.
        transductive: batches whose parameters come from the very features that they transform (`refit`): say so
            beside every result.

    Source: Johnson et al. 2007 (Biostatistics 8:118).
    """

    batches: tuple[str, ...]
    mean: Floats
    sd: Floats
    gamma: Floats
    delta: Floats
    effects: Floats
    transductive: tuple[str, ...] = ()

    def transform(
        self, features: ArrayLike, batch: ArrayLike, covariates: ArrayLike | None = None, unseen: str = "raise"
    ) -> Floats:
        """Harmonised features, (n, d) float64.

        Args:
            features: (n, d), finite. batch: (n,) names.
            covariates: (n, c) where it was fitted with some; never labels of cases that are scored.
            unseen: what to do with a batch that the fit never saw: raise; nearest, take the parameters of the batch
                nearest in feature space (our choice).

        Raises: DataError for an unseen batch, with `raise`; for features of another width, or not finite.
        """
        if unseen not in ("raise", "nearest"):
            raise DataError(f"unseen is {unseen!r}", "raise or nearest; `refit` makes a ComBat that knows the batch")
        x, names = _checked(features, batch)
        if x.shape[1] != len(self.mean):
            raise DataError(f"features are {x.shape[1]} wide, ComBat was fitted on {len(self.mean)}")
        offset = self.mean + _covariates(covariates, len(x), len(self.effects)) @ self.effects
        z = (x - offset) / self.sd
        codes = np.empty(len(x), dtype=np.int64)
        for name in np.unique(names):
            rows = names == name
            if str(name) in self.batches:
                codes[rows] = self.batches.index(str(name))
            elif unseen == "nearest":
                codes[rows] = self._nearest(z[rows].mean(axis=0))
            else:
                raise DataError(
                    f"ComBat never saw the batch {name}; it knows {', '.join(self.batches)}",
                    "unseen='nearest', or refit(), which is transductive and must be declared",
                )
        return np.asarray(self.sd * (z - self.gamma[codes]) / np.sqrt(self.delta[codes]) + offset)

    def _nearest(self, z: Floats) -> int:
        """The batch whose mean is nearest to that of standardised features, (d,)."""
        return int(((self.gamma - z) ** 2).sum(axis=1).argmin())

    def refit(self, features: ArrayLike, batch: ArrayLike, covariates: ArrayLike | None = None) -> Combat:
        """The same with parameters for batches that it never saw, from their own unlabelled features.

        That is transductive: those batches are named in `transductive`. Known ones stay as they are. A feature that
        was constant in the fit is left alone; one that is constant in the new batch is moved, not scaled.

        Raises: DataError as `fit_combat` does.
        """
        x, names = _checked(features, batch)
        z = (x - self.mean - _covariates(covariates, len(x), len(self.effects)) @ self.effects) / self.sd
        new = [str(name) for name in np.unique(names) if str(name) not in self.batches]
        unscaled = (self.delta == 1).all(axis=0)  # as `fit_combat` left what did not vary in every batch
        constant = unscaled & (self.gamma == 0).all(axis=0) & (self.sd == 1)
        parameters = [_location_scale(z[names == name], name) for name in new]
        gammas = [np.where(constant, 0.0, gamma) for gamma, _ in parameters]
        deltas = [np.where(unscaled | (delta == 0), 1.0, delta) for _, delta in parameters]
        return replace(
            self,
            batches=(*self.batches, *new),
            gamma=np.vstack([self.gamma, *gammas]),
            delta=np.vstack([self.delta, *deltas]),
            transductive=(*self.transductive, *new),
        )


def fit_combat(features: ArrayLike, batch: ArrayLike, covariates: ArrayLike | None = None, eb: bool = True) -> Combat:
    """ComBat's parameters from training cases.

    Args:
        features: (n, d), finite. batch: (n,) names of at least two batches of two or more.
        covariates: (n, c) what is to survive, such as a label of training cases; not constant.
        eb: shrink each batch's parameters towards their mean over features (parametric empirical Bayes).

    Raises: DataError for one batch, a batch of one, features that are not finite, a single feature with `eb`, or a
        covariate that the batches already determine.
    """
    x, names = _checked(features, batch)
    batches = tuple(str(name) for name in np.unique(names))
    if len(batches) < 2:
        raise DataError(f"ComBat needs two batches; here is only {batches[0]}", "harmonise: off")
    members = np.stack([names == name for name in batches], axis=1).astype(np.float64)
    beside: Floats = _covariates(covariates, len(x), None)
    design = np.hstack([members, beside])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise DataError("a covariate is constant, or determined by batch and other covariates", "leave it out")
    coefficients: Floats = np.asarray(np.linalg.lstsq(design, x, rcond=None)[0], dtype=np.float64)
    effects: Floats = coefficients[len(batches) :]
    mean: Floats = np.asarray(members.mean(axis=0) @ coefficients[: len(batches)])
    variance = ((x - design @ coefficients) ** 2).mean(axis=0)
    constant = _constant(variance, x)
    sd: Floats = np.where(constant, 1.0, np.sqrt(variance))
    z = (x - mean - beside @ effects) / sd
    found = [_location_scale(z[names == name], name) for name in batches]
    gamma, delta = np.array([each for each, _ in found]), np.array([each for _, each in found])
    varies = ~constant & (delta > 0).all(axis=0)
    gamma[:, constant], delta[:, ~varies] = 0.0, 1.0
    if eb:
        if varies.sum() < 2:
            raise DataError(f"empirical Bayes needs two features that vary; here are {varies.sum()}", "eb=False")
        for at, name in enumerate(batches):
            shrunk = _shrink(z[names == name][:, varies], gamma[at, varies], delta[at, varies])
            gamma[at, varies], delta[at, varies] = shrunk
    return Combat(batches, mean, sd, gamma, delta, effects)


def _location_scale(z: Floats, name: str) -> tuple[Floats, Floats]:
    """Mean and variance of one batch, (d,) each; the variance is 0 where a feature is constant."""
    if len(z) < 2:
        raise DataError(f"ComBat needs two patches of each batch; of {name} there is one", "leave the batch out")
    scale = z.var(axis=0, ddof=1)
    return z.mean(axis=0), np.where(_constant(scale, z), 0.0, scale)


def _constant(variance: Floats, x: Floats) -> NDArray[np.bool_]:
    """(d,) where it is 0 but for rounding in a mean of equal numbers, which must not look like a spread."""
    return np.asarray(variance <= 1e-20 * np.maximum(1.0, (x**2).mean(axis=0)), dtype=np.bool_)


def _shrink(z: Floats, gamma: Floats, delta: Floats) -> tuple[Floats, Floats]:
    """Posterior location and scale of one batch, iterated until neither moves. Source: Johnson et al. 2007, 3.2."""
    n, prior, spread = len(z), gamma.mean(), gamma.var(ddof=1)
    m, s2 = delta.mean(), delta.var(ddof=1)
    if spread == 0 or s2 == 0:  # all features agree: nothing to shrink
        return gamma, delta
    shape, scale = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    before = gamma, delta
    while True:
        location = (n * spread * gamma + before[1] * prior) / (n * spread + before[1])
        deviation = (scale + 0.5 * ((z - location) ** 2).sum(axis=0)) / (n / 2 + shape - 1)
        after = location, deviation
        moved = max(
            np.max(np.abs(new - old) / np.maximum(np.abs(old), 1e-12)) for new, old in zip(after, before, strict=True)
        )
        before = after
        if moved <= CONVERGED:
            return after


def _checked(features: ArrayLike, batch: ArrayLike) -> tuple[Floats, NDArray[np.str_]]:
    x, names = np.asarray(features, dtype=np.float64), np.asarray(batch).astype(str)
    if x.ndim != 2 or not x.size or names.shape != (len(x),):
        raise DataError(f"features are {x.shape}, batches {names.shape}: (n, d) and (n,) are needed")
    if not np.isfinite(x).all():
        raise DataError(f"{int((~np.isfinite(x)).any(axis=1).sum())} patches have features that are not finite")
    return x, names


def _covariates(covariates: ArrayLike | Sequence[Any] | None, n: int, count: int | None) -> Floats:
    """(n, c) float64; (n, 0) for none. `count` is how many there must be."""
    beside = np.zeros((n, 0)) if covariates is None else np.asarray(covariates, dtype=np.float64).reshape(n, -1)
    if count is not None and beside.shape[1] != count:
        raise DataError(f"{beside.shape[1]} covariates, ComBat was fitted with {count}")
    return beside
