"""What each ingredient is worth: paired differences over a grid of runs, with the luck of cases and seeds.

A factor's effect is the mean, over the settings of the other factors and over the seeds, of a score at one of its
values minus the score at its first value. Each run is scored as `compare` scores a run: out of fold, one view; shift,
temperature and threshold cross-fitted by case. In each replicate the bootstrap draws

- cases with replacement, the same for all runs, so that differences are paired by patch;
- for each combination of values as many seeds as it has, with replacement: of a run, what sets it apart from the mean
  of its combination's seeds. It is drawn from the runs of all combinations, as if seeds spread alike in each, for three
  seeds of one say little; and scaled by √(S/(S - 1)), since S runs spread less around their own mean than around the
  true one. Source: pooled residuals of several samples, Davison & Hinkley 1997, Bootstrap Methods, section 3.2. Scaled
  once more by √(ν/χ²) with ν degrees of freedom, χ² drawn: few runs tell their own spread badly. Our choice; it makes
  of a normal spread what Student's t makes of it.

The same seed in two combinations counts as two trainings. Calibration and threshold are not fitted again in a
replicate, and neither scanners nor folds are drawn: an interval speaks of other cases and other seeds on these
scanners. With a single seed, folds are drawn before cases, as `compare` does it: with `folds: scanner` these are the
scanners. A single seed on patches of a single fold is one training a side, which no interval can call better or worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.compare import REPLICATES, score_members, verdict_of
from ensemble.oof import OofSet, align, split_spec
from ensemble.predictions import EVERYTHING, Scored, group_words
from ensemble.trials import Design, find_design
from midog.errors import DataError
from midog.metrics import LEVEL, Interval, percentile_interval, replicates, scores

METRICS = ("roc_auc", "log_loss", "balanced_accuracy")
"""The first two are the endpoints; balanced accuracy stands beside them."""
BEYOND = 10
"""Replicates that lie outside either end of an interval: the tails that many intervals need are drawn, not guessed."""
BETTER, WORSE = "better", "worse"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """Value minus baseline of one metric in one group of patches.

    `change` says what differs, `part` whether it is the effect of a factor or one combination against the first. `runs`
    are those on either side, `baseline` and `value` their mean scores. `verdict` is better, worse or noise; "one
    training" where a single one on either side would be called better or worse; None where undefined. The intervals
    of a part of the table (factors on all patches, combinations, factors within all groups) hold together in 95 of 100
    cases (Bonferroni).
    """

    part: str
    group: str
    change: str
    metric: str
    n: int
    n_atypical: int
    runs: int
    baseline: float | None
    value: float | None
    difference: float | None
    interval: Interval | None
    verdict: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ablation:
    """All effects; `drawn` says what the bootstrap drew, `first` is the combination that the others are compared with,
    `seeds` are those of a grid, none for runs outside of one; `left_out` names runs that are not finished, or whose
    seed is not finished in every combination."""

    effects: tuple[Effect, ...]
    first: str
    seeds: tuple[int, ...]
    runs: int
    drawn: str
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "effects": [effect.to_dict() for effect in self.effects]}


@dataclass(frozen=True)
class _Contrast:
    """Combinations, as positions, at a value (`plus`) and at the baseline (`minus`)."""

    part: str
    change: str
    plus: tuple[int, ...]
    minus: tuple[int, ...]


def compare_grid(
    specs: Sequence[str | Path], by: str | None = None, seed: int = 0, folds: Sequence[str] | None = None
) -> Ablation:
    """Effects of what varies between the runs of a grid, and of each combination against the first.

    Args:
        specs: runs (or RUN:MEMBER), the folder of a grid, or its grid.json. Runs outside of a grid are combinations of
            a single factor, `run`, the first one its baseline.
        by: domain, tumour, scanner or laboratory: effects of the factors within each of these, too.
        seed: of the draws.
        folds: names of the folds whose patches count, such as the scanners that were left out; None is all.

    Raises: UsageError where the runs are not of one grid or nothing varies; DataError, with every difference, where
        they differ in patches, labels, cases, domains or folds.
    """
    design = find_design(specs, folds)
    scored = _score(design, folds)
    first = scored[0][0]
    groups = {} if by is None else _masks(group_words(first.table, by).astype(str))
    factors, combinations = _contrasts(design)
    everything = {EVERYTHING: np.ones(len(first.table), dtype=np.bool_)}
    effects: list[Effect] = []
    for contrasts, masks in ((factors, everything), (combinations, everything), (factors, groups)):
        effects += _effects(contrasts, masks, scored, seed)
    seeds = len(scored[0])
    if seeds > 1:
        drawn = f"cases, and {seeds} seeds for each combination"
    else:
        drawn = "folds and cases" if _trainings(scored, everything[EVERYTHING]) > 1 else "cases"
    return Ablation(tuple(effects), design.label(0), design.seeds, len(scored) * seeds, drawn, design.left_out)


def _score(design: Design, folds: Sequence[str] | None) -> list[list[Scored]]:
    """Each run's predictions: combination, then seed. All runs have the same patches in the same folds."""
    try:
        oof = align([spec for specs in design.specs for spec in specs], folds)
    except DataError as error:
        if not error.details:
            raise
        fix = "compare runs of one patches.csv with the same `folds`, such as midog compare GRID/*folds=scanner*"
        raise DataError("these runs cannot be compared patch by patch", fix, error.details) from None
    columns: dict[Path, list[int]] = {}
    for at, source in enumerate(oof.sources):
        columns.setdefault(source.run.path.resolve(), []).append(at)
    return [[_score_one(spec, oof, columns) for spec in specs] for specs in design.specs]


def _score_one(spec: str, oof: OofSet, columns: Mapping[Path, list[int]]) -> Scored:
    return score_members(spec, oof.take(columns[split_spec(spec)[0].resolve()]))


def _masks(words: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    return {str(name): words == name for name in np.unique(words)}


def _contrasts(design: Design) -> tuple[list[_Contrast], list[_Contrast]]:
    """Of the factors; and of the combinations, which a single factor says already."""
    place = {words: at for at, words in enumerate(design.combinations)}
    factors = []
    for position, factor in enumerate(design.factors):
        for value in factor.values[1:]:
            swapped = {w: (*w[:position], factor.values[0], *w[position + 1 :]) for w in place if w[position] == value}
            pairs = [(place[w], place[base]) for w, base in swapped.items() if base in place]
            if pairs:
                plus, minus = zip(*pairs, strict=True)
                factors.append(_Contrast("factor", f"{factor.name}: {factor.values[0]} → {value}", plus, minus))
    if len(design.factors) == 1:
        return factors, []
    others = range(1, len(design.combinations))
    return factors, [_Contrast("combination", design.label(at), (at,), (0,)) for at in others]


def _effects(
    contrasts: Sequence[_Contrast], masks: Mapping[str, NDArray[np.bool_]], scored: list[list[Scored]], seed: int
) -> list[Effect]:
    """Effects of one part of the table, whose intervals hold together."""
    together = len(contrasts) * len(masks) * len(METRICS)
    if not together:
        return []
    level = 1 - (1 - LEVEL) / together
    n = max(REPLICATES, round(2 * BEYOND / (1 - level)))
    found = []
    for group, rows in masks.items():
        points, draws = _replicates(scored, rows, n, seed)
        means = {metric: _with_seeds(draws[metric], seed) for metric in METRICS}
        size = scores(*_columns(scored[0][0], rows))
        trainings = _trainings(scored, rows)
        for contrast in contrasts:
            for metric, mean in means.items():
                spread = mean[list(contrast.plus)].mean(axis=0) - mean[list(contrast.minus)].mean(axis=0)
                sides = [_mean(points[metric][list(side)]) for side in (contrast.minus, contrast.plus)]
                interval = percentile_interval(spread, level)
                verdict = verdict_of(interval, metric, BETTER, WORSE, trainings)
                runs = len(contrast.plus) * len(scored[0])
                found.append(_effect(contrast, group, metric, size.n, size.n_atypical, runs, sides, interval, verdict))
    return found


def _trainings(scored: list[list[Scored]], rows: NDArray[np.bool_]) -> int:
    """Trainings of one combination that its scores on these patches come from."""
    folds = scored[0][0].folds
    assert folds is not None
    return len(scored[0]) * len(np.unique(folds[rows]))


def _with_seeds(values: Floats, seed: int) -> Floats:
    """Scores (combinations, seeds, n) in n replicates → each combination's mean with the luck of seeds, drawn anew."""
    combinations, seeds, n = values.shape
    mean = values.mean(axis=1)
    if seeds == 1:
        return np.asarray(mean)
    rng = np.random.default_rng([seed, combinations, seeds])
    drawn = rng.integers(combinations * seeds, size=(seeds * combinations, n))
    freedom = combinations * (seeds - 1)
    scale = np.sqrt(seeds / (seeds - 1) * freedom / rng.chisquare(freedom, size=n))
    apart = (values - mean[:, None]).reshape(combinations * seeds, n)
    luck = np.take_along_axis(apart, drawn, axis=0).reshape(seeds, combinations, n).mean(axis=0)
    return np.asarray(mean + luck * scale)


def _columns(one: Scored, rows: NDArray[np.bool_]) -> tuple[NDArray[np.int8], Floats, NDArray[np.bool_]]:
    return one.table.labels[rows], one.confidence[rows], one.predicted[rows]


def _replicates(
    scored: list[list[Scored]], rows: NDArray[np.bool_], n: int, seed: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """For each metric (combinations, seeds) scores and (combinations, seeds, n) replicates, of the same draws."""
    shape = (len(scored), len(scored[0]))
    points = {metric: np.full(shape, np.nan) for metric in METRICS}
    draws = {metric: np.empty((*shape, n)) for metric in METRICS}
    case = scored[0][0].table.column("case")[rows]
    for at, runs in enumerate(scored):
        for k, one in enumerate(runs):
            fold = one.folds[rows] if len(runs) == 1 and one.folds is not None else None
            score = scores(*_columns(one, rows))
            drawn = replicates(*_columns(one, rows), case, METRICS, n, seed, fold)
            for metric in METRICS:
                value = getattr(score, metric)
                points[metric][at, k] = np.nan if value is None else value
                draws[metric][at, k] = drawn[metric]
    return points, draws


def _mean(values: Floats) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _effect(
    contrast: _Contrast,
    group: str,
    metric: str,
    n: int,
    n_atypical: int,
    runs: int,
    sides: Sequence[float | None],
    interval: Interval | None,
    verdict: str | None,
) -> Effect:
    baseline, value = sides
    difference = None if baseline is None or value is None else value - baseline
    return Effect(
        contrast.part,
        group,
        contrast.change,
        metric,
        n,
        n_atypical,
        runs,
        baseline,
        value,
        difference,
        interval,
        verdict,
    )
