"""Reinhard's transfer against its definition, OpenCV's CIELAB and torchstain."""

import cv2
import numpy as np
import pytest
import torch

from augment.reinhard import (
    TYPICAL,
    colour_statistics,
    lab_to_rgb,
    reinhard,
    reinhard_patches,
    reinhard_pixels,
    rgb_to_lab,
)
from augment.stain import STAINS, jitter_stain


def stained(haematoxylin, eosin):
    """A patch with known amounts of both stains: (h, w, 3) uint8 by Beer and Lambert."""
    density = np.asarray(haematoxylin)[..., None] * STAINS[0] + np.asarray(eosin)[..., None] * STAINS[1]
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_the_published_cielab_of_the_primaries(rgb, lab):
    np.testing.assert_allclose(rgb_to_lab(np.array(rgb, np.uint8)), lab, atol=0.01)


def test_cielab_is_that_of_opencv_and_comes_back():
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
    theirs = cv2.cvtColor(np.float32(colours) / np.float32(255), cv2.COLOR_RGB2Lab)
    # OpenCV interpolates in a table and rounds to 1/64.
    np.testing.assert_allclose(rgb_to_lab(colours), theirs, atol=0.35)
    np.testing.assert_array_equal(lab_to_rgb(rgb_to_lab(colours)), colours)


def test_white_and_middle_grey():
    np.testing.assert_allclose(rgb_to_lab(np.array([255, 255, 255], np.uint8)), [100, 0, 0], atol=1e-9)
    np.testing.assert_allclose(rgb_to_lab(np.array([119, 119, 119], np.uint8)), [50.034, 0, 0], atol=1e-3)


def test_the_normalised_view_gives_every_patch_one_colour(patch):
    pale, dark = jitter_stain(patch, (0.7, 0.8, 1)), jitter_stain(patch, (1.4, 1.2, 1))
    before = [colour_statistics(image)[0] for image in (pale, dark)]
    seen = reinhard_patches(np.stack([pale, dark]))
    after = [colour_statistics(image)[0] for image in seen]
    assert seen.dtype == np.uint8 and seen.shape == (2, *patch.shape)
    assert np.abs(before[0] - before[1]).max() > 10 * np.abs(after[0] - after[1]).max()
    np.testing.assert_allclose(after[0], TYPICAL[0], atol=2)  # colours that a screen cannot show are clipped
    assert reinhard_patches(seen[:0]).shape == (0, *patch.shape)


def test_reinhard_onto_itself(patch):
    out = reinhard(patch, *colour_statistics(patch))
    assert np.abs(out.astype(int) - patch).max() <= 1


def test_reinhard_takes_over_the_statistics(patch):
    target = stained(np.full((128, 128), 0.5), np.linspace(0.1, 0.4, 128 * 128).reshape(128, 128))
    mean, std = colour_statistics(target)
    got_mean, got_std = colour_statistics(reinhard(patch, mean, 0.5 * std + 1))
    np.testing.assert_allclose(got_mean, mean, atol=1.0)
    np.testing.assert_allclose(got_std, 0.5 * std + 1, atol=1.0)


def test_reinhard_survives_a_constant_patch_and_black_padding(patch):
    flat = reinhard(np.full((16, 16, 3), 120, np.uint8), (60, 10, -10), (5, 5, 5))
    assert (flat == flat[0, 0]).all() and flat.max() > 0
    np.testing.assert_allclose(colour_statistics(flat)[0], (60, 10, -10), atol=1)
    padded = patch.copy()
    padded[:40] = 0
    for ours, theirs in zip(colour_statistics(padded), colour_statistics(patch[40:]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    out = reinhard(padded, (60, 20, -20), (10, 5, 5))
    assert (out[:40] == 0).all() and out[40:].max() > 0
    np.testing.assert_array_equal(out[40:], reinhard(patch[40:], (60, 20, -20), (10, 5, 5)))
    black = np.zeros((8, 8, 3), np.uint8)
    np.testing.assert_array_equal(reinhard(black, (60, 0, 0), (5, 5, 5)), black)


@pytest.mark.parametrize("wrong", [((1, 2), (1, 1, 1)), ((1, 2, np.nan), (1, 1, 1)), ((1, 2, 3), (1, -1, 1))])
def test_reinhard_refuses_statistics_that_are_none(patch, wrong):
    with pytest.raises(ValueError, match="three finite numbers"):
        reinhard(patch, *wrong)


def test_reinhard_agrees_with_torchstain(patch):
    torchstain = pytest.importorskip("torchstain")
    target = jitter_stain(patch, (1.3, 0.8, 1), (0.05, 0.02, 0))
    theirs = torchstain.normalizers.ReinhardNormalizer(backend="numpy")
    theirs.fit(target)
    assert np.abs(theirs.normalize(I=patch).astype(int) - reinhard(patch, *colour_statistics(target))).max() <= 1


def as_pixels(patches):
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 255


def test_tensors_get_the_colours_that_arrays_get(patch):
    padded, flat = patch.copy(), np.full((128, 128, 3), 120, np.uint8)
    padded[:, 90:] = 0
    patches = [patch, jitter_stain(patch, (1.4, 1.2, 1)), padded, flat, np.zeros_like(patch)]
    found = 255 * reinhard_pixels(as_pixels(patches)).permute(0, 2, 3, 1).numpy()
    for image, ours in zip(patches, found, strict=True):
        assert np.abs(ours - reinhard(image, *TYPICAL)).max() < 0.51, "the array's are rounded"
    assert np.array_equal(reinhard_pixels(as_pixels(patches))[1:2], reinhard_pixels(as_pixels(patches[1:2])))


def test_gradients_pass_the_transfer_and_stay_finite(patch):
    x = as_pixels([patch, np.zeros_like(patch), np.full((128, 128, 3), 120, np.uint8)]).requires_grad_(True)
    reinhard_pixels(x).square().sum().backward()
    assert bool(torch.isfinite(x.grad).all()) and float(x.grad[0].abs().sum()) > 0
