from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.calibrate import fit_calibration, fit_threshold, threshold_curve
from midog.errors import DataError
from midog.metrics import scores


def sigmoid(u: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-u))


def draw(n: int, seed: int, prevalence: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prevalence).astype(int)
    return np.where(y == 1, 1.7, -1.0) + rng.normal(size=n) * np.where(y == 1, 1.5, 1.3), y


def true_balanced_accuracy(at: float) -> float:
    from scipy.stats import norm

    return float((norm.sf(at, 1.7, 1.5) + norm.cdf(at, -1.0, 1.3)) / 2)


def test_shift_and_temperature_are_found_again() -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=200_000) * 2 - 1
    y = rng.random(len(u)) < sigmoid(u)
    found = fit_calibration(u * 3.0 + 1.5, y)
    assert found.temperature == pytest.approx(3.0, rel=0.02) and found.shift == pytest.approx(1.5, abs=0.05)


def test_it_is_the_maximum_likelihood_fit() -> None:
    from scipy.optimize import minimize

    z, y = draw(800, 1)
    target = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    found = fit_calibration(z, y)

    def loss(at: np.ndarray) -> float:
        return float((np.logaddexp(0, at[0] * z + at[1]) - target * (at[0] * z + at[1])).sum())

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000}).x
    np.testing.assert_allclose([1 / found.temperature, -found.shift / found.temperature], best, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_the_roc_auc_never_changes_and_scale_does_not_matter(seed: int, scale: float, shift: float) -> None:
    z, y = draw(60, seed, prevalence=0.5)
    y[:2] = 0, 1
    found = fit_calibration(z, y)
    raw = scores(y, sigmoid(z), z > 0).roc_auc
    assert scores(y, sigmoid(found.scale(z)), z > 0).roc_auc == raw
    moved = fit_calibration(z * scale + shift, y)
    np.testing.assert_allclose(moved.scale(z * scale + shift), found.scale(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("z", [np.r_[-np.ones(10), np.ones(10)], np.zeros(20), np.r_[np.ones(10), -np.ones(10)]])
def test_separable_constant_and_reversed_logits_stay_finite(z: np.ndarray) -> None:
    y = np.r_[np.zeros(10), np.ones(10)]
    found = fit_calibration(z, y)
    assert np.isfinite([found.shift, found.temperature]).all() and found.temperature > 0
    assert np.isfinite(found.scale(z)).all()
    p = sigmoid(found.scale(z))
    assert p.mean() == pytest.approx(0.5, abs=0.01)
    assert 0 <= fit_threshold(found.scale(z), y) <= 1


def test_confidences_average_to_the_prevalence() -> None:
    z, y = draw(2000, 2)
    assert sigmoid(fit_calibration(z + 5, y).scale(z + 5)).mean() == pytest.approx(y.mean(), abs=2e-3)


def test_the_curve_is_the_kernel_estimate() -> None:
    z, y = draw(500, 3)
    curve = threshold_curve(z, y)
    spread = {c: min(z[y == c].std(), np.subtract(*np.quantile(z[y == c], [0.75, 0.25])) / 1.34) for c in (0, 1)}
    width = {c: 2.0 * 0.9 * spread[c] * (y == c).sum() ** -0.2 * np.sqrt(3) / np.pi for c in (0, 1)}
    for at in (200, 500, 800):
        t = curve.threshold[at]
        sensitivity = sigmoid((z[y == 1] - t) / width[1]).mean()
        specificity = sigmoid((t - z[y == 0]) / width[0]).mean()
        assert curve.balanced_accuracy[at] == pytest.approx((sensitivity + specificity) / 2, abs=2e-3)


def test_smoothing_loses_less_than_the_top_of_the_raw_curve() -> None:
    smooth, raw = [], []
    best = max(true_balanced_accuracy(t) for t in np.linspace(-2, 2, 401))
    for seed in range(40):
        z, y = draw(700, seed)
        p = fit_threshold(z, y)
        smooth.append(best - true_balanced_accuracy(np.log(p / (1 - p))))
        order = np.sort(z)
        sensitivity = [(z[y == 1] >= t).mean() for t in order]
        specificity = [(z[y == 0] < t).mean() for t in order]
        raw.append(best - true_balanced_accuracy(order[int(np.argmax(np.add(sensitivity, specificity)))]))
    assert np.mean(smooth) < 0.4 * np.mean(raw)
    assert np.mean(smooth) < 0.001


def test_across_serves_the_small_domain_too() -> None:
    large, y_large = draw(3000, 4)
    small, y_small = draw(300, 5)
    z, y = np.r_[large, small + 3.0], np.r_[y_large, y_small]
    domain = np.array(["large"] * 3000 + ["small"] * 300, dtype=object)
    pooled, across = fit_threshold(z, y), fit_threshold(z, y, domain)

    def worst(threshold: float) -> float:
        found = [
            scores(y[d], sigmoid(z[d]), sigmoid(z[d]) >= threshold) for d in (domain == "large", domain == "small")
        ]
        return min(score.balanced_accuracy or 0.0 for score in found)

    assert across > pooled
    assert worst(across) > worst(pooled) + 0.05


def test_a_domain_with_too_few_patches_has_no_say() -> None:
    z, y = draw(600, 6)
    domain = np.array(["a"] * 595 + ["b"] * 5, dtype=object)
    assert fit_threshold(z, y, domain) == fit_threshold(z, y)


def test_one_class_and_nan_are_errors() -> None:
    with pytest.raises(DataError, match="all 3 patches are normal"):
        fit_calibration([0.0, 1.0, 2.0], [0, 0, 0])
    with pytest.raises(DataError, match="1 logits are not finite"):
        fit_threshold([0.0, np.nan], [0, 1])
