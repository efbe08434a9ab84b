"""Speed of blending as a ratio to the plain way in the same run: Optuna's TPE, and scikit-learn's scores in a loop."""

from __future__ import annotations

import warnings
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.metrics import METRICS, bootstrap_by_case
from midog.progress import steps

PATCHES, MEMBERS, CASES = 12_000, 20, 500
TRIALS, PLAIN_TRIALS = 2000, 100
REPLICATES, PLAIN_REPLICATES = 1000, 10

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def measure(trials: int = TRIALS, seed: int = 0) -> list[dict[str, Any]]:
    """Milliseconds for 12,000 drawn patches of 20 members, ours and the plain way's.

    The plain ways are run for fewer trials and replicates and scaled up. TPE slows down as its history grows, so
    scaling flatters it. `ratio` is theirs / ours.

    Returns: rows name, ours_ms, theirs_ms, ratio.
    """
    z, y, case = _draw(seed)
    names = [f"m{i:02d}" for i in range(MEMBERS)]
    p = 1 / (1 + np.exp(-z.mean(axis=1)))
    with steps("benchmark", 4) as advance:
        search = _ours(z, y, names, trials, seed)
        advance("search")
        plain = _plain_search(z, y, names, seed) * trials / PLAIN_TRIALS
        advance("TPE")
        start = perf_counter()
        bootstrap_by_case(y, p, p >= 0.5, case, METRICS, REPLICATES, seed)
        bootstrap = perf_counter() - start
        advance("bootstrap")
        loop = _plain_bootstrap(y, p, case, seed) * REPLICATES / PLAIN_REPLICATES
        advance("loop")
    return [
        _row(f"search, {trials:,} trials", search, plain),
        _row(f"case bootstrap, {REPLICATES:,} replicates", bootstrap, loop),
    ]


def _row(name: str, ours: float, theirs: float) -> dict[str, Any]:
    return {"name": name, "ours_ms": 1000 * ours, "theirs_ms": 1000 * theirs, "ratio": theirs / ours}


def _draw(seed: int) -> tuple[Floats, Labels, Labels]:
    """Correlated members of unequal worth, as members trained on the same patches are."""
    rng = np.random.default_rng(seed)
    y = (rng.random(PATCHES) < 0.2).astype(np.int64)
    common = rng.normal(size=(PATCHES, 1))
    own = rng.normal(size=(PATCHES, MEMBERS)) * rng.uniform(0.5, 1.5, MEMBERS)
    z = (2 * y - 1)[:, None] * rng.uniform(0.7, 1.3, MEMBERS) + common + own
    return z, y, rng.integers(0, CASES, PATCHES)


def _ours(z: Floats, y: Labels, names: list[str], trials: int, seed: int) -> float:
    from ensemble.search import search

    start = perf_counter()
    search(z, y, names, trials, seed)
    return perf_counter() - start


def _plain_search(z: Floats, y: Labels, names: list[str], seed: int) -> float:
    """Seconds for PLAIN_TRIALS of what one would write first: TPE over weights, scikit-learn's log-loss."""
    import optuna
    from sklearn.metrics import log_loss

    def objective(trial: optuna.Trial) -> float:
        weights = np.array([trial.suggest_float(name, 0.0, 1.0) for name in names])
        blended = z @ (weights / weights.sum())
        return float(log_loss(y, 1 / (1 + np.exp(-blended))))

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    start = perf_counter()
    study.optimize(objective, n_trials=PLAIN_TRIALS)
    seconds = perf_counter() - start
    optuna.logging.set_verbosity(verbosity)
    return seconds


def _plain_bootstrap(y: Labels, p: Floats, case: Labels, seed: int) -> float:
    """Seconds for PLAIN_REPLICATES of drawing cases, gathering their patches and calling scikit-learn."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score, roc_auc_score

    rows = [np.flatnonzero(case == number) for number in range(CASES)]
    rng = np.random.default_rng(seed)
    start = perf_counter()
    for _ in range(PLAIN_REPLICATES):
        drawn = np.concatenate([rows[number] for number in rng.integers(0, CASES, CASES)])
        truth, confidence = y[drawn], p[drawn]
        called = confidence >= 0.5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            balanced_accuracy_score(truth, called)
            recall_score(truth, called)
            recall_score(truth, called, pos_label=0)
            accuracy_score(truth, called)
            roc_auc_score(truth, confidence)
            log_loss(truth, confidence)
    return perf_counter() - start
