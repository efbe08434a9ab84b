"""Local attacks: mechanics against closed forms and torchattacks, budgets of pixels and of patches."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midog.errors import ArgumentError, DataError, UsageError
from midog.robustness.local import KINDS, Local, attack, attack_chosen, choose, noise, raise_objective, sensitivity
from midog.robustness.masks import box_mask, centre_mask, rim_mask, share, token_mask
from midog.robustness.perturbation import cosine, distance, features_of

EPSILON = 8 / 255
ROUNDING = 1e-7
"""x + δ is rounded to float32 once."""


def moved(encode: Any, pixels: Tensor, attacked: Tensor, kind: str = "cosine") -> Tensor:
    return distance(kind, features_of(encode, attacked), features_of(encode, pixels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_every_attack_keeps_to_mask_and_budget_and_moves_features(
    kind: str, name: str, encoder: Any, pixels: Tensor
) -> None:
    model, mask = encoder(name), token_mask(64, 16, 1, 2)
    before = copy.deepcopy(model.state_dict())
    attacked = attack(model, pixels, Local(kind, EPSILON, weight=1000), mask)
    change = attacked - pixels
    assert torch.equal(torch.where(mask, 0, attacked), torch.where(mask, 0, pixels))
    assert 0 < change.abs().max() <= EPSILON + ROUNDING
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert bool((moved(model, pixels, attacked) > 1e-4).all())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_pgd_moves_every_patch_further_than_noise(metric: str, name: str, encoder: Any, pixels: Tensor) -> None:
    model = encoder(name)
    for mask in (None, rim_mask(64, 0.3), token_mask(64, 16, 0, 0)):
        attacked = moved(model, pixels, attack(model, pixels, Local(distance=metric), mask), metric)
        control = torch.stack([moved(model, pixels, noise(pixels, EPSILON, mask, seed), metric) for seed in range(3)])
        assert bool((attacked > control.max(dim=0).values).all())


def test_ascending_attacks_beat_a_single_step(vit: Any, pixels: Tensor) -> None:
    single = moved(vit, pixels, attack(vit, pixels, Local("fgsm"))).mean()
    assert all(
        moved(vit, pixels, attack(vit, pixels, Local(kind))).mean() > single for kind in ("bim", "pgd", "mi-fgsm")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_budget_gives_the_clean_pixels_bit_for_bit(kind: str, vit: Any, pixels: Tensor) -> None:
    assert torch.equal(attack(vit, pixels, Local(kind, epsilon=0)), pixels)
    assert torch.equal(noise(pixels, 0), pixels)
    for mask in (rim_mask(64, 0), centre_mask(64, 0)):
        assert torch.equal(attack(vit, pixels, Local(kind), mask), pixels)
        assert torch.equal(noise(pixels, EPSILON, mask), pixels)
    assert torch.equal(attack_chosen(vit, pixels, choose(8, 0.0), Local(kind)), pixels)


def test_one_step_of_pgd_is_fgsm(vit: Any, pixels: Tensor) -> None:
    """Away from the features of other patches, so that the gradient is there without a random start."""
    away = features_of(vit, pixels.roll(1, 0))
    single = Local("fgsm", EPSILON, start=0)
    pgd = Local("pgd", EPSILON, steps=1, alpha=EPSILON, start=0)
    expected = attack(vit, pixels, single, reference=away)
    torch.testing.assert_close(attack(vit, pixels, pgd, reference=away), expected, rtol=0, atol=ROUNDING)
    assert float((expected - pixels).abs().mean()) > 0.9 * EPSILON


def test_without_momentum_mi_fgsm_is_bim(conv: Any, pixels: Tensor) -> None:
    bim = attack(conv, pixels, Local("bim"))
    assert torch.equal(attack(conv, pixels, Local("mi-fgsm", momentum=0)), bim)
    assert not torch.equal(attack(conv, pixels, Local("mi-fgsm")), bim)


@pytest.mark.parametrize("kind", ["fgsm", "bim", "pgd", "mi-fgsm"])
def test_a_linear_scalar_model_is_moved_by_epsilon_times_the_weights_sum(kind: str, pixels: Tensor) -> None:
    x = pixels.double()
    w = torch.randn(x[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = lambda p: (p.flatten(1) @ w)[:, None]  # noqa: E731
    attacked = attack(model, x, Local(kind, EPSILON, distance="l2", steps=12))
    reached = (model(attacked) - model(x)).abs()[:, 0]
    torch.testing.assert_close(reached, torch.full_like(reached, EPSILON * float(w.abs().sum())), rtol=1e-9, atol=0)


def test_cw_weighs_distance_against_size(vit: Any, pixels: Tensor) -> None:
    found = [attack(vit, pixels, Local("cw", epsilon=1, weight=weight, steps=20)) for weight in (1e-6, 1, 10)]
    sizes = [float((one - pixels).flatten(1).norm(dim=1).mean()) for one in found]
    gains = [float(moved(vit, pixels, one).mean()) for one in found]
    assert torch.equal(found[0], pixels)  # doing nothing is the cheapest
    assert sizes[0] < sizes[1] < sizes[2] and gains[1] < gains[2]
    costs = (found[2] - pixels).square().sum(dim=(1, 2, 3)) - 10 * moved(vit, pixels, found[2])
    assert bool((costs < 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bytes_and_companions_do_not_matter(kind: str, vit: Any, pixels: Tensor) -> None:
    settings = Local(kind, steps=3)
    whole = attack(vit, pixels, settings)
    assert torch.equal(attack(vit, pixels, settings), whole)
    assert not torch.equal(attack(vit, pixels, replace(settings, seed=1)), whole)
    # Steps by sign turn rounding into whole steps, here and there: compare what they reach, and the start.
    parts = attack(vit, pixels, settings, batch=3)
    torch.testing.assert_close(moved(vit, pixels, parts), moved(vit, pixels, whole), rtol=0.02, atol=1e-4)
    assert float(((parts - whole).abs() > 1e-5).double().mean()) < 0.01


def test_a_mask_for_each_patch(vit: Any, pixels: Tensor) -> None:
    masks = torch.cat([token_mask(64, 16, row, 0) for row in (0, 1, 2, 3)] * 2)
    attacked = attack(vit, pixels, Local(steps=2), masks, batch=3)
    assert torch.equal(torch.where(masks, 0, attacked), torch.where(masks, 0, pixels))
    assert bool(((attacked - pixels).abs().amax(dim=(1, 2, 3)) > 0).all())


def test_masks_keep_to_their_share() -> None:
    assert share(token_mask(224, 16, 3, 13)) == pytest.approx(1 / 196)
    assert bool(token_mask(64, 16, 1, 2)[0, 0, 16:32, 32:48].all())
    for q in (0.0, 0.001, 0.1, 0.25, 0.5, 0.99, 1.0):
        for mask in (rim_mask(128, q), centre_mask(128, q)):
            assert share(mask) <= q and mask.shape == (1, 1, 128, 128)
            assert torch.equal(mask, mask.flip(3)) or mask.sum() % 2
    assert share(rim_mask(128, 1)) == share(centre_mask(128, 1)) == 1
    assert share(rim_mask(128, 0.1)) > 0.05 and share(centre_mask(128, 0.1)) > 0.09
    assert not rim_mask(128, 0.5)[0, 0, 30:98, 30:98].any()
    assert share(box_mask(100, 10, 20, 5, 8)) == pytest.approx(0.004)
    with pytest.raises(ArgumentError, match="no token at row 4"):
        token_mask(64, 16, 4, 0)
    with pytest.raises(ArgumentError, match="do not tile"):
        token_mask(60, 16, 0, 0)
    with pytest.raises(ArgumentError, match="leaves 100"):
        box_mask(100, 90, 0, 20, 5)
    with pytest.raises(ArgumentError, match=r"q is 1\.5"):
        rim_mask(64, 1.5)


def test_the_share_of_patches_is_a_budget_of_every_case() -> None:
    case = np.repeat(["a", "b", "c"], [10, 20, 3])
    for rho, counts in ((0.0, [0, 0, 0]), (0.1, [1, 2, 0]), (0.29, [2, 5, 0]), (1.0, [10, 20, 3])):
        chosen = choose(33, rho, case=case)
        assert [int(chosen[case == name].sum()) for name in "abc"] == counts
    assert choose(100, 0.29).sum() == 29
    assert np.array_equal(choose(50, 0.2, seed=3), choose(50, 0.2, seed=3))
    assert not np.array_equal(choose(50, 0.2, seed=3), choose(50, 0.2, seed=4))
    assert np.flatnonzero(choose(6, 0.5, score=[1, 3, 2, 3, 0, 3])).tolist() == [1, 3, 5]
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        choose(2, 0.5, score=[np.nan, 1])
    with pytest.raises(ArgumentError, match=r"rho is -0\.1"):
        choose(2, -0.1)


def test_the_most_sensitive_patches_are_attacked_and_no_other(vit: Any, pixels: Tensor) -> None:
    dull = torch.cat([pixels[:6], torch.full_like(pixels[:2], 0.5)])
    seen = lambda p: vit(p) * (p.amax(dim=(1, 2, 3)) > 0.6)[:, None]  # noqa: E731 (blind to the grey ones)
    score = sensitivity(seen, dull)
    assert (score[:6] > 0).all() and (score[6:] == 0).all()
    chosen = choose(8, 0.5, score)
    attacked = attack_chosen(vit, dull, chosen, Local(steps=2))
    changed = (attacked != dull).flatten(1).any(dim=1).numpy()
    assert np.array_equal(changed, chosen) and not chosen[6:].any()
    with pytest.raises(ArgumentError, match="2 choices for 8"):
        attack_chosen(vit, dull, [True, False])


def test_sensitivity_of_a_linear_model_is_its_closed_form(pixels: Tensor) -> None:
    x = pixels.double()
    w = torch.randn(x[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = Local(distance="l2")
    start = raise_objective(lambda p: p.sum(dim=(1, 2, 3)) * 0, x, settings, torch.Generator().manual_seed(0)) - x
    expected = EPSILON * 2 * (start.flatten(1) @ w).abs() * w.abs().sum()
    found = sensitivity(lambda p: (p.flatten(1) @ w)[:, None], x, settings)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)


def test_features_that_never_change_give_a_defined_answer(pixels: Tensor) -> None:
    bias = nn.Parameter(torch.ones(4))
    constant = lambda p: bias.expand(len(p), 4)  # noqa: E731
    for kind in KINDS:
        attacked = attack(constant, pixels, Local(kind))
        assert bool(torch.isfinite(attacked).all())
        assert float((attacked - pixels).abs().max()) <= EPSILON + ROUNDING
    zero = lambda p: p.flatten(1)[:, :4] * 0  # noqa: E731
    assert cosine(zero(pixels), zero(pixels)).tolist() == [1.0] * 8
    assert bool(torch.isfinite(attack(zero, pixels, Local())).all())


def test_bad_input_is_named(vit: Any, pixels: Tensor) -> None:
    with pytest.raises(UsageError, match="has no gradient"):
        attack(vit, pixels, Local(start=0))
    with pytest.raises(UsageError, match="did you mean pgd"):
        Local("pdg")
    with pytest.raises(UsageError, match="unknown distance"):
        Local(distance="euclid")
    with pytest.raises(ArgumentError, match=r"local\.epsilon is nan"):
        Local(epsilon=float("nan"))
    with pytest.raises(DataError, match="the mask is"):
        attack(vit, pixels, Local(), token_mask(32, 16, 0, 0))
    with pytest.raises(DataError, match="the mask is"):
        attack(vit, pixels, Local(), token_mask(64, 16, 0, 0).float())
    with pytest.raises(DataError, match="not finite"):
        attack(lambda p: vit(p) * torch.nan, pixels, Local())
    with torch.no_grad():  # a caller's habit, which must not blind the attack
        assert float(moved(vit, pixels, attack(vit, pixels, Local())).min()) > 0.1


class AwayFrom(nn.Module):
    """Logits [0, cosine to a reference]: with label 1 another library's loss falls and rises with ours."""

    def __init__(self, encode: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.encode, self.reference = encode, reference

    def forward(self, pixels: Tensor) -> Tensor:
        score = cosine(self.encode(pixels), self.reference)
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
@pytest.mark.parametrize("kind", ["fgsm", "bim", "pgd", "mi-fgsm"])
def test_steps_equal_those_of_torchattacks(kind: str, name: str, encoder: Any, pixels: Tensor) -> None:
    theirs = pytest.importorskip("torchattacks")
    model = encoder(name).double()
    x = pixels.double()
    reference = features_of(model, x.roll(1, 0))
    wrapped = AwayFrom(model, reference).eval()
    settings = {"eps": EPSILON, "alpha": 2 / 255, "steps": 5}
    made = {
        "fgsm": lambda: theirs.FGSM(wrapped, eps=EPSILON),
        "bim": lambda: theirs.BIM(wrapped, **settings),
        "pgd": lambda: theirs.PGD(wrapped, random_start=False, **settings),
        "mi-fgsm": lambda: theirs.MIFGSM(wrapped, decay=1.0, **settings),
    }
    expected = made[kind]()(x, torch.ones(len(x), dtype=torch.long))
    found = attack(model, x, Local(kind, EPSILON, steps=5, alpha=2 / 255, start=0), reference=reference)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert float((found - x).abs().mean()) > 2 / 255
