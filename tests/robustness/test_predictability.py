"""Predictability: all, nothing, and never by way of the case."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drawn_features import draw, real_embeddings

from midog.errors import DataError, UsageError
from midog.robustness.features import read_features
from midog.robustness.predictability import predictability


def test_a_scanner_written_into_the_features_is_told() -> None:
    drawn = draw(0, 8, scanners=3)
    found = predictability(drawn.features, drawn.scanner, drawn.case)
    assert found.balanced_accuracy > 0.99 and found.chance == pytest.approx(1 / 3)
    assert set(found.recall) == {"S0", "S1", "S2"} and (found.cases, found.folds) == (36, 5)
    json.dumps(found.to_dict(), allow_nan=False)


def test_noise_tells_nothing_though_a_case_is_known_by_its_features() -> None:
    """Features hold the case alone. A split by patch would find the scanner through it; one by case cannot."""
    drawn = draw(0, 0, cases=40, per_case=5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 70))[drawn.case] + 0.01 * rng.normal(size=(len(drawn.case), 70))
    by_case = predictability(x, drawn.scanner, drawn.case)
    by_patch = predictability(x, drawn.scanner, np.arange(len(x)))
    assert by_case.interval is not None and by_case.interval.low < 0.5 < by_case.interval.high
    assert by_patch.balanced_accuracy > by_case.balanced_accuracy + 0.2


def test_levels_count_equally() -> None:
    """A rare scanner that is never found costs as much as a frequent one."""
    rng = np.random.default_rng(2)
    scanner = np.where(np.arange(600) % 10 == 0, "rare", "frequent")
    found = predictability(rng.normal(size=(600, 3)), scanner, np.arange(600))
    assert found.balanced_accuracy == pytest.approx(0.5, abs=0.12)
    assert found.balanced_accuracy == pytest.approx(np.mean(list(found.recall.values())))


def test_fewer_cases_than_folds() -> None:
    drawn = draw(1, 1, cases=3)
    with pytest.raises(DataError, match=r"5 folds need as many cases of each level\n  S0: 3 cases\n.*\n.*folds=3"):
        predictability(drawn.features, drawn.scanner, drawn.case)
    assert predictability(drawn.features, drawn.scanner, drawn.case, folds=3).folds == 3
    lone = np.where(drawn.case == 0, "lone", drawn.scanner)
    with pytest.raises(DataError, match="leave levels of a single case out"):
        predictability(drawn.features, lone, drawn.case, folds=2)
    with pytest.raises(UsageError, match="1 folds"):
        predictability(drawn.features, drawn.scanner, drawn.case, folds=1)
    with pytest.raises(DataError, match="target has one level"):
        predictability(drawn.features, np.full(len(lone), "S0"), drawn.case)


def test_real_embeddings_tell_the_medical_centre() -> None:
    features = read_features(real_embeddings())
    rows = np.flatnonzero(features.column("subset") == "ID")[::4]
    features = features.subset(rows)
    found = predictability(features.arrays["X"], features.column("medical_center"), features.column("slide"))
    assert found.chance == 0.25 and found.interval is not None and found.interval.low > 0.4
