"""Fisheye: closed forms, symmetries, a torch twin, and what albumentations' fisheye does instead."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.fisheye import Fisheye, fisheye, fisheye_map, lens_map, resample
from augment.views import DIHEDRAL, apply_view
from midog.errors import UsageError

STRENGTHS = [0.0, 0.1, 0.3, 0.5, 1.0, 3.0]
SIZES = [(128, 128), (127, 127), (64, 96), (31, 17)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_strength_zero_is_a_byte_identical_copy(patch, dtype):
    image = patch.astype(dtype)
    out = fisheye(image, 0)
    assert out.tobytes() == image.tobytes() and out.dtype == dtype and not np.shares_memory(out, image)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_stays_and_shape_and_dtype_too(size, strength):
    for channels in ((), (1,), (3,)):
        for dtype in (np.uint8, np.float32):
            image = np.full((*size, *channels), 77, dtype)
            np.testing.assert_array_equal(fisheye(image, strength), image)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", SIZES)
def test_the_map_stays_inside_and_fixes_the_corners(size, strength):
    height, width = size
    map_x, map_y = fisheye_map(size, strength)
    assert map_x.shape == map_y.shape == size and map_x.dtype == map_y.dtype == np.float32
    assert map_x.min() >= 0 and map_x.max() <= width - 1 and map_y.min() >= 0 and map_y.max() <= height - 1
    np.testing.assert_array_equal(map_x[:: height - 1, :: width - 1], [[0, width - 1]] * 2)
    np.testing.assert_array_equal(map_y[:: height - 1, :: width - 1], [[0, 0], [height - 1] * 2])


@given(st.floats(0, 20), st.sampled_from(SIZES))
@settings(max_examples=40, deadline=None)
def test_the_source_radius_grows_strictly_with_the_radius(strength, size):
    height, width = size
    map_x, map_y = fisheye_map(size, strength, dtype=np.float64)
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    radius, read = np.hypot(x, y).ravel(), np.hypot(map_x - (width - 1) / 2, map_y - (height - 1) / 2).ravel()
    order = np.argsort(radius)
    apart = np.diff(radius[order]) > 1e-6
    assert (np.diff(read[order])[apart] > 0).all()
    rho = radius / np.hypot((width - 1) / 2, (height - 1) / 2)
    np.testing.assert_allclose(read, radius * (1 + strength * rho**2) / (1 + strength), atol=1e-9)


@pytest.mark.parametrize(("side", "strength"), [(64, 0.1), (64, 0.5), (128, 0.5), (128, 1.0), (129, 0.5), (129, 1.0)])
def test_the_centre_is_magnified_one_plus_k_times(side, strength):
    for wanted, axis in zip(fisheye_map(side, strength, dtype=np.float64), (1, 0), strict=True):
        line = wanted[(side - 1) // 2] if axis else wanted[:, (side - 1) // 2]
        left, right = (side - 2) // 2, side // 2 if side % 2 == 0 else side // 2 + 1
        assert abs((line[right] - line[left]) / (right - left) - 1 / (1 + strength)) < 1e-4


@pytest.mark.parametrize("strength", [0.3, 0.5, 2.0])
def test_radial_magnification_is_one_at_the_published_radius(strength):
    side = 2049
    map_x, _ = fisheye_map((1, side), strength, dtype=np.float64)
    at = round((side - 1) / 2 * (1 + 1 / np.sqrt(3)))
    assert abs((map_x[0, at + 1] - map_x[0, at - 1]) / 2 - 1) < 1e-3


@pytest.mark.parametrize(("strength", "share"), [(0.1, 0.941), (0.3, 0.853), (0.5, 0.793), (1.0, 0.700)])
def test_share_of_the_source_still_visible(strength, share):
    map_x, map_y = fisheye_map(512, strength, dtype=np.float64)
    rim = [(map_x[i], map_y[i]) for i in (np.s_[0], np.s_[:, -1], np.s_[-1, ::-1], np.s_[::-1, 0])]
    x, y = (np.concatenate([side[axis] for side in rim]) for axis in (0, 1))
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert area / 511**2 == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_map_is_symmetric(strength):
    map_x, map_y = fisheye_map(128, strength, dtype=np.float64)
    np.testing.assert_allclose(map_x[:, ::-1], 127 - map_x, atol=1e-12)
    np.testing.assert_allclose(map_x.T, map_y, atol=1e-12)


@pytest.mark.parametrize("name", DIHEDRAL)
def test_commutes_with_the_symmetries_of_the_square(patch, name):
    def turned(image):
        return np.ascontiguousarray(apply_view(image.transpose(2, 0, 1), name).transpose(1, 2, 0))

    first, last = fisheye(turned(patch), 0.4).astype(int), turned(fisheye(patch, 0.4)).astype(int)
    assert np.abs(first - last).max() <= 1


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5])
def test_a_centred_square_grows_in_area_by_the_square_of_the_magnification(strength):
    image = np.zeros((128, 128), np.float32)
    image[56:72, 56:72] = 1
    assert fisheye(image, strength).sum() / image.sum() == pytest.approx((1 + strength) ** 2, rel=0.05)


def test_a_torch_twin_agrees(patch):
    import torch
    from torch.nn.functional import grid_sample

    image = patch.astype(np.float32) / 255
    map_x, map_y = fisheye_map(128, 0.5)
    grid = torch.from_numpy(np.stack([map_x, map_y], axis=-1))[None] * 2 / 127 - 1
    twin = grid_sample(torch.from_numpy(image).permute(2, 0, 1)[None], grid, align_corners=True)
    np.testing.assert_allclose(twin[0].permute(1, 2, 0).numpy(), fisheye(image, 0.5), atol=2e-5)


@pytest.mark.parametrize("strength", [-0.01, -1.0, float("nan"), float("inf")])
def test_strength_outside_its_range_is_refused(patch, strength):
    for call in (lambda: fisheye(patch, strength), lambda: fisheye_map(128, strength)):
        with pytest.raises(ValueError, match="fisheye strength is"):
            call()


@pytest.mark.parametrize("wrong", [{"p": -0.1}, {"strength": (-0.1, 0.5)}, {"strength": (0.5, 0.1)}])
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError, match="fisheye"):
        Fisheye(**wrong)


def test_shift_and_scale_join_the_fisheye_in_one_reading(patch):
    still = lens_map(128, 128)
    np.testing.assert_array_equal(resample(patch, *still), patch)
    moved = resample(patch, *lens_map(128, 128, shift=(3, -2)))
    np.testing.assert_array_equal(moved[:126, 3:], patch[2:, :125])
    np.testing.assert_allclose(lens_map(128, 128, 0.4)[0], fisheye_map(128, 0.4)[0], atol=1e-4)
    # Scaling and shifting what the fisheye made, in a second reading, shows the same picture but for the extra blur.
    smooth = cv2.GaussianBlur(patch, (0, 0), 4)
    twice = resample(fisheye(smooth, 0.4), *lens_map(128, 128, scale=1.1, shift=(2.0, 3.0)))
    once = resample(smooth, *lens_map(128, 128, 0.4, 1.1, (2.0, 3.0)))
    assert np.abs(once.astype(int) - twice)[8:-8, 8:-8].max() <= 2


def test_albumentations_fisheye_does_not_magnify():
    """Why the fisheye is ours: theirs has magnification 1 at the centre and a black rim."""
    lens = pytest.importorskip("augment.transforms").albumentations.OpticalDistortion(
        distort_limit=(0.3, 0.3), mode="fisheye", p=1.0
    )
    square = np.zeros((128, 128, 3), np.uint8)
    square[56:72, 56:72] = 200
    theirs = lens(image=square)["image"].astype(float).sum() / square.sum()
    assert theirs == pytest.approx(1.0, abs=0.05)
    assert fisheye(square, 0.3).astype(float).sum() / square.sum() > 1.6
    white = np.full((128, 128, 3), 255, np.uint8)
    assert 0.2 < (lens(image=white)["image"][..., 0] < 128).mean() < 0.3
    assert (fisheye(white, 0.3) == 255).all()
