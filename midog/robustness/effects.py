"""What an attack does to a model's answers: drops of balanced accuracy and AUROC, flips, features; by group, by case.

Numbers in, numbers out: nothing here runs a model (`attack_report` does). Always read beside noise of equal budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError
from midog.metrics import REPLICATES, Interval, mean_replicates, percentile_interval, replicates, scores

ALL = "all"
DROPS = ("balanced_accuracy", "roc_auc")
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers to n images: `logits` (n,) of atypical, and `features` (n, d) where there are any.

    Raises: DataError for numbers that are not finite, or another shape.
    """

    logits: Floats
    features: Floats | None = None

    def __post_init__(self) -> None:
        if self.logits.ndim != 1:
            raise DataError(f"logits are {self.logits.shape}", "one for each image: (n,)")
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != len(self.logits)):
            raise DataError(f"features are {self.features.shape} for {len(self.logits)} logits", "(n, d)")
        for name, values in (("logits", self.logits), ("features", self.features)):
            if values is not None and not np.isfinite(values).all():
                raise DataError(f"{int((~np.isfinite(values)).sum())} {name} are not finite", "run it in float32")

    def rows(self, chosen: NDArray[np.bool_]) -> Answers:
        """Those of some images."""
        return Answers(self.logits[chosen], None if self.features is None else self.features[chosen])


@dataclass(frozen=True, eq=False)
class Distortion:
    """How far attacked pixels in [0, 1] are from the clean ones, each (n,): L2 and L∞ norm, mean square."""

    l2: Floats
    linf: Floats
    mean_square: Floats

    def rows(self, chosen: NDArray[np.bool_]) -> Distortion:
        """That of some images."""
        return Distortion(self.l2[chosen], self.linf[chosen], self.mean_square[chosen])


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % case-bootstrap interval; None where undefined."""

    value: float | None
    interval: Interval | None = None


@dataclass(frozen=True)
class Effect:
    """An attack's effect on `n` patches. A positive drop is a loss.

    flip_rate: share of patches whose class changes. fraction_shift: mean over cases of the absolute change of the
    share called atypical. feature_cosine: mean over patches, clean against attacked. l2: mean over patches; linf: the
    largest; psnr: in dB, of the mean square over all patches. What is not defined, or was not given, is None: psnr
    where nothing changed, scores where a class is missing. `notes` say what a reader must know.
    """

    n: int
    n_atypical: int
    clean: dict[str, float | None]
    drop: dict[str, Estimate]
    flip_rate: Estimate
    fraction_shift: Estimate
    feature_cosine: Estimate
    l2: float | None
    linf: float | None
    psnr: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def effect(
    label: ArrayLike,
    case: ArrayLike,
    clean: Answers,
    attacked: Answers,
    threshold: float = 0.0,
    distortion: Distortion | None = None,
    n: int = REPLICATES,
    seed: int = 0,
) -> Effect:
    """The effect of an attack, answer by answer paired, with intervals from `n` replicates over cases.

    Args:
        label: (n,) 1 = atypical. case: (n,) slide or patient, "" for a patch of its own.
        clean, attacked: Answers for the same images, in this order.
        threshold: Logit from which a patch is called atypical.

    Raises: DataError for unequal lengths or labels other than 0 and 1.
    """
    y, cases = np.asarray(label), np.asarray(case).astype(str)
    sizes = (len(cases), len(clean.logits), len(attacked.logits))
    if any(size != len(y) for size in sizes) or (distortion is not None and len(distortion.l2) != len(y)):
        raise DataError(f"{len(y)} labels, {sizes[0]} cases, {sizes[1]} clean and {sizes[2]} attacked logits")
    before, after = clean.logits >= threshold, attacked.logits >= threshold
    summary = scores(y, _order(clean.logits), before)
    names, inverse = np.unique(_alone(cases), return_inverse=True)
    shift = (np.bincount(inverse, after) - np.bincount(inverse, before)) / np.bincount(inverse)
    similar = None
    if clean.features is not None and attacked.features is not None:
        similar = cosine(clean.features, attacked.features)
    square = None if distortion is None or not len(y) else float(distortion.mean_square.mean())
    return Effect(
        n=len(y),
        n_atypical=summary.n_atypical,
        clean={name: getattr(summary, name) for name in DROPS},
        drop=drops(y, cases, clean, attacked, threshold, n, seed),
        flip_rate=_mean(before != after, cases, n, seed),
        fraction_shift=_mean(np.abs(shift), names, n, seed),
        feature_cosine=Estimate(None) if similar is None else _mean(similar, cases, n, seed),
        l2=None if distortion is None or not len(y) else float(distortion.l2.mean()),
        linf=None if distortion is None or not len(y) else float(distortion.linf.max()),
        psnr=-10 * float(np.log10(square)) if square else None,
        notes=tuple(_notes(y, names, clean, attacked, square)),
    )


def drops(
    label: ArrayLike,
    case: ArrayLike,
    baseline: Answers,
    attacked: Answers,
    threshold: float = 0.0,
    n: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Balanced accuracy and AUROC of `baseline` minus those of `attacked`, with paired intervals.

    With the answers to noise as `baseline` it is what the attack costs beyond noise of equal budget.
    """
    found = []
    for answers in (baseline, attacked):
        confidence, called = _order(answers.logits), answers.logits >= threshold
        found.append((scores(label, confidence, called), replicates(label, confidence, called, case, DROPS, n, seed)))
    (before, many_before), (after, many_after) = found
    result = {}
    for name in DROPS:
        a, b = getattr(before, name), getattr(after, name)
        defined = a is not None and b is not None
        interval = percentile_interval(many_before[name] - many_after[name]) if defined else None
        result[name] = Estimate(a - b if defined else None, interval)
    return result


def group_rows(groups: Mapping[str, ArrayLike], n: int) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(by, group, chosen rows) for all `n` patches and then for each group of each column (scanner, tumour).

    Raises: DataError for a column of another length.
    """
    yield ALL, ALL, np.ones(n, dtype=bool)
    for by, column in groups.items():
        names = np.asarray(column).astype(str)
        if names.shape != (n,):
            raise DataError(f"{len(names)} values of {by} for {n} patches")
        for name in np.unique(names):
            yield by, str(name), names == name


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosine of each row, float64; of two zero rows 1, of one 0."""
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = lengths[0] * lengths[1]
    same = (lengths[0] == 0) & (lengths[1] == 0)
    dot = np.einsum("ij,ij->i", a, b)
    return np.where(same, 1.0, np.clip(dot / np.where(product > 0, product, 1.0), -1, 1))


def _order(logits: Floats) -> Floats:
    """Ranks in [0, 1], ties equal: AUROC asks for order alone, and a sigmoid would tie what lies beyond 37."""
    ranks: Floats = np.unique(logits, return_inverse=True)[1].reshape(-1).astype(np.float64)
    return ranks / max(1.0, float(ranks.max(initial=0)))


def _alone(case: NDArray[np.str_]) -> NDArray[np.str_]:
    """Cases by name, where a patch without one is its own."""
    return np.array([name or f"\0{number}" for number, name in enumerate(case)], dtype=str)


def _mean(values: ArrayLike, case: ArrayLike, n: int, seed: int) -> Estimate:
    number = np.asarray(values, dtype=np.float64)
    if not len(number):
        return Estimate(None)
    return Estimate(float(number.mean()), percentile_interval(mean_replicates(number, case, n, seed)))


def _notes(
    label: NDArray[Any], cases: NDArray[np.str_], clean: Answers, attacked: Answers, square: float | None
) -> Iterator[str]:
    if len(np.unique(label)) < 2:
        yield "one class only: balanced accuracy and AUROC are not defined"
    if len(cases) < 2:
        yield "fewer than two cases: no intervals"
    if len(clean.logits) > 1 and np.ptp(clean.logits) == 0:
        yield "the model answers the same to every patch: AUROC .5 and balanced accuracy .5 say nothing of attacks"
    if square == 0:
        yield "no pixel changed: a budget of 0, or one below a grey level"
    elif np.array_equal(clean.logits, attacked.logits):
        yield "no logit changed"
