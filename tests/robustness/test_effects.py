"""What an attack did, in scores, flips and features: closed forms, groups, noise beside it, members against members."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from midog.errors import ArgumentError, DataError
from midog.metrics import bootstrap_by_case, mean_replicates, scores
from midog.robustness.attack_report import ENSEMBLE, Victim, answers, attack_report, distortion, matrix, transfer
from midog.robustness.effects import Answers, cosine, effect
from midog.robustness.local import Local, attack, noise
from midog.robustness.perturbation import add, sign_noise
from midog.robustness.universal import Universal, fit_universal

LABEL = np.array([1, 0, 1, 0, 1, 0, 1, 0])
CASE = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
EPSILON = 8 / 255


def victim(model: Any, pixels: Tensor, label: np.ndarray = LABEL) -> Victim:
    """The network with a head that gets these very patches right: attacks have something to take away."""
    with torch.no_grad():
        features = model(pixels)
        centre = features.mean(dim=0)
        weight = torch.linalg.pinv(features - centre) @ (torch.from_numpy(label).float() * 2 - 1)
    return Victim(lambda p: (model(p) - centre) @ weight, model)


def drawn(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Answers, Answers]:
    rng = np.random.default_rng(seed)
    label, case = rng.integers(0, 2, n), rng.integers(0, 12, n).astype(str)
    clean = Answers(label + rng.normal(size=n) - 0.5, rng.normal(size=(n, 5)))
    assert clean.features is not None
    return label, case, clean, Answers(clean.logits + rng.normal(size=n), clean.features + rng.normal(size=(n, 5)))


def test_drops_and_flips_are_those_counted_by_hand() -> None:
    clean = Answers(np.array([2.0, -2, 1, -1, 3, -3, 1, -1]))
    attacked = Answers(np.array([-1.0, -2, 1, 1.5, 3, -3, 1, -1]))
    found = effect(LABEL, CASE, clean, attacked)
    assert found.clean == {"balanced_accuracy": 1.0, "roc_auc": 1.0}
    assert found.drop["balanced_accuracy"].value == pytest.approx(1 - (3 / 4 + 3 / 4) / 2)
    # Atypical −1, 1, 3, 1 against normal −2, 1.5, −3, −1: 12.5 of 16 pairs in order.
    assert found.drop["roc_auc"].value == pytest.approx(1 - 12.5 / 16)
    assert found.flip_rate.value == 2 / 8
    # Cases a and b change their share of atypical calls by one half, c and d by nothing.
    assert found.fraction_shift.value == pytest.approx(0.25)
    assert found.feature_cosine.value is None and found.psnr is None
    assert effect(LABEL, CASE, clean, attacked, threshold=-1.5).flip_rate.value == 0


def test_scores_are_those_of_the_challenge_and_intervals_are_paired_by_case() -> None:
    label, case, clean, attacked = drawn()
    found = effect(label, case, clean, attacked, n=300)
    for name in ("balanced_accuracy", "roc_auc"):
        pair = [scores(label, 1 / (1 + np.exp(-one.logits)), one.logits >= 0) for one in (clean, attacked)]
        assert found.drop[name].value == pytest.approx(getattr(pair[0], name) - getattr(pair[1], name))
        interval = found.drop[name].interval
        assert interval is not None and interval.low < found.drop[name].value < interval.high
        same = effect(label, case, clean, clean, n=300).drop[name]
        assert (same.value, same.interval.low, same.interval.high) == (0, 0, 0)
    flips = clean.logits * attacked.logits < 0
    expected = bootstrap_by_case(np.ones(60, int), np.ones(60), flips, case, ["accuracy"], n=300)["accuracy"]
    assert found.flip_rate.interval == expected
    assert clean.features is not None and attacked.features is not None
    assert found.feature_cosine.value == pytest.approx(cosine(clean.features, attacked.features).mean())


def test_mean_replicates_weigh_patches_not_cases() -> None:
    values, case = np.arange(6.0), np.array(["a", "a", "a", "a", "b", ""])
    found = mean_replicates(values, case, n=400)
    parts = [values[:4], values[4:5], values[5:]]
    possible = {round(float(np.concatenate([parts[one] for one in cases]).mean()), 9) for cases in np.ndindex(3, 3, 3)}
    assert {round(float(one), 9) for one in found} == possible
    assert np.isnan(mean_replicates(values, ["a"] * 6)).all()


def test_distortion_closed_forms(pixels: Tensor) -> None:
    changed = pixels.double().clone()
    changed[:, 0, 0, 0] += 0.3
    changed[:, 1, 5, 5] -= 0.4 / 10
    found = distortion(pixels.double(), changed)
    np.testing.assert_allclose(found.l2, math.hypot(0.3, 0.04))
    np.testing.assert_allclose(found.linf, 0.3)
    np.testing.assert_allclose(found.mean_square, (0.09 + 0.0016) / (3 * 64 * 64))
    control = distortion(pixels, noise(pixels, EPSILON))
    logits = Answers(np.zeros(8))
    assert effect(LABEL, CASE, logits, logits, distortion=control).psnr == pytest.approx(
        -20 * math.log10(EPSILON), 1e-4
    )


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_an_attack_costs_more_than_noise_of_equal_budget(name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    target = victim(model, pixels)
    delta = fit_universal(model, pixels, Universal(EPSILON, epochs=4, batch=4))
    versions = {
        "universal": add(pixels, delta),
        "pgd": attack(model, pixels, Local()),
        "noise": add(pixels, sign_noise(delta.shape, EPSILON, pixels, 0)),
    }
    groups = {"scanner": np.array(["x", "y"])[[0, 0, 0, 0, 1, 1, 1, 1]], "tumour": LABEL}
    rows = attack_report(target, pixels, versions, LABEL, CASE, groups, n=200)
    found = {(row.version, row.by, row.group): row for row in rows}
    assert len(found) == len(rows) == 3 * (1 + 2 + 2)
    everywhere = {name: found[name, "all", "all"] for name in versions}
    assert everywhere["noise"].excess is None
    for version in ("universal", "pgd"):
        row, control = everywhere[version], everywhere["noise"].effect
        assert row.effect.clean["roc_auc"] == 1
        assert row.effect.feature_cosine.value < control.feature_cosine.value
        assert row.excess is not None
        expected = row.effect.drop["roc_auc"].value - control.drop["roc_auc"].value
        assert row.excess["roc_auc"].value == pytest.approx(expected)
        assert row.effect.linf == pytest.approx(EPSILON, rel=1e-5) and row.effect.l2 <= control.l2 + 1e-6
        assert row.effect.psnr >= control.psnr - 1e-6
    assert everywhere["pgd"].effect.flip_rate.value > everywhere["noise"].effect.flip_rate.value
    assert found["pgd", "scanner", "x"].effect.n == 4
    one_class = found["pgd", "tumour", "1"].effect
    assert one_class.drop["balanced_accuracy"].value is None and "one class only" in one_class.notes[0]
    json.dumps([row.to_dict() for row in rows], allow_nan=False)


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_no_budget_gives_the_clean_answers_bit_for_bit(name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    target = victim(model, pixels)
    clean = answers(target, pixels)
    versions = {
        "universal": add(pixels, fit_universal(model, pixels, Universal(epsilon=0))),
        "local": attack(model, pixels, Local(epsilon=0)),
        "noise": noise(pixels, 0),
    }
    for attacked in versions.values():
        again = answers(target, attacked)
        assert np.array_equal(again.logits, clean.logits) and np.array_equal(again.features, clean.features)
    for row in attack_report(target, pixels, versions, LABEL, CASE, n=50):
        assert {one.value for one in row.effect.drop.values()} == {0}
        assert (row.effect.flip_rate.value, row.effect.linf, row.effect.psnr) == (0, 0, None)
        assert row.effect.feature_cosine.value == pytest.approx(1, abs=1e-12)
        assert any("no pixel changed" in note for note in row.effect.notes)


def test_a_budget_below_one_grey_level_does_not_survive_storage(vit: Any, pixels: Tensor) -> None:
    weak, strong = (attack(vit, pixels, Local(epsilon=levels / 255, alpha=0.5 / 255)) for levels in (0.9, 4))
    target = victim(vit, pixels)
    rows = attack_report(target, pixels, {"weak": weak, "strong": strong, "noise": noise(pixels, 4 / 255)}, LABEL, CASE,
                         quantise=True, n=50)  # fmt: skip
    found = {row.version: row for row in rows}
    assert list(found) == ["weak", "strong", "noise", "weak, stored", "strong, stored", "noise, stored"]
    assert found["weak"].effect.feature_cosine.value < 0.999
    assert found["weak, stored"].effect.linf == 0
    assert found["weak, stored"].effect.feature_cosine.value == pytest.approx(1, abs=1e-12)
    assert found["strong, stored"].effect.linf == pytest.approx(4 / 255, rel=1e-5)
    assert found["noise, stored"].excess is None and found["weak, stored"].excess is not None


def test_constant_logits_give_defined_values_and_a_note(vit: Any, pixels: Tensor) -> None:
    constant = Victim(lambda p: vit(p).sum(dim=1) * 0 + 0.7, lambda p: vit(p) * 0)
    versions = {"pgd": attack(constant.encode, pixels, Local(steps=2)), "noise": noise(pixels, EPSILON)}
    for row in attack_report(constant, pixels, versions, LABEL, CASE, n=50):
        assert row.effect.clean == {"balanced_accuracy": 0.5, "roc_auc": 0.5}
        assert {one.value for one in row.effect.drop.values()} == {0}
        assert row.effect.feature_cosine.value == 1
        assert any("the same to every patch" in note for note in row.effect.notes)
        json.dumps(row.to_dict(), allow_nan=False)


def test_transfer_is_strongest_where_the_surrogate_is_the_victim(vit: Any, conv: Any, pixels: Tensor) -> None:
    members = {"vit": victim(vit, pixels), "conv": victim(conv, pixels)}
    versions = {name: attack(member.encode, pixels, Local()) for name, member in members.items()}
    versions["noise"] = noise(pixels, EPSILON)
    cells = transfer(members, pixels, versions, LABEL, CASE, n=50)
    surrogates, victims, drop = matrix(cells)
    assert (surrogates, victims) == (["vit", "conv", "noise"], ["vit", "conv", ENSEMBLE])
    assert drop.shape == (3, 3) and np.isfinite(drop).all()
    cosines = {(c.surrogate, c.victim): c.effect.feature_cosine.value for c in cells}
    for surrogate, other in (("vit", "conv"), ("conv", "vit")):
        assert cosines[surrogate, surrogate] < cosines[surrogate, other]
    ensemble = next(c for c in cells if (c.surrogate, c.victim) == ("vit", ENSEMBLE))
    means = [np.mean([answers(m, x).logits for m in members.values()], axis=0) for x in (pixels, versions["vit"])]
    expected = effect(LABEL, CASE, Answers(means[0]), Answers(means[1]), n=50)
    assert ensemble.effect.drop == expected.drop and ensemble.effect.flip_rate == expected.flip_rate
    json.dumps([cell.to_dict() for cell in cells], allow_nan=False)
    with pytest.raises(ArgumentError, match="none called ensemble mean"):
        transfer({ENSEMBLE: members["vit"]}, pixels, versions, LABEL, CASE)


def test_bad_input_is_named(vit: Any, pixels: Tensor) -> None:
    target = victim(vit, pixels)
    with pytest.raises(DataError, match="belongs to one input size"):
        attack_report(target, pixels, {"x": pixels[:, :, :32, :32]}, LABEL, CASE)
    with pytest.raises(DataError, match="1 attacked images for 8"):
        attack_report(target, pixels, {"x": pixels[:1]}, LABEL, CASE)
    with pytest.raises(DataError, match="7 labels or cases for 8"):
        attack_report(target, pixels, {"x": pixels}, LABEL[:7], CASE)
    with pytest.raises(DataError, match="values of scanner for 8"):
        attack_report(target, pixels, {"x": pixels}, LABEL, CASE, {"scanner": ["a"]})
    with pytest.raises(DataError, match="8 logits are not finite"):
        answers(Victim(lambda p: vit(p)[:, 0] * torch.nan), pixels)
    with pytest.raises(DataError, match="logits for 8 images"):
        answers(Victim(lambda p: vit(p)[:, 0].mean()), pixels)
    with pytest.raises(DataError, match="logits are"):
        answers(Victim(vit), pixels)
    with pytest.raises(DataError, match="8 labels, 8 cases, 8 clean and 7 attacked"):
        effect(LABEL, CASE, Answers(np.zeros(8)), Answers(np.zeros(7)))


def test_a_single_case_has_no_interval() -> None:
    label, _, clean, attacked = drawn(20)
    found = effect(label, ["a"] * 20, clean, attacked, n=50)
    assert found.drop["roc_auc"].value is not None and found.drop["roc_auc"].interval is None
    assert found.flip_rate.interval is None
    assert "fewer than two cases: no intervals" in found.notes
