"""The low-pass filter as a defence; attacked batches for training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from augment.low_pass import low_pass
from midog.errors import DataError
from midog.robustness.defence import adversarial_batch, behind_low_pass
from midog.robustness.local import Local, attack
from midog.robustness.perturbation import add, cosine, features_of, sign_noise
from midog.robustness.universal import Universal, fit_universal

LABEL = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])


def losses(logit: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.nn.functional.binary_cross_entropy_with_logits(logit(pixels), LABEL, reduction="none")


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_it_takes_noise_away_and_can_itself_be_attacked(name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    clean = low_pass(pixels)
    disturbed = low_pass(add(pixels, sign_noise(pixels.shape, 8 / 255, pixels, 0)))
    assert float((disturbed - clean).square().mean()) < 0.3 * (8 / 255) ** 2
    defended = behind_low_pass(model)
    settings = Universal(8 / 255, epochs=3, batch=4)
    features = features_of(defended, pixels)
    similar = {
        who: float(
            cosine(features_of(defended, add(pixels, fit_universal(surrogate, pixels, settings))), features).mean()
        )
        for who, surrogate in (("unaware", model), ("aware", defended))
    }
    assert similar["aware"] < similar["unaware"]
    assert float(cosine(features_of(defended, attack(defended, pixels, Local())), features).max()) < 0.9


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_attacked_batches_raise_the_loss_of_every_image(kind: str, name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    before = copy.deepcopy(model.state_dict())
    settings = Local(kind, epsilon=4 / 255, alpha=1 / 255)
    attacked = adversarial_batch(model.logit, pixels, LABEL, settings, torch.Generator().manual_seed(0))
    assert bool((losses(model.logit, attacked) > losses(model.logit, pixels)).all())
    assert float((attacked - pixels).abs().max()) <= 4 / 255 + 1e-7
    assert not attacked.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_linear_model_loses_epsilon_times_its_weights(pixels: Tensor) -> None:
    x = pixels.double()
    w = torch.randn(x[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    logit = lambda p: p.flatten(1) @ w  # noqa: E731
    attacked = adversarial_batch(logit, x, LABEL, Local("fgsm", 8 / 255), torch.Generator().manual_seed(0))
    expected = -(2 * LABEL - 1).double() * 8 / 255 * w.abs().sum()
    torch.testing.assert_close(logit(attacked) - logit(x), expected)


def test_training_goes_on_as_if_nothing_had_been_attacked(pixels: Tensor) -> None:
    """Batch norm and dropout: statistics stay, modes come back, gradients are those of the loss alone."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Dropout(0.5),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 1),
    ).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    settings = Local(epsilon=4 / 255, alpha=1 / 255, steps=2)
    first = adversarial_batch(model, pixels, LABEL, settings, torch.Generator().manual_seed(0))
    again = adversarial_batch(model, pixels, LABEL, settings, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [part.training for part in model] == [True, False, True, True, True, True] and model.training
    generator = torch.Generator().manual_seed(0)
    batches = [adversarial_batch(model, pixels, LABEL, settings, generator) for _ in range(2)]
    assert torch.equal(batches[0], first) and not torch.equal(batches[1], first)


def test_no_budget_and_bad_input(vit: Any, pixels: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(adversarial_batch(vit.logit, pixels, LABEL, Local(epsilon=0), generator), pixels)
    with pytest.raises(DataError, match=r"labels are \(7,\) for 8"):
        adversarial_batch(vit.logit, pixels, LABEL[:7], Local(), generator)
    with pytest.raises(DataError, match="value is not finite"):
        adversarial_batch(lambda p: vit.logit(p) * torch.nan, pixels, LABEL, Local(), generator)
