"""One perturbation for all: budget, closed-form gradient, and that it beats noise of equal budget."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midog.errors import ArgumentError, DataError, LeakError, UsageError
from midog.robustness.perturbation import (
    add,
    cosine,
    features_of,
    sign_noise,
    to_grey_levels,
    uniform,
    value_and_gradient,
)
from midog.robustness.universal import (
    Universal,
    balanced_sample,
    check_disjoint,
    fit_universal,
    mean_cosine,
    universal_steps,
)

QUICK = Universal(epsilon=8 / 255, epochs=3, batch=4, seed=1)


def similarity(encode: Any, pixels: Tensor, delta: Tensor) -> float:
    return float(cosine(features_of(encode, pixels), features_of(encode, add(pixels, delta))).mean())


def linear(width: int, pixels: Tensor, seed: int = 0) -> Tensor:
    """(width, 3·h·w) float64 weights of f(x) = Wx."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((width, pixels[0].numel()), generator=generator, dtype=torch.float64)


def test_published_numbers_are_the_defaults() -> None:
    settings = Universal()
    assert (settings.epsilon, settings.epochs, settings.batch, settings.start) == (20 / 255, 10, 5, 1 / 255)
    assert settings.step_length(900) == pytest.approx(4.357e-4, rel=1e-3)


def test_gradient_of_a_linear_encoder_is_the_closed_form(pixels: Tensor) -> None:
    x, weights = pixels[:1].double(), linear(5, pixels)
    delta = uniform(x.shape, 0.05, x, torch.Generator().manual_seed(1))
    u, v = weights @ x.flatten(), weights @ (x + delta).flatten()
    c = u @ v / (u.norm() * v.norm())
    expected = weights.T @ (u / u.norm() - c * v / v.norm()) / v.norm()
    value, gradient = mean_cosine([lambda p: p.flatten(1) @ weights.T], x, [u[None]], delta)
    assert value == pytest.approx(float(c), abs=1e-12)
    torch.testing.assert_close(gradient.flatten(), expected, rtol=1e-9, atol=1e-14)


def test_several_encoders_give_the_mean_of_their_gradients(pixels: Tensor) -> None:
    x = pixels[:3].double()
    delta = uniform((1, *x.shape[1:]), 0.05, x, torch.Generator().manual_seed(1))
    weights = [linear(5, pixels, 1), linear(9, pixels, 2)]
    encoders = [lambda p, w=w: p.flatten(1) @ w.T for w in weights]
    clean = [encode(x) for encode in encoders]
    value, gradient = mean_cosine(encoders, x, clean, delta)
    alone = [mean_cosine([e], x, [f], delta) for e, f in zip(encoders, clean, strict=True)]
    assert value == pytest.approx(np.mean([one[0] for one in alone]))
    torch.testing.assert_close(gradient, (alone[0][1] + alone[1][1]) / 2)


def test_squared_distance_has_no_gradient_at_zero_which_is_why_the_start_is_random(pixels: Tensor) -> None:
    x, weights = pixels.double(), linear(5, pixels)
    clean = x.flatten(1) @ weights.T
    gradient = value_and_gradient(lambda p: (p.flatten(1) @ weights.T - clean).square().sum(1), x)[1]
    assert not gradient.any()
    with pytest.raises(ArgumentError, match="start is 0"):
        Universal(start=0)


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_budget_holds_after_every_step_and_the_model_is_untouched(name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    before = copy.deepcopy(model.state_dict())
    epsilon = torch.tensor(QUICK.epsilon)
    steps = list(universal_steps(model, pixels, QUICK))
    assert [step.number for step in steps] == list(range(3 * 2))
    assert all(step.delta.shape == (1, *pixels.shape[1:]) for step in steps)
    assert all(step.delta.abs().max() <= epsilon for step in steps)
    assert steps[-1].cosine < steps[0].cosine
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_it_turns_features_further_than_noise_of_equal_budget(name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    delta = fit_universal(model, pixels, QUICK)
    control = [similarity(model, pixels, sign_noise(delta.shape, QUICK.epsilon, pixels, seed)) for seed in range(3)]
    assert similarity(model, pixels, delta) < min(control) - 0.1
    # Images that it never saw: universal is the claim.
    other = pixels.flip(3)
    assert similarity(model, other, delta) < similarity(model, other, sign_noise(delta.shape, QUICK.epsilon, pixels, 0))


def test_one_perturbation_for_several_backbones(vit: Any, conv: Any, pixels: Tensor) -> None:
    delta = fit_universal([vit, conv], pixels, QUICK)
    control = sign_noise(delta.shape, QUICK.epsilon, pixels, 0)
    assert all(similarity(model, pixels, delta) < similarity(model, pixels, control) for model in (vit, conv))
    assert not torch.equal(delta, fit_universal(vit, pixels, QUICK))


def test_same_seed_same_bytes(vit: Any, pixels: Tensor) -> None:
    first, again = fit_universal(vit, pixels, QUICK), fit_universal(vit, pixels, QUICK)
    assert torch.equal(first, again)
    assert not torch.equal(first, fit_universal(vit, pixels, Universal(epsilon=8 / 255, epochs=3, batch=4, seed=2)))
    assert torch.equal(first, fit_universal(vit, pixels, QUICK, batch=3))


def test_training_mode_comes_back_and_is_not_used(encoder: Any, pixels: Tensor) -> None:
    model = encoder("test_convnextv2")
    expected = fit_universal(model, pixels, QUICK)
    model.train()
    model.head.eval()
    assert torch.equal(fit_universal(model, pixels, QUICK), expected)
    assert model.training and model.backbone.training and not model.head.training


def test_no_budget_gives_the_clean_pixels_bit_for_bit(vit: Any, pixels: Tensor) -> None:
    delta = fit_universal(vit, pixels, Universal(epsilon=0))
    assert not delta.any()
    assert torch.equal(add(pixels, delta), pixels)
    assert torch.equal(vit(add(pixels, delta)), vit(pixels))


def test_an_encoder_that_sees_nothing_leaves_the_start(pixels: Tensor) -> None:
    """Constant features: gradient 0, a defined answer."""
    bias = nn.Parameter(torch.ones(4))
    steps = list(universal_steps(lambda p: bias.expand(len(p), 4), pixels, QUICK))
    assert all(step.cosine == pytest.approx(1) for step in steps)
    assert torch.equal(steps[0].delta, steps[-1].delta)


def test_noise_takes_both_signs_of_the_whole_budget(pixels: Tensor) -> None:
    control = sign_noise((1, 3, 64, 64), 4 / 255, pixels, 0)
    assert torch.equal(control.abs(), torch.full_like(control, 4 / 255))
    assert abs(float(control.sign().mean())) < 0.05


def test_what_uint8_leaves_of_an_attack(pixels: Tensor) -> None:
    for levels, left in ((0.9, 0.0), (1.0, 1.0), (2.5, 2.0)):
        attacked = add(pixels, sign_noise(pixels.shape, levels / 255, pixels, 0))
        stored = to_grey_levels(attacked, pixels)
        torch.testing.assert_close((stored - pixels).abs() * 255, torch.full_like(pixels, left), rtol=0, atol=1e-3)
    assert torch.equal(to_grey_levels(add(pixels, torch.full((1, 3, 64, 64), 0.99 / 255)), pixels), pixels)
    with pytest.raises(DataError, match="no 8-bit image"):
        to_grey_levels(pixels * 0.999, pixels * 0.999)


def test_bad_input_is_named(vit: Any, pixels: Tensor) -> None:
    with pytest.raises(DataError, match="0 to 1, before the model's normalisation"):
        fit_universal(vit, pixels * 255)
    with pytest.raises(DataError, match="reach from nan"):
        fit_universal(vit, pixels * torch.nan)
    with pytest.raises(DataError, match="divide uint8 by 255"):
        fit_universal(vit, (pixels * 255).to(torch.uint8))
    with pytest.raises(DataError, match="at least one image"):
        fit_universal(vit, pixels[:0])
    with pytest.raises(DataError, match="belongs to one input size"):
        add(pixels, torch.zeros(1, 3, 32, 32))
    with pytest.raises(ArgumentError, match=r"universal\.epsilon is 20"):
        Universal(epsilon=20)
    with pytest.raises(ArgumentError, match="no encoder"):
        fit_universal([], pixels)
    with pytest.raises(UsageError, match="no gradient"):
        fit_universal(lambda p: vit(p).detach(), pixels, QUICK)
    with pytest.raises(DataError, match="features of 8 of 8 images are not finite"):
        fit_universal(lambda p: vit(p) / 0, pixels, QUICK)
    with pytest.raises(DataError, match="gradient is not finite"):
        # Finite values, and the root's slope at 0 is not.
        fit_universal(lambda p: vit(p) + (p.flatten(1)[:, :1] * 0).sqrt(), pixels, QUICK)


def test_images_to_fit_on_are_spread_over_labels_and_domains() -> None:
    label = np.r_[np.zeros(90, int), np.ones(10, int)]
    domain = np.tile(["a", "b"], 50)
    chosen = balanced_sample(label, domain, 20)
    assert len(np.unique(chosen)) == 20 and (np.diff(chosen) > 0).all()
    cells = {(int(y), str(d)): 0 for y in (0, 1) for d in "ab"}
    for row in chosen:
        cells[int(label[row]), str(domain[row])] += 1
    assert set(cells.values()) == {5}
    assert (balanced_sample(label, domain, 40)[:, None] == np.flatnonzero(label)).any(0).all()
    assert np.array_equal(balanced_sample(label, domain, 20), chosen)
    with pytest.raises(DataError, match="101 patches asked of 100"):
        balanced_sample(label, domain, 101)


def test_cases_that_were_fitted_on_are_refused() -> None:
    check_disjoint(["a", "b", ""], ["c", ""])
    with pytest.raises(LeakError, match="1 cases"):
        check_disjoint(["a", "b"], ["b", "c"])
