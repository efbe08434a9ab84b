"""Macenko's normalisation: from known stains, at the borders of what it can do, and against torchstain."""

import numpy as np
import pytest
import torch

from augment.macenko import STAINS, STRENGTHS, WHITE, _least_direction, _percentile, macenko

OTHER = np.array([[0.65, 0.70, 0.29], [0.10, 0.95, 0.15]])
STRONG = np.array([[0.50, 0.74, 0.45], [0.25, 0.85, 0.46]])


def stained(stains, strength=1.0, seed=0, side=128):
    """A drawn patch of known amounts of two stains, with glass at one edge: (3, side, side) float32 in 0…1."""
    rng = np.random.default_rng(seed)
    amounts = np.stack([rng.gamma(2.0, 0.3, (side, side)), rng.gamma(3.0, 0.2, (side, side))]) * strength
    amounts[0, :, : side // 3] = 0  # eosin alone
    amounts[1, :, side // 3 : side // 2] = 0  # haematoxylin alone
    amounts[:, :, -8:] = 0
    unit = np.asarray(stains) / np.linalg.norm(stains, axis=1, keepdims=True)
    intensity = WHITE * np.exp(-np.einsum("shw,sc->chw", amounts, unit)) - 1
    return torch.from_numpy(np.clip(intensity, 0, 255) / 255).float()


def test_one_tissue_in_two_stainings_becomes_one_picture():
    x = torch.stack([stained(OTHER), stained(STRONG, 0.8)])
    out = macenko(x)
    assert float((x[0] - x[1]).abs().mean()) > 10 * float((out[0] - out[1]).abs().mean())
    assert float((out[0] - out[1]).abs().max()) < 4 / 255


def test_the_strongest_pixels_are_those_of_the_reference():
    out = macenko(stained(OTHER)[None])[0]
    density = -((255 * out + 1) / WHITE).log().flatten(1).numpy()
    amounts = np.linalg.lstsq(np.array(STAINS).T, density, rcond=None)[0]
    np.testing.assert_allclose(np.percentile(amounts, 99, axis=1), STRENGTHS, rtol=0.02)


def test_its_own_output_stays_as_it_is():
    once = macenko(stained(OTHER)[None])
    assert float((macenko(once) - once).abs().max()) < 3 / 255


def test_each_patch_alone_and_padding_stays_black():
    x = torch.stack([stained(OTHER, seed=1), stained(STRONG, seed=2)])
    x[1, :, :20] = 0
    together = macenko(x)
    for at in range(2):
        torch.testing.assert_close(macenko(x[at : at + 1])[0], together[at], atol=1e-6, rtol=0)
    assert not together[1, :, :20].any() and bool((together >= 0).all()) and bool((together <= 1).all())
    assert float((together[1, :, 20:] - macenko(x[1:, :, 20:])[0]).abs().max()) < 1e-5


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_patch_without_two_stains_comes_back(value):
    x = torch.full((1, 3, 32, 32), value)
    assert torch.equal(macenko(x), x)


def test_gradients_stay_finite():
    x = torch.stack([stained(OTHER, side=32), torch.ones(3, 32, 32), torch.zeros(3, 32, 32)]).requires_grad_(True)
    macenko(x).square().sum().backward()
    assert bool(torch.isfinite(x.grad).all()) and float(x.grad[0].abs().sum()) > 0


def test_the_direction_of_least_spread_is_that_of_an_eigenvalue_routine():
    points = torch.randn(50, 3, 7, generator=torch.Generator().manual_seed(0)).double()
    covariance = points @ points.mT
    wanted = torch.linalg.eigh(covariance).eigenvectors[:, :, 0]
    assert float((_least_direction(covariance) * wanted).sum(dim=1).abs().min()) > 1 - 1e-9


def test_percentiles_of_chosen_values_are_those_of_numpy():
    rng = np.random.default_rng(0)
    values, chosen = rng.normal(size=(4, 500)), rng.random((4, 500)) < 0.6
    chosen[1], chosen[2] = True, np.arange(500) == 7
    for percent in (0, 1, 37.5, 50, 62.5, 99, 100):
        found = _percentile(torch.from_numpy(values), torch.from_numpy(chosen), percent)
        wanted = [np.percentile(row[mask], percent) for row, mask in zip(values, chosen, strict=True)]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_macenko_agrees_with_torchstain(seed):
    """But for black padding, which it takes for tissue; it truncates, and leaves out the −1."""
    torchstain = pytest.importorskip("torchstain")
    patch = (255 * stained(OTHER, seed=seed)).round().byte()
    theirs = torchstain.normalizers.MacenkoNormalizer(backend="numpy").normalize(
        I=patch.permute(1, 2, 0).numpy(), stains=False
    )[0]
    ours = (255 * macenko(patch[None].float() / 255)[0]).round().permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs.astype(float)).max() <= 1
