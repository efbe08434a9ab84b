"""The robustness index before and after: on the same patches, paired by case."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_features import draw

from midog.errors import DataError
from midog.robustness.change import Space, robustness_changes
from midog.robustness.paired import paired_robustness

K = 5


def spaces(of_label: float, of_scanner: float, seeds: tuple[int, ...] = (0,)) -> list[Space]:
    """A space for each seed, of other cases."""
    drawn = [draw(of_label, of_scanner, seed=seed) for seed in seeds]
    return [
        Space(one.features, one.label, one.scanner, [f"{seed}/{case}" for case in one.case])
        for seed, one in zip(seeds, drawn, strict=True)
    ]


def test_one_space_has_the_index_of_paired_robustness() -> None:
    own = spaces(1, 1)[0]
    plain = paired_robustness(own.features, own.label, own.confounder, own.group, K)
    found = robustness_changes({"a": [own]}, K)["a"]
    assert found.card == plain.card and found.change is None and found.interval is None


def test_the_same_features_do_not_change_and_turned_ones_neither() -> None:
    rng = np.random.default_rng(0)
    own = spaces(1, 1)[0]
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    turned = Space(np.asarray(own.features) @ turn, own.label, own.confounder, own.group)
    for name, found in robustness_changes({"a": [own], "same": [own], "turned": [turned]}, K).items():
        if name != "a":
            assert found.change == 0 and found.interval is not None
            assert found.interval.low == found.interval.high == 0


def test_what_follows_the_label_more_has_a_higher_index_and_the_interval_says_so() -> None:
    found = robustness_changes({"scanner": spaces(0.3, 1), "label": spaces(1, 0.3)}, K)
    before, after = found["scanner"].card.robustness_index, found["label"].card.robustness_index
    change, interval = found["label"].change, found["label"].interval
    assert before is not None and after is not None and change == pytest.approx(after - before)
    assert interval is not None and 0 < interval.low < change < interval.high
    # paired: far narrower than two intervals side by side would be
    back = robustness_changes({"label": spaces(1, 0.3), "scanner": spaces(0.3, 1)}, K)["scanner"]
    assert back.change == pytest.approx(-change)


def test_counts_of_fold_models_are_added_up_and_no_patch_is_compared_across_them() -> None:
    both, parts = spaces(1, 1, (0, 1)), [spaces(1, 1, (seed,)) for seed in (0, 1)]
    whole = robustness_changes({"a": both}, K)["a"].card
    single = [robustness_changes({"a": part}, K)["a"].card for part in parts]
    assert (whole.so, whole.os, whole.n) == tuple(
        sum(getattr(card, name) for card in single) for name in ("so", "os", "n")
    )
    # a space of another origin would put its patches far away, if it were one space
    moved = [both[0], Space(100 + np.asarray(both[1].features), both[1].label, both[1].confounder, both[1].group)]
    assert robustness_changes({"a": moved}, K)["a"].card.n == whole.n


def test_other_patches_and_shared_cases_are_refused() -> None:
    own, other = spaces(1, 1), spaces(1, 1, (1,))
    with pytest.raises(DataError, match="b has other patches than a"):
        robustness_changes({"a": own, "b": other})
    with pytest.raises(DataError, match="24 cases lie in two fold models' patches, such as 0/0"):
        robustness_changes({"a": [*own, *own]})
    with pytest.raises(DataError, match="no feature space"):
        robustness_changes({"a": []})
