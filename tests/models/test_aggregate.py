"""The case aggregator: what attention over a case must hold to, and what it learns of drawn cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from midog.bundle import pack
from midog.errors import DataError, UsageError, WeightsError
from midog.models.aggregate import (
    CaseAggregator,
    answer_cases,
    bags_of,
    cross_fit_cases,
    fit_aggregator,
    load_aggregator,
    save_aggregator,
)
from midog.models.weights import write_tensors

WIDTH = 8


@pytest.fixture
def model() -> CaseAggregator:
    built, generator = CaseAggregator(WIDTH), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    built.mean.copy_(torch.randn(WIDTH, generator=generator))
    built.scale.copy_(torch.rand(WIDTH, generator=generator) + 0.5)
    return built.eval()


def drawn_cases(n: int = 90, each: int = 12, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Synthetic features of `n` cases whose share of atypical patches varies, one direction telling the label."""
    rng = np.random.default_rng(seed)
    cases = [f"case{at:02}" for at in range(n) for _ in range(each)]
    shares = np.repeat(rng.uniform(0, 1, n), each)
    labels = (rng.uniform(size=n * each) < shares).astype(np.int64)
    features = rng.normal(size=(n * each, WIDTH)).astype(np.float32)
    features[:, 0] += 3 * labels
    return features, cases, labels


@torch.no_grad()
def test_a_case_of_one_patch_is_that_patch(model: CaseAggregator) -> None:
    bags, mask = torch.randn(3, 1, WIDTH), torch.ones(3, 1, dtype=torch.bool)
    vector, attention = model.pool(bags, mask)
    assert torch.equal(attention, torch.ones(3, 1))
    torch.testing.assert_close(vector, (bags[:, 0] - model.mean) / model.scale)
    torch.testing.assert_close(model(bags, mask), model(bags, mask, exit="patch")[:, 0])


@torch.no_grad()
def test_order_does_not_matter_and_padding_is_nothing(model: CaseAggregator) -> None:
    features, order = torch.randn(6, WIDTH).numpy(), np.random.default_rng(1).permutation(6)
    plain = answer_cases(model, features, ["a"] * 6)
    turned = answer_cases(model, features[order], ["a"] * 6)
    np.testing.assert_allclose(turned.share, plain.share, rtol=1e-5)
    np.testing.assert_allclose(turned.attention, plain.attention[order], rtol=1e-5)
    assert plain.attention.sum() == pytest.approx(1, rel=1e-6)
    # A larger case beside it pads this one.
    both = answer_cases(model, np.concatenate((features, torch.randn(9, WIDTH).numpy())), ["a"] * 6 + ["b"] * 9)
    np.testing.assert_allclose(both.share[0], plain.share[0], rtol=1e-5)
    bags, mask, *_ = bags_of(features, list("aaaabb"))
    filled = torch.where(mask[..., None], bags, torch.full_like(bags, 1e4))
    torch.testing.assert_close(model(filled, mask), model(bags, mask))
    assert torch.equal(model(filled, mask, exit="patch"), model(bags, mask, exit="patch"))


def test_bags_put_every_patch_in_its_case() -> None:
    features = np.arange(10, dtype=np.float32).reshape(5, 2)
    bags, mask, names, places = bags_of(features, ["b", "a", "b", "c", "b"])
    assert names == ("a", "b", "c")
    assert mask.tolist() == [[True, False, False], [True] * 3, [True, False, False]]
    assert np.array_equal(bags[places[:, 0], places[:, 1]].numpy(), features)
    assert bags[1, :, 0].tolist() == [0, 4, 8]


def test_shares_of_unseen_cases_are_learned_and_both_exits_agree_in_direction() -> None:
    features, cases, labels = drawn_cases()
    found = cross_fit_cases(features, cases, labels, folds=4)
    assert found.cases == tuple(sorted(set(cases)))
    truth = labels.reshape(90, 12).mean(axis=1)
    np.testing.assert_allclose(found.truth, truth)
    assert np.corrcoef(found.share, truth)[0, 1] > 0.8
    assert found.patch_logits[labels == 1].mean() > found.patch_logits[labels == 0].mean() + 0.5
    again = cross_fit_cases(features, cases, labels, folds=4)
    assert np.array_equal(again.share, found.share)
    shuffled = cross_fit_cases(features, cases, np.random.default_rng(0).permutation(labels), folds=4)
    assert abs(np.corrcoef(shuffled.share, shuffled.truth)[0, 1]) < 0.6


def test_saved_and_read_back(tmp_path: Path) -> None:
    features, cases, labels = drawn_cases(6)
    model = fit_aggregator(features, cases, labels, epochs=5)
    read = load_aggregator(save_aggregator(model, tmp_path / "cases.safetensors"))
    assert np.array_equal(answer_cases(read, features, cases).share, answer_cases(model, features, cases).share)
    assert np.isnan(answer_cases(read, features, cases).truth).all()
    with pytest.raises(UsageError, match=r"answers for whole cases; the platform asks page by page"):
        pack(tmp_path / "cases.safetensors", tmp_path / "model.tar.gz")
    other = write_tensors(tmp_path / "other.safetensors", {"mean": torch.zeros(2)}, {"content": "fold model"})
    with pytest.raises(WeightsError, match="no case aggregator"):
        load_aggregator(other)


def test_bad_input_is_said() -> None:
    features, cases, labels = drawn_cases(4)
    broken = features.copy()
    broken[3, 0] = np.nan
    with pytest.raises(DataError, match="not finite") as caught:
        fit_aggregator(broken, cases, labels)
    assert caught.value.details == ("row 3",)
    with pytest.raises(DataError, match="labels of an aggregator"):
        fit_aggregator(features, cases, labels * 2)
    with pytest.raises(DataError, match="a single case"):
        fit_aggregator(features, ["a"] * len(cases), labels)
    with pytest.raises(DataError, match="4 cases for 5 folds"):
        cross_fit_cases(features, cases, labels)
    with pytest.raises(DataError, match="for 47 patches"):
        bags_of(features, cases[:-1])
    with pytest.raises(DataError, match="was fitted on 8"):
        answer_cases(CaseAggregator(WIDTH), features[:, :3], cases)
    with pytest.raises(UsageError, match="exit"):
        CaseAggregator(WIDTH)(torch.zeros(1, 1, WIDTH), torch.ones(1, 1, dtype=torch.bool), exit="slide")
