"""The concept head: closed forms, invariants, and anchors that do not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from midog.errors import DataError, UsageError, WeightsError
from midog.models.heads.concept import (
    SCALE,
    Concept,
    ConceptHead,
    concept_scores,
    contrast,
    kl_divergence,
    read_anchors,
)
from midog.training.prototypes import class_prototypes, kmeans


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anchors(width: int = 12, agnostic: int = 2) -> dict[str, Tensor]:
    found = {"class_0": draw(3, width, seed=1), "class_1": draw(5, width, seed=2)}
    return found | {f"agnostic_{at}": draw(2, width, seed=3 + at) for at in range(agnostic)}


def head(features: int = 12, given: dict[str, Tensor] | None = None, **settings: Any) -> ConceptHead:
    """A head whose every parameter has moved from its start."""
    torch.manual_seed(0)
    built = ConceptHead(features, Concept(width=16, **settings), given or anchors())
    with torch.no_grad():
        for at, parameter in enumerate(built.parameters()):
            parameter.add_(draw(*parameter.shape, seed=at) * 0.3)
    return built.eval()


def test_divergence_in_closed_form() -> None:
    zero = torch.zeros(3, 7)
    assert kl_divergence(zero, zero) == 0
    torch.testing.assert_close(kl_divergence(zero + 1, zero), torch.tensor(0.5))
    variance = 4.0
    expected = -0.5 * (1 + math.log(variance) - variance)
    torch.testing.assert_close(kl_divergence(zero, zero + math.log(variance)), torch.tensor(expected))


@pytest.mark.parametrize("negatives", [1, 3])
def test_contrast_on_the_anchor_with_orthogonal_negatives(negatives: int) -> None:
    means = torch.eye(1 + negatives, 8, dtype=torch.float64)
    found = contrast(5 * means[:1], torch.tensor([0]), means)
    assert float(found) == pytest.approx(math.log(1 + negatives * math.exp(-10)), rel=1e-9)
    if negatives == 1:
        assert float(found) == pytest.approx(4.54e-5, abs=5e-8)


def test_contrast_knows_no_length_and_no_order_of_agnostic_groups() -> None:
    means = torch.nn.functional.normalize(draw(5, 8), dim=1)
    z, labels = draw(6, 8, seed=1), torch.tensor([0, 1, 1, 0, 0, 1])
    value = contrast(z, labels, means)
    torch.testing.assert_close(contrast(z * torch.rand(6, 1).add(0.1) * 50, labels, means), value)
    torch.testing.assert_close(contrast(z, labels, means[[0, 1, 4, 2, 3]]), value)
    assert not torch.isclose(contrast(z, labels, means[[1, 0, 2, 3, 4]]), value)


def test_contrast_bagwise_takes_the_ten_nearest() -> None:
    means = torch.nn.functional.normalize(draw(4, 8), dim=1)
    z, labels = draw(30, 8, seed=1), torch.ones(30, dtype=torch.long)
    cosine = torch.nn.functional.normalize(z, dim=1) @ means[1]
    near = cosine.argsort(descending=True)[:10]
    torch.testing.assert_close(contrast(z, labels, means, bagwise=True), contrast(z[near], labels[near], means))
    torch.testing.assert_close(
        contrast(z[:4], labels[:4], means, bagwise=True), contrast(z[:4], labels[:4], means)
    )  # a small bag is taken whole
    with pytest.raises(ValueError, match="a bag has one label"):
        contrast(z, labels.index_fill(0, torch.tensor([0]), 0), means, bagwise=True)


def test_scores_are_standardised_over_the_concepts_of_a_patch() -> None:
    z, a = draw(6, 8), draw(5, 8, seed=1)
    scores = concept_scores(z, a)
    torch.testing.assert_close(scores.mean(1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.std(1), torch.ones(6))
    raw = SCALE * z @ a.T
    bag = concept_scores(z, a, bagwise=True)
    torch.testing.assert_close(bag, (raw - raw.mean()) / raw.std())


def test_scores_that_are_all_alike_are_zero() -> None:
    assert torch.equal(concept_scores(torch.zeros(2, 4), draw(3, 4)), torch.zeros(2, 3))
    assert torch.equal(concept_scores(draw(2, 4), draw(1, 4, seed=1)), torch.zeros(2, 1))


def test_nothing_flows_back_from_the_concepts() -> None:
    built = head()
    z = draw(4, 12).requires_grad_()
    with torch.no_grad():
        built.linear.weight[:, :12] = 0  # only x_c is left
    built.read(z).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, torch.zeros_like(z))
    assert built.concepts.weight.grad is not None and built.concepts.weight.grad.abs().sum() > 0


def test_the_logit_is_read_from_the_bottleneck() -> None:
    built, x = head(), draw(5, 12)
    assert torch.equal(built.read(built.vector(x)), built(x))


def test_evaluation_is_deterministic_and_training_draws() -> None:
    built, x = head(), draw(5, 12)
    assert torch.equal(built(x), built(x))
    built.train()
    assert not torch.equal(built(x), built(x))


def test_an_answer_does_not_depend_on_the_batch_unless_bagwise() -> None:
    built, x = head(), draw(5, 12)
    alone = torch.cat([built(row[None]) for row in x])
    torch.testing.assert_close(built(x), alone, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(built(x, bagwise=True)[:2], built(x[:2], bagwise=True), atol=1e-4)


def test_parameters_at_the_authors_widths() -> None:
    given = {"class_0": torch.ones(120, 512), "class_1": torch.ones(100, 512)}
    built = ConceptHead(512, Concept(), given)
    counted = sum(p.numel() for name, p in built.named_parameters() if not name.startswith("linear."))
    assert counted == 901_120


def test_answer_adds_both_terms() -> None:
    built, x, targets = head(nce=0.3, kl=0.7), draw(6, 12), torch.tensor([0.0, 1, 0.4, 0.6, 1, 0])
    logits, terms = built.answer(x, targets)
    mean, log_variance = built.encode(x)
    torch.testing.assert_close(logits, built(x))
    torch.testing.assert_close(terms["kl"], 0.7 * kl_divergence(mean, log_variance))
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    torch.testing.assert_close(terms["nce"], 0.3 * contrast(mean, labels, built.means))


def test_groups_are_ordered_classes_first_and_means_have_length_one() -> None:
    built = head(given=dict(reversed(anchors().items())))
    assert built.groups == ("class_0", "class_1", "agnostic_0", "agnostic_1")
    torch.testing.assert_close(built.means.norm(dim=1), torch.ones(4))
    assert built.class_anchors.shape == (8, 12)
    assert built.scores(draw(2, 12)).shape == (2, 8)


def test_first_logits_are_zero_and_float32_under_autocast() -> None:
    built = ConceptHead(12, Concept(width=16), anchors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = built(draw(3, 12))
    assert logits.dtype == torch.float32 and torch.equal(logits, torch.zeros(3))


def test_anchors_of_another_width_need_a_declared_projection() -> None:
    with pytest.raises(UsageError, match=r"12 wide, the backbone's features 20"):
        ConceptHead(20, Concept(width=16), anchors())
    built = head(20, project=True, anchors="text.safetensors")
    assert built.project is not None and built.project.weight.shape == (12, 20)
    assert built(draw(3, 20)).shape == (3,)


def test_anchors_read_back(tmp_path: Path) -> None:
    file = tmp_path / "anchors.safetensors"
    save_file(anchors(), file)
    found = read_anchors(file)
    assert found.keys() == anchors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in anchors().items())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"class_1": None}, "missing: class_1"),
        ({"class_2": torch.ones(2, 12)}, "class_2: neither"),
        ({"agnostic_stroma": torch.ones(2, 13)}, "widths 12, 13"),
        ({"class_0": torch.ones(12)}, "is no matrix"),
        ({"class_0": torch.ones(0, 12)}, "is no matrix"),
        ({"class_0": torch.full((2, 12), math.nan)}, "not finite"),
        ({"class_0": torch.full((2, 12), 1e6)}, "not finite in half"),
    ],
)
def test_anchors_that_do_not_fit(tmp_path: Path, change: dict[str, Tensor | None], line: str) -> None:
    file = tmp_path / "anchors.safetensors"
    save_file({name: t for name, t in {**anchors(), **change}.items() if t is not None}, file)
    with pytest.raises(DataError) as caught:
        read_anchors(file)
    assert any(line in detail for detail in caught.value.details)


def test_a_missing_file_of_anchors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such"):
        read_anchors(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"clusters": 0}, "clusters"),
        ({"width": 0}, "width"),
        ({"nce": -1}, "nce"),
        ({"kl": math.inf}, "kl"),
        ({"anchors": ""}, "anchors"),
        ({"project": True}, "project"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=f"head.{word}"):
        Concept(**settings)


def test_kmeans_finds_separate_groups_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    x = np.repeat(centres, 25, axis=0) + 0.1 * rng.normal(size=(100, 2))
    found = kmeans(x, 4, np.random.default_rng(1))
    assert np.array_equal(found, kmeans(x, 4, np.random.default_rng(1)))
    by_group = x.reshape(4, 25, 2).mean(axis=1)
    order = np.linalg.norm(found[:, None] - by_group, axis=2).argmin(axis=1)
    assert sorted(order) == [0, 1, 2, 3]
    assert np.allclose(found, by_group[order])


def test_prototypes_of_equal_patches_are_finite() -> None:
    x = np.ones((9, 4), dtype=np.float32)
    found = class_prototypes(x, x.mean(axis=0, dtype=np.float64), 3, np.random.default_rng(0))
    assert torch.equal(found, torch.zeros(3, 4))
    apart = class_prototypes(x, np.zeros(4), 3, np.random.default_rng(0))
    torch.testing.assert_close(apart, torch.full((3, 4), 0.5))
