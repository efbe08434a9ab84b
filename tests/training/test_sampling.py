"""What an epoch draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from midog.training.sampling import draw_epoch

seeds = st.integers(0, 2**32)


def labels_of(atypical: int, normal: int) -> NDArray[np.int8]:
    return np.array([1] * atypical + [0] * normal, dtype=np.int8)


@given(st.integers(1, 20), st.integers(1, 40), seeds)
def test_natural_draws_everything_once(atypical: int, normal: int, seed: int) -> None:
    labels = labels_of(atypical, normal)
    drawn = draw_epoch("natural", labels, [""] * len(labels), len(labels), np.random.default_rng(seed))
    assert sorted(drawn.tolist()) == list(range(len(labels)))


@given(st.integers(1, 20), st.integers(1, 40), seeds, st.sampled_from(["balanced", "domain"]))
def test_every_even_batch_holds_both_classes_equally(atypical: int, normal: int, seed: int, kind: str) -> None:
    labels = labels_of(atypical, normal)
    domains = ["a", "b", "c"] * len(labels)
    drawn = draw_epoch(kind, labels, domains[: len(labels)], 64, np.random.default_rng(seed))
    for start in range(0, 64, 8):
        assert labels[drawn[start : start + 8]].sum() == 4


@given(st.integers(1, 12), st.integers(1, 40), seeds)
def test_balanced_repeats_evenly(atypical: int, normal: int, seed: int) -> None:
    labels = labels_of(atypical, normal)
    n = 2 * (atypical + normal)
    counts = np.bincount(
        draw_epoch("balanced", labels, [""] * len(labels), n, np.random.default_rng(seed)), minlength=len(labels)
    )
    for side in (counts[labels == 1], counts[labels == 0]):
        assert side.max() - side.min() <= 1


def test_domain_gives_each_domain_its_share_within_each_class() -> None:
    labels = labels_of(30, 90)
    domains = np.array(["rare"] * 2 + ["common"] * 28 + ["rare"] * 10 + ["common"] * 80)
    drawn = draw_epoch("domain", labels, list(domains), 400, np.random.default_rng(0))
    for label in (0, 1):
        of_class = drawn[labels[drawn] == label]
        assert (domains[of_class] == "rare").sum() == 100


def test_a_domain_without_one_class_is_left_out_of_that_class_only() -> None:
    labels = labels_of(4, 8)
    domains = ["a"] * 4 + ["a"] * 4 + ["b"] * 4
    drawn = draw_epoch("domain", labels, domains, 80, np.random.default_rng(0))
    assert labels[drawn].sum() == 40


def test_the_same_generator_gives_the_same_order_and_another_one_does_not() -> None:
    labels = labels_of(20, 60)
    orders = [draw_epoch("balanced", labels, [""] * 80, 80, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_bad_arguments_raise() -> None:
    with pytest.raises(ValueError, match="no such sampler"):
        draw_epoch("weighted", labels_of(1, 1), ["", ""], 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no patch of class 1"):
        draw_epoch("balanced", labels_of(0, 3), [""] * 3, 2, np.random.default_rng(0))
