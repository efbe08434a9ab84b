"""Losses against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midog.training.losses import bce, domain_weights, focal, loss

logit = st.floats(-15, 15)
share = st.floats(0, 1)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(logit, share)
def test_bce_is_the_cross_entropy(z: float, target: float) -> None:
    p = 1 / (1 + math.exp(-z))
    expected = -(target * math.log(p) + (1 - target) * math.log1p(-p))
    assert bce(tensor(z), tensor(target)).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(logit, st.sampled_from([0.0, 1.0]), st.floats(0.5, 4))
def test_focal_is_the_published_form_for_hard_labels(z: float, target: float, gamma: float) -> None:
    p = 1 / (1 + math.exp(-z if target else z))
    expected = (1 - p) ** gamma * -math.log(p)
    assert focal(tensor(z), tensor(target), gamma).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


@given(logit, share)
def test_focal_without_focus_is_bce(z: float, target: float) -> None:
    assert focal(tensor(z), tensor(target), 0) == bce(tensor(z), tensor(target))


@given(share.filter(lambda t: 1e-3 < t < 1 - 1e-3))
def test_a_soft_target_is_met_without_loss_in_focal(target: float) -> None:
    z = math.log(target / (1 - target))
    assert focal(tensor(z), tensor(target), 2).item() == pytest.approx(0, abs=1e-12)


def test_focal_turns_away_from_what_is_known() -> None:
    easy, hard = (loss("focal", torch.tensor([z]), torch.tensor([1.0])) for z in (4.0, -1.0))
    assert hard / easy > bce(torch.tensor([-1.0]), torch.tensor([1.0])) / bce(torch.tensor([4.0]), torch.tensor([1.0]))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_every_domain_weighs_the_same_and_the_mean_is_one(domains: list[str]) -> None:
    weights = domain_weights(domains)
    totals = [weights[np.array(domains) == name].sum() for name in set(domains)]
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert np.allclose(totals, len(domains) / len(totals), rtol=1e-5)


def test_domain_focal_is_the_weighted_mean_of_focal() -> None:
    z, target, weights = torch.randn(6), torch.tensor([0, 1.0, 0, 1, 0, 1]), torch.tensor([2, 2, 0.5, 0.5, 0.5, 0.5])
    expected = (focal(z, target, 1.5) * weights).sum() / 6
    assert loss("domain_focal", z, target, weights, 1.5).item() == pytest.approx(expected.item(), rel=1e-6)


def test_half_precision_logits_are_scored_in_float32() -> None:
    z = torch.tensor([0.1, -3.0], dtype=torch.bfloat16)
    assert loss("bce", z, torch.tensor([1.0, 0.0])).dtype == torch.float32


@pytest.mark.parametrize("kind", ["dice", "domain_focal"])
def test_an_unknown_loss_or_missing_weights_raise(kind: str) -> None:
    with pytest.raises(ValueError, match="no such loss"):
        loss(kind, torch.zeros(1), torch.zeros(1))


@given(logit, st.sampled_from([0.0, 1.0]), st.floats(0.3, 4))
def test_focal_has_a_finite_slope_everywhere(z: float, target: float, gamma: float) -> None:
    leaf = torch.tensor([z], requires_grad=True)
    focal(leaf, torch.tensor([target]), gamma).sum().backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
