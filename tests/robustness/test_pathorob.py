"""The robustness index: closed forms, invariants, chance, parity with croma, real embeddings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn_features import draw, real_embeddings

from midog.errors import DataError, UsageError
from midog.robustness.features import read_features
from midog.robustness.neighbours import neighbours
from midog.robustness.pathorob import (
    best_k,
    chance_robustness_index,
    robustness_card,
    robustness_curve,
    robustness_index,
)


def by_hand(features: np.ndarray, label: np.ndarray, confounder: np.ndarray, case: np.ndarray, k: int) -> float:
    """The definition, one neighbour at a time."""
    so = os = 0
    for i, row in enumerate(neighbours(features, case, k)):
        for j in row:
            so += bool(label[i] == label[j] and confounder[i] != confounder[j])
            os += bool(label[i] != label[j] and confounder[i] == confounder[j])
    return so / (so + os)


@pytest.mark.parametrize("k", [1, 11, 31])
def test_features_of_the_label_alone_give_1_and_of_the_scanner_alone_0(k: int) -> None:
    drawn = draw(0, 0, cases=40)
    noise = 0.01 * np.random.default_rng(0).normal(size=(len(drawn.case), 2))
    for words, expected in ((drawn.label, 1.0), (drawn.scanner, 0.0)):
        one_hot = np.eye(2)[np.unique(words, return_inverse=True)[1]]
        assert robustness_index(one_hot + noise, drawn.label, drawn.scanner, drawn.case, k) == expected


def test_rotation_and_scaling_of_rows_change_nothing() -> None:
    drawn = draw(1, 1)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    turned = rng.uniform(0.1, 50, size=(len(drawn.case), 1)) * (drawn.features @ rotation)
    card, other = (robustness_card(x, *drawn.all[1:], k=9) for x in (drawn.features, turned))
    assert card == other and card.robustness_index not in (0, 1)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_pooled_counts_of_the_definition(k: int) -> None:
    drawn = draw(0.7, 1.2, seed=3)
    assert robustness_index(*drawn.all, k) == by_hand(*drawn.all, k)


def test_the_curve_is_one_search_read_at_several_k() -> None:
    drawn = draw(1, 1)
    curve = robustness_curve(*drawn.all)
    assert [card.k for card in curve] == [1, 3, 5, 7, 9, 11, 21, 31, 51, 101]  # of 144 patches 138 are of other cases
    assert curve[5] == robustness_card(*drawn.all) == robustness_card(*drawn.all, k=11)
    near = neighbours(drawn.features, drawn.case, 101)
    assert robustness_curve(*drawn.all, near=near) == curve


def test_support_and_counts_by_hand() -> None:
    """Four patches on a line of angles: 0 (a, X), 1 (a, X), 2 (a, Y), 10 (b, Y)."""
    angle = np.deg2rad([0, 1, 2, 10])
    x = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    card = robustness_card(x, list("aaab"), list("XXYY"), np.arange(4), k=1)
    # nearest: 0→1 SS, 1→0 (tie with 2 is broken by rounding, so either way SS or SO), 2→1 SO, 3→2 OS
    assert card.os == 1 and card.so in (1, 2) and card.support == (card.so + card.os) / 4 and card.n == 4


def test_chance_is_what_noise_gives_on_an_unbalanced_table() -> None:
    rng = np.random.default_rng(5)
    n = 3000
    label = (rng.random(n) < 0.2).astype(int)
    scanner = rng.choice(5, size=n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    case = rng.integers(150, size=n)
    chance = chance_robustness_index(label, scanner, case)
    found = robustness_index(rng.normal(size=(n, 20)), label, scanner, case, 31)
    assert chance > 0.7 and found == pytest.approx(chance, abs=0.01)


def test_chance_by_hand_with_groups() -> None:
    rng = np.random.default_rng(6)
    label, scanner, case = rng.integers(3, size=60), rng.integers(2, size=60), rng.integers(9, size=60)
    so = both = 0.0
    for i in range(60):
        other = case != case[i]
        so_i = (other & (label == label[i]) & (scanner != scanner[i])).sum()
        os_i = (other & (label != label[i]) & (scanner == scanner[i])).sum()
        so, both = so + so_i / other.sum(), both + (so_i + os_i) / other.sum()
    assert chance_robustness_index(label, scanner, case) == pytest.approx(so / both, abs=1e-12)


def test_chance_without_groups_has_a_closed_form() -> None:
    label = np.repeat([0, 0, 1, 1], [900, 500, 50, 90])
    scanner = np.repeat([0, 1, 0, 1], [900, 500, 50, 90])
    cells = np.array([[900, 500], [50, 90]])
    so = (cells.sum(axis=1) ** 2).sum() - (cells**2).sum()
    os = (cells.sum(axis=0) ** 2).sum() - (cells**2).sum()
    assert chance_robustness_index(label, scanner) == pytest.approx(so / (so + os), abs=1e-12)


@pytest.mark.parametrize(("classes", "domains"), [(2, 2), (2, 7), (4, 4), (3, 2)])
def test_chance_of_a_balanced_table(classes: int, domains: int) -> None:
    """(C − 1) / (B + C − 2), .5 exactly for 2 × 2 and .857 for 2 × 7."""
    label, scanner = (cells.ravel().repeat(10) for cells in np.meshgrid(np.arange(classes), np.arange(domains)))
    expected = (domains - 1) / (classes + domains - 2)
    assert chance_robustness_index(label, scanner) == pytest.approx(expected, abs=1e-12)
    if classes == domains == 2:
        assert chance_robustness_index(label, scanner) == 0.5


def test_the_interval_is_of_cases() -> None:
    drawn = draw(0.7, 0.7, cases=30)
    card = robustness_card(*drawn.all)
    assert card.interval is not None and card.robustness_index is not None
    assert 0 < card.interval.low < card.robustness_index < card.interval.high < 1
    copied = np.tile(np.arange(len(drawn.case)), 3)  # three times the patches, the same cases: no more is known
    thrice = robustness_card(drawn.features[copied], *(words[copied] for words in drawn.all[1:]), k=33)
    assert thrice.interval is not None
    width, other = (c.interval.high - c.interval.low for c in (card, thrice) if c.interval)
    assert other == pytest.approx(width, rel=0.05)
    assert card == robustness_card(*drawn.all) and card.interval != robustness_card(*drawn.all, seed=1).interval


def test_the_best_k_is_that_of_the_vote() -> None:
    drawn = draw(0.8, 1.5, cases=20, seed=2)
    near = neighbours(drawn.features, drawn.case, 31)
    accuracy = {}
    for k in (1, 5, 11, 31):
        votes = (drawn.label[near[:, :k]] == "normal").mean(axis=1) > 0.5
        right = votes == (drawn.label == "normal")
        accuracy[k] = np.mean([right[drawn.label == name].mean() for name in ("normal", "atypical")])
    assert best_k(drawn.features, drawn.label, drawn.case, (1, 5, 11, 31)) == max(accuracy, key=lambda k: accuracy[k])


def test_no_counted_neighbour_is_undefined_and_says_so() -> None:
    """Label and scanner are the same thing: no neighbour can be SO or OS."""
    x = np.random.default_rng(7).normal(size=(20, 4))
    words = np.arange(20) % 2
    card = robustness_card(x, words, words, np.arange(20), k=3)
    assert (card.robustness_index, card.chance, card.interval) == (None, None, None)
    assert (card.so, card.os, card.support) == (0, 0, 0.0)
    assert math.isnan(robustness_index(x, words, words, np.arange(20), 3))
    assert math.isnan(chance_robustness_index(words, words))


def test_what_cannot_be_measured() -> None:
    drawn = draw(1, 1)
    x, label, scanner, case = drawn.all
    with pytest.raises(DataError, match=r"confounder has one level: S0\n.*choose another confounder"):
        robustness_index(x, label, np.full(len(x), "S0"), case, 3)
    with pytest.raises(DataError, match="label has one level: normal"):
        robustness_index(x, np.full(len(x), "normal"), scanner, case, 3)
    with pytest.raises(DataError, match="7 of 144 rows have no confounder"):
        robustness_index(x, label, np.where(np.arange(len(x)) < 7, "", scanner), case, 3)
    with pytest.raises(DataError, match=r"label has shape \(143,\) for 144"):
        robustness_index(x, label[1:], scanner, case, 3)
    with pytest.raises(UsageError, match="k is 139, and some patch has only 138"):
        robustness_index(x, label, scanner, case, 139)
    with pytest.raises(UsageError, match=r"k is \[0\]"):
        robustness_index(x, label, scanner, case, 0)
    with pytest.raises(DataError, match="not finite"):
        robustness_index(np.where(x > 2, np.inf, x), label, scanner, case, 3)
    with pytest.raises(DataError, match="one case"):
        chance_robustness_index(label, scanner, np.zeros(len(x)))


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_croma(seed: int) -> None:
    """croma 1.0.1, an independent implementation (Apache-2.0); install it to run this."""
    croma, pandas = pytest.importorskip("croma"), pytest.importorskip("pandas")
    drawn = draw(0.6, 0.9, cases=25, scanners=3, seed=seed)
    ids = [f"{i}.png" for i in range(len(drawn.case))]
    manifest = pandas.DataFrame(
        {
            "sample_id": ids,
            "image_path": ids,
            "label": drawn.label,
            "center": drawn.scanner,
            "group_id": drawn.case.astype(str),
        }
    )
    ks = [1, 5, 11, 31]
    theirs = croma.RI.compute_curve(drawn.features, manifest, confounder_column="center", k_values=ks)
    ours = {card.k: card.robustness_index for card in robustness_curve(*drawn.all, ks=ks)}
    print({k: (ours[k], theirs[k]) for k in ks})
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_real_embeddings_know_the_medical_centre() -> None:
    """HIPT regions of TCGA in PathoROB's 4 × 4 design: less than chance, as the paper found of foundation models."""
    features = read_features(real_embeddings())
    features = features.subset(features.column("subset") == "ID")
    words = [features.column(name) for name in ("biological_class", "medical_center", "slide")]
    card = robustness_card(features.arrays["X"], *words)
    assert card.n == 7251 and card.interval is not None and card.chance is not None
    assert card.robustness_index == pytest.approx(0.334, abs=0.002) and card.chance == pytest.approx(0.465, abs=0.001)
    assert card.interval.low < 0.27 and card.interval.high < card.chance
