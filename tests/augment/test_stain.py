"""Stain jitter in optical-density space."""

import numpy as np
import pytest

from augment.stain import (
    EOSIN,
    HAEMATOXYLIN,
    STAINS,
    UNMIX,
    Stain,
    draw_jitter,
    jitter_stain,
    optical_density,
)
from midog.errors import UsageError

WHOLE = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 2), axis=-1)
COLOURS = np.concatenate([WHOLE, WHOLE[..., :1][::-1]], axis=-1).astype(np.uint8)


def stained(haematoxylin, eosin):
    """A patch with known amounts of both stains: (h, w, 3) uint8 by Beer and Lambert."""
    density = np.asarray(haematoxylin)[..., None] * STAINS[0] + np.asarray(eosin)[..., None] * STAINS[1]
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


def test_the_stain_vectors():
    np.testing.assert_allclose(np.linalg.norm(STAINS, axis=1), 1)
    np.testing.assert_allclose(STAINS[0], np.array(HAEMATOXYLIN) / np.linalg.norm(HAEMATOXYLIN))
    np.testing.assert_allclose(STAINS[1], np.array(EOSIN) / np.linalg.norm(EOSIN))
    np.testing.assert_allclose(STAINS[2] @ STAINS[:2].T, 0, atol=1e-12)
    np.testing.assert_allclose(STAINS @ UNMIX, np.eye(3), atol=1e-12)


def test_optical_density_of_white_and_black():
    density = optical_density(np.array([[[255, 255, 255], [0, 0, 0]]], dtype=np.uint8))
    np.testing.assert_array_equal(density[0, 0], 0)
    np.testing.assert_allclose(density[0, 1], np.log(256), rtol=1e-6)


def test_no_change_gives_every_colour_back():
    np.testing.assert_array_equal(jitter_stain(COLOURS, (1, 1, 1)), COLOURS)


def test_a_factor_scales_its_own_stain_only():
    amount = np.linspace(0.1, 0.8, 64).reshape(8, 8)
    before = stained(amount, amount.T)
    np.testing.assert_allclose(
        jitter_stain(before, (1.2, 1, 1)).astype(int), stained(1.2 * amount, amount.T).astype(int), atol=3
    )
    np.testing.assert_allclose(
        jitter_stain(before, (1, 0.8, 1)).astype(int), stained(amount, 0.8 * amount.T).astype(int), atol=3
    )
    shifted = jitter_stain(before, (1, 1, 1), (0.05, 0, 0))
    np.testing.assert_allclose(shifted.astype(int), stained(amount + 0.05, amount.T).astype(int), atol=3)


def test_white_stays_white_under_factors_alone_and_black_stays_black():
    ends = np.array([[[255, 255, 255], [0, 0, 0]]], dtype=np.uint8)
    out = jitter_stain(ends, (0.85, 1.15, 1.1))
    np.testing.assert_array_equal(out[0, 0], 255)
    assert out[0, 1].max() <= 3


def test_drawn_jitter_stays_in_its_range():
    factors, shifts = draw_jitter(Stain(scale=0.2, shift=0.04), [0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(factors, [0.8, 1.0, 1.2])
    np.testing.assert_allclose(shifts, [-0.04, 0, 0.04], atol=1e-12)


@pytest.mark.parametrize("wrong", [{"p": 2}, {"scale": 1.0}, {"shift": -0.1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError, match="stain"):
        Stain(**wrong)
