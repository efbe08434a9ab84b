"""The low-pass filter against its closed forms; attacked batches for training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from midog.errors import ArgumentError, DataError
from midog.robustness.defence import LowPass, adversarial_batch, behind_low_pass, low_pass, pass_mask
from midog.robustness.local import Local, attack
from midog.robustness.perturbation import add, cosine, features_of, sign_noise
from midog.robustness.universal import Universal, fit_universal

LABEL = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])


def wave(u: int, v: int, size: int = 224) -> Tensor:
    """(1, 3, size, size): a half plus a quarter of a cosine of u and v cycles."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) / size] * 2, indexing="ij")
    return (0.5 + 0.25 * torch.cos(2 * torch.pi * (u * y + v * x))).expand(1, 3, size, size)


def losses(logit: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.nn.functional.binary_cross_entropy_with_logits(logit(pixels), LABEL, reduction="none")


@pytest.mark.parametrize(("u", "v"), [(0, 0), (50, 0), (0, 50), (30, 40), (-30, 40), (3, -2)])
def test_waves_up_to_the_radius_pass(u: int, v: int) -> None:
    torch.testing.assert_close(low_pass(wave(u, v)), wave(u, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("u", "v"), [(51, 0), (0, 51), (31, 40), (-36, 36), (112, 112)])
def test_waves_beyond_it_leave_the_mean(u: int, v: int) -> None:
    torch.testing.assert_close(low_pass(wave(u, v)), torch.full((1, 3, 224, 224), 0.5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [112, 128, 160, 224, 448])
def test_the_radius_scales_with_the_size(size: int) -> None:
    radius = 50 * size / 224
    mask = pass_mask(size, size)
    frequencies = np.minimum(np.arange(size), size - np.arange(size))
    expected = np.add.outer(frequencies**2, frequencies**2) * 224**2 <= 50**2 * size**2
    assert np.array_equal(mask.numpy(), expected)
    assert mask[0, int(radius)] and not mask[0, int(radius) + 1]


def test_filter_is_linear_idempotent_and_keeps_means(pixels: Tensor) -> None:
    x, y = pixels.double(), pixels.double().roll(1, 0)
    once = low_pass(x, clip=False)
    torch.testing.assert_close(low_pass(once, clip=False), once)
    torch.testing.assert_close(low_pass(x + 2 * y, clip=False), once + 2 * low_pass(y, clip=False))
    torch.testing.assert_close(once.mean(dim=(2, 3)), x.mean(dim=(2, 3)))
    torch.testing.assert_close(low_pass(x.rot90(1, (2, 3)), clip=False), once.rot90(1, (2, 3)))
    torch.testing.assert_close(low_pass(x, LowPass(radius=200)), x)
    torch.testing.assert_close(low_pass(x[:1], clip=False), once[:1])


@pytest.mark.parametrize("shape", [(63, 63), (64, 63), (63, 64), (40, 96)])
def test_odd_and_oblong_images_keep_their_shape(shape: tuple[int, int]) -> None:
    x = torch.rand((2, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = torch.fft.ifft2(torch.fft.fft2(x) * pass_mask(*shape))
    assert full.imag.abs().max() < 1e-12
    torch.testing.assert_close(low_pass(x, clip=False), full.real)
    assert low_pass(x).shape == x.shape and low_pass(x).min() >= 0 and low_pass(x).max() <= 1
    assert low_pass(x.half()).dtype == torch.float16


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
    with pytest.raises(ArgumentError, match="radius is 0"):
        LowPass(radius=0)
