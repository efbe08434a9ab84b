"""Each part's built-in check: a case whose answer is known before anything is measured."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from midog.audit import attacks, baselines, calibration, corruption, cost, domains, field, leakage, robustness, symmetry
from midog.audit.geometry import keep_centre, magnify, rotate
from midog.audit.measure import Settings, case_folds, gain, probe, probe_out_of_fold, score
from midog.audit.opening import open_subject
from midog.audit.patches import Patches
from midog.audit.subject import Answers
from midog.errors import ArgumentError, DataError, UsageError
from midog.robustness.features import Features

SETTINGS = Settings(limit=0)
RNG = np.random.default_rng(0)


def test_the_majority_has_half_the_balanced_accuracy() -> None:
    label, case = np.array([0] * 30 + [1] * 10), np.arange(40) // 4
    found = score(label, *baselines.majority(label), case)
    assert (found["balanced_accuracy"]["value"], found["roc_auc"]["value"]) == (0.5, 0.5)
    assert found["few"] is True


def test_a_colour_histogram_knows_colours_and_no_shape() -> None:
    image = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    found = baselines.colour_histogram(image)
    shuffled = RNG.permutation(image.reshape(2, 256, 3), axis=1).reshape(image.shape)
    assert found.shape == (2, 48) and np.array_equal(found, baselines.colour_histogram(shuffled))
    np.testing.assert_allclose(found.reshape(2, 3, 16).sum(axis=2), 1)
    assert found[1, 16 + int(image[1, 0, 0, 1]) // 16] > 0


def test_a_probe_finds_a_shortcut_and_nothing_where_there_is_none() -> None:
    case = np.repeat(np.arange(20), 6)
    label = np.arange(120) % 2
    x = RNG.normal(size=(120, 8))
    assert abs(score(label, p := probe_out_of_fold(x, label, case), p >= 0.5, case)["roc_auc"]["value"] - 0.5) < 0.2
    x[:, 0] += 4 * label
    assert score(label, p := probe_out_of_fold(x, label, case), p >= 0.5, case)["roc_auc"]["value"] > 0.95
    x[3, 2] = np.nan
    with pytest.raises(DataError, match="1 of 120 feature vectors are not finite"):
        probe_out_of_fold(x, label, case)


def test_fewer_cases_than_splits_and_one_class() -> None:
    label, case = np.array([0, 1, 0, 1, 0, 0]), np.array(list("aabbcd"))
    assert len(case_folds(label, case)) == 2  # atypical patches lie in two cases
    with pytest.raises(DataError, match="two cases of each class") as caught:
        case_folds(np.array([0, 0, 0, 1]), np.array(list("abcd")))
    assert caught.value.details == ("normal: 3 cases", "atypical: 1 cases")
    assert np.array_equal(probe(np.eye(3), np.zeros(3), np.eye(3)), [0.5, 0.5, 0.5])


def test_a_gain_over_oneself_is_nothing() -> None:
    label, case = np.arange(40) % 2, np.arange(40) // 4
    ours = RNG.random(40), RNG.random(40) > 0.5
    assert gain(label, case, ours, ours)["balanced_accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    alone = gain(np.zeros(40), case, ours, ours)  # one class
    assert alone["roc_auc"] == {"value": None, "low": None, "high": None}


def test_a_model_averaged_over_the_group_never_changes_its_class(drawn: Any, patches: Patches) -> None:
    averaged = symmetry.measure(open_subject(drawn.bundle, "full"), patches, SETTINGS)
    assert averaged["dihedral"]["flip_rate"]["value"] == 0
    assert averaged["dihedral"]["logit_range"]["value"] < 1e-4
    plain = symmetry.measure(open_subject(drawn.bundle, "fast"), patches, SETTINGS)
    assert plain["dihedral"]["logit_range"]["value"] > 100 * averaged["dihedral"]["logit_range"]["value"]


def test_constant_logits_never_move(patches: Patches) -> None:
    same = Answers(np.zeros(48), np.full(48, 0.5), np.ones(48, dtype=bool), np.zeros(48))
    found = symmetry.moved([same] * 8, patches, 0.5)
    assert {name: one["value"] for name, one in found.items()} == {"flip_rate": 0, "logit_sd": 0, "logit_range": 0}
    row = score(patches.labels, same.p, same.called, patches.cases)
    assert (row["balanced_accuracy"]["value"], row["roc_auc"]["value"]) == (0.5, 0.5)


def test_features_of_equal_views_are_kept_and_those_of_unrelated_ones_are_not() -> None:
    x, case = RNG.normal(size=(121, 32)), np.arange(121) // 4
    same = symmetry.kept({"identity": x, "rot90": 2 * x, "flip": x}, case)
    assert list(same["views"]) == ["rot90", "flip", symmetry.MEAN] and same["chance"] == 10 / 120
    for row in same["views"].values():
        assert row["neighbours"] == {"value": 1, "low": 1, "high": 1} and row["cosine"]["value"] == pytest.approx(1)
    other = symmetry.kept({"identity": x, **{str(i): RNG.normal(size=x.shape) for i in range(7)}}, case)
    mean = other["views"][symmetry.MEAN]
    assert mean["neighbours"]["value"] == pytest.approx(10 / 120, abs=0.02)
    assert abs(mean["cosine"]["value"]) < 0.05 and mean["cosine"]["low"] <= mean["cosine"]["value"]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert other["apart"] == pytest.approx((unit @ unit.T)[~np.eye(121, dtype=bool)].mean())
    assert symmetry.kept({"identity": x[:2], "flip": -x[:2]}, case[:2])["k"] == 1


def test_features_of_turned_patches_are_of_what_the_fold_model_left_out(drawn: Any, patches: Patches) -> None:
    run = open_subject(drawn.run)
    found = symmetry.turned_features(run, patches, SETTINGS)
    assert found["n"] == int(run.unseen(run.members[0], patches).sum()) < len(patches) and found["fold"] == 0
    assert found["views"][symmetry.MEAN]["cosine"]["value"] < 1
    alone = symmetry.turned_features(run, patches.take(patches.table.folds == 1), SETTINGS)
    assert "fewer than two patches" in alone["problem"]


def test_identity_changes_nothing() -> None:
    image = RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for same in (magnify(image, 1.0), keep_centre(image, 128), rotate(image, 0), rotate(image, 360)):
        assert np.array_equal(same, image)


def test_geometry_keeps_the_centre_where_it_is() -> None:
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[56:72, 56:72] = 255
    for factor in (0.5, 0.8, 1.25, 2.0):
        found = magnify(image, factor)
        assert found.shape == image.shape
        assert float(found.mean()) == pytest.approx(float(image.mean()) * factor**2, rel=0.05)
        assert np.abs(found.astype(int) - found[::-1, ::-1]).max() <= 2
    np.testing.assert_allclose(rotate(image, 90).astype(int), np.rot90(image).astype(int), atol=1)
    assert np.abs(rotate(image, 45).astype(int) - np.rot90(rotate(image, 45))).max() <= 8
    kept = keep_centre(image + 10, 32)
    assert np.array_equal(kept[48:80, 48:80], (image + 10)[48:80, 48:80]) and len(np.unique(kept[:48])) == 1
    with pytest.raises(ArgumentError, match="magnification"):
        magnify(image, 0.2)


def test_scale_one_and_severity_zero_are_the_clean_answers(drawn: Any, patches: Patches) -> None:
    subject = open_subject(drawn.bundle)
    clean = subject.answer(patches)
    expected = score(patches.labels, clean.p, clean.called, patches.cases)
    found = field.measure(subject, patches, SETTINGS)
    rows = {row["scale"]: row for row in found["magnification"]}
    assert rows[1.0] == {"scale": 1.0, **expected} and found["crop"][-1] == {"pixels": 128, **expected}
    assert rows[2.0]["roc_auc"] != expected["roc_auc"]
    severities = corruption.measure(subject, patches, SETTINGS)["corruptions"]
    assert all(row["severities"][0] == expected for row in severities.values()) and len(severities) == 5


@pytest.mark.parametrize("kind", list(corruption.CORRUPTIONS))
def test_corruptions_grow_and_can_be_repeated(kind: str) -> None:
    image = np.kron(RNG.integers(60, 200, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    assert corruption.corrupt(kind, 0) is None
    changes = [corruption.corrupt(kind, severity) for severity in range(1, 6)]
    far = [float(np.abs(change(image, 7).astype(int) - image).mean()) for change in changes if change]
    assert all(a < b for a, b in pairwise(far)) and far[0] > 0
    assert changes[2] is not None and np.array_equal(changes[2](image, 7), changes[2](image, 7))


def test_perfectly_calibrated_bins_have_no_error() -> None:
    p = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 10)
    label = np.concatenate([np.arange(10) < 10 * share for share in (0.1, 0.3, 0.5, 0.7, 0.9)]).astype(int)
    assert calibration.expected_error(label, p) == pytest.approx(0, abs=1e-12)
    assert calibration.expected_error([1, 1, 0, 0], [0, 0, 1, 1]) == 1
    assert calibration.expected_error([1, 0], [1.0, 0.0]) == 0  # 1.0 belongs to the last bin
    found = calibration.error_estimate(1 - label, p, np.arange(50) // 5)
    assert found["low"] <= found["value"] <= found["high"] and found["chance"] < found["value"]
    with pytest.raises(DataError, match="0 labels"):
        calibration.expected_error([], [])


def test_calibration_is_fitted_without_the_part_that_it_is_tested_on() -> None:
    """Domain B's logits are 3 too high: whoever saw B knows, whoever did not is overconfident there by just that."""
    true = RNG.normal(size=4000) * 2
    label = (RNG.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    domain = np.where(np.arange(4000) < 2000, "A", "B")
    z = true + 3 * (domain == "B")
    p = calibration.refitted(z, label, domain)
    in_b = domain == "B"
    np.testing.assert_allclose(p[in_b], 1 / (1 + np.exp(-z[in_b])), atol=0.06)
    assert calibration.expected_error(label[in_b], p[in_b]) > 0.3
    same = calibration.refitted(z[in_b], label[in_b], np.arange(2000) % 5)
    assert calibration.expected_error(label[in_b], same) < 0.05
    other = label.copy()
    other[in_b] = 1 - other[in_b]
    assert np.array_equal(calibration.refitted(z, other, domain)[in_b], p[in_b])
    assert np.isnan(calibration.refitted(z, label, np.where(in_b, "", "A"))).all()


def test_confidence_of_a_calibrated_model_is_its_accuracy(drawn: Any, patches: Patches) -> None:
    row = calibration.measure(open_subject(drawn.bundle), patches, SETTINGS)["rows"][0]
    found = open_subject(drawn.bundle).answer(patches)
    assert row["accuracy"] == pytest.approx(float((found.called == (patches.labels == 1)).mean()))
    assert row["confidence"] == pytest.approx(float(np.where(found.called, found.p, 1 - found.p).mean()))
    assert "by_case" in row and "left_out" not in row
    assert set(calibration.case_parts([0, 0, 1, 1], list("aabb"), 0)) == {""}


def test_a_class_missing_in_a_domain_is_undefined_there(drawn: Any, patches: Patches) -> None:
    without = patches.take((patches.labels == 0) | (patches.column("scanner") == "S0"))
    found = domains.measure(open_subject(drawn.bundle), without, SETTINGS)
    rows = {row["group"]: row for row in found["rows"]}
    assert rows["S1"]["balanced_accuracy"] == {"value": None, "low": None, "high": None}
    assert rows["S0"]["balanced_accuracy"]["value"] is not None
    assert "undefined" in domains.section(found).figures[0].svg
    assert calibration.measure(open_subject(drawn.bundle), without, SETTINGS)["rows"][2]["n_atypical"] == 0


def test_groups_with_few_atypical_patches_are_not_ranked() -> None:
    def row(group: str, few: bool, value: float) -> dict[str, Any]:
        return {"by": "scanner", "group": group, "few": few, "balanced_accuracy": {"value": value}}

    assert domains.weakest([row("a", True, 0.5), row("b", False, 0.7), row("c", False, 0.8)], "scanner") == "b"
    assert domains.weakest([row("a", True, 0.5), row("b", False, 0.7)], "scanner") is None


def features(strength: float, scanners: int = 2, cases: int = 40) -> Features:
    case = np.repeat(np.arange(cases), 6)
    scanner = np.array([f"S{c % scanners}" for c in case])
    x = np.random.default_rng(1).normal(size=(len(case), 10))
    x[:, 0] += strength * (case % scanners)
    columns = {"scanner": scanner, "case": case.astype(str), "label": (np.arange(len(case)) % 2).astype(str)}
    return Features({"adapted": x}, {name: words.astype(object) for name, words in columns.items()})


def test_leakage_is_nothing_for_shuffled_domains_and_all_for_known_ones() -> None:
    assert leakage.told(features(0.0), "scanner")["adapted"]["value"] == pytest.approx(0, abs=0.2)
    known = leakage.told(features(20.0), "scanner")["adapted"]
    assert (known["value"], known["chance"]) == (pytest.approx(1, abs=0.01), 0.5) and known["high"] <= 1
    three = leakage.told(features(20.0, scanners=3), "scanner")["adapted"]
    assert three["chance"] == pytest.approx(1 / 3) and three["value"] > 0.5


def test_a_confounder_of_one_level_is_a_reason() -> None:
    assert "one level" in leakage.told(features(0.0, scanners=1), "scanner")["adapted"]["problem"].replace(
        "\n", " "
    ) or ("fewer than two levels" in leakage.told(features(0.0, scanners=1), "scanner")["adapted"]["problem"])
    with pytest.raises(DataError, match="not finite"):
        bad = features(0.0)
        bad.arrays["adapted"][0, 0] = np.nan
        robustness.card(bad, "scanner")


def test_the_balanced_pair_has_chance_one_half() -> None:
    alone = features(0.0)
    alone.columns["case"][:] = [f"c{i}" for i in range(len(alone))]
    rows = {row["measure"]: row for row in robustness.card(alone, "scanner")["rows"]}
    assert rows["robustness index, pairs"]["chance"] == 0.5
    assert rows["robustness index, pairs"]["value"] == pytest.approx(0.5, abs=0.1)


def test_multiply_adds_of_a_linear_layer_and_the_energy_of_a_constant_power() -> None:
    from midog.models.meter import Meter

    layer, x = torch.nn.Linear(12, 7, device="meta"), torch.empty(1, 12, device="meta")
    with Meter() as meter, torch.no_grad():
        layer(x)
    assert cost.macs(meter.flops) == 12 * 7
    assert cost.energy(3.0, 20.0) == 60.0


def test_a_choice_is_on_the_front_where_nothing_cheaper_is_as_good() -> None:
    work, quality = [1, 2, 3, 4, 4, 5], [0.7, 0.6, 0.8, 0.9, 0.85, None]
    assert cost.pareto(work, quality) == [True, False, True, True, False, False]
    assert cost.pareto([1, 1], [0.5, 0.5]) == [True, True] and cost.pareto([], []) == []


def test_a_declared_run_costs_what_its_joules_say() -> None:
    assert cost.kilograms(3.6e6, 400) == pytest.approx(0.4) and cost.kilograms(0, 400) == 0


def test_choices_are_the_audited_point_and_each_member_alone(drawn: Any, patches: Patches) -> None:
    for kind in ("bundle", "run"):
        subject = open_subject(getattr(drawn, kind), "full")
        found = cost.measure(subject, patches, SETTINGS)
        rows = {row["name"]: row for row in found["choices"]}
        assert list(rows) == ["audited", "vit", "effnet"]
        assert rows["audited"]["macs"] == sum(row["macs_per_patch"] for row in found["rows"]) > rows["vit"]["macs"]
        assert any(row["pareto"] for row in rows.values())
        assert found["kg_co2_of_a_run"] == pytest.approx(found["kwh_of_a_run"] * 0.4)
    # out of fold a member's one view is the run's own operating point of that member
    alone = open_subject(drawn.run, "only:effnet")
    np.testing.assert_allclose(alone.alone(alone.members[0], patches), alone.answer(patches).z, atol=1e-6)


def test_cost_counts_every_pass(drawn: Any, patches: Patches) -> None:
    one = cost.measure(open_subject(drawn.bundle, "fast"), patches, SETTINGS)
    all_ = cost.measure(open_subject(drawn.bundle, "full"), patches, SETTINGS)
    assert [row["passes"] for row in one["rows"]] == [1] and [row["passes"] for row in all_["rows"]] == [16, 16]
    assert one["rows"][0]["macs_per_patch"] * 16 == all_["rows"][0]["macs_per_patch"] > 0
    assert one["estimate"] is True and "estimate" in cost.headline(one) and one["rows"][0]["input"] == 64
    assert 0 < one["rows"][0]["trained"] < one["rows"][0]["parameters"] + 65


def test_attacks_with_no_budget_give_the_clean_answers_and_stay_within_it(drawn: Any, patches: Patches) -> None:
    found = attacks.measure(open_subject(drawn.bundle), patches, SETTINGS)
    whole = [row for row in found["rows"] if row["by"] == "all"]
    clean = [row for row in whole if row["budget"] == 0]
    assert len(clean) == 6 and all(row["flip_rate"]["value"] == 0 for row in clean)
    assert {row["balanced_accuracy"]["value"] for row in clean} == {clean[0]["balanced_accuracy"]["value"]}
    assert all("no pixel changed" in row["notes"][0] for row in clean)
    at = {(row["kind"], row["version"], row["budget"]): row["feature_cosine"]["value"] for row in whole}
    assert at["local", "local", 8] < at["local", "noise", 8]
    assert at["local", "local", 8] < at["rim", "rim", 8] < 1
    moved = found["transfer"]
    assert moved["fitted_on"] == ["noise", "vit", "effnet"] and moved["victims"] == ["vit", "effnet", "ensemble mean"]
    assert {row["by"] for row in found["rows"]} == {"all", "scanner", "tumour"}


def test_attacks_keep_cases_and_training_apart(drawn: Any, patches: Patches) -> None:
    run, bundle = open_subject(drawn.run), open_subject(drawn.bundle)
    target, fitted = attacks.chosen(run, run.members[0], patches, SETTINGS)
    assert set(target.table.folds) == {0, -1} and set(fitted.table.folds) == {1}
    target, fitted = attacks.chosen(bundle, bundle.members[0], patches, SETTINGS)
    assert not set(target.cases) & set(fitted.cases)
    with pytest.raises(DataError, match="other cases to attack"):
        attacks.chosen(bundle, bundle.members[0], patches.take(patches.cases == "c0"), SETTINGS)


def test_the_rim_is_that_of_what_the_network_sees() -> None:
    from midog.audit.victims import seen_rim

    mask = seen_rim(128, 64)[0, 0]
    assert mask.shape == (128, 128) and not mask[:32].any() and bool(mask[32, 32:96].all()) and not mask[64, 64]
    assert 0 < float(mask.double().mean()) * 4 <= 0.1


def test_limits_that_cannot_be() -> None:
    for limit in (-1, 5):
        with pytest.raises(UsageError, match="--limit"):
            Settings(limit=limit)
