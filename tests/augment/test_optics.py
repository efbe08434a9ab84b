"""Brightness, blur and JPEG."""

import numpy as np
import pytest

from augment.optics import Blur, Brightness, Jpeg, blur, brighten, compress
from midog.errors import UsageError


def test_brightness_and_contrast(patch):
    np.testing.assert_array_equal(brighten(patch, 0, 0), patch)
    grey = np.array([[[0, 100, 128], [155, 200, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(brighten(grey, 0.1, 0)[0], [[26, 126, 154], [180, 226, 255]])
    np.testing.assert_array_equal(brighten(grey, 0, 1)[0], [[0, 72, 128], [182, 255, 255]])


def test_blur_keeps_the_mean_and_lowers_the_spread(patch):
    np.testing.assert_array_equal(blur(patch, 0), patch)
    spread = [blur(patch, sigma).std() for sigma in (0, 0.5, 1, 2, 4)]
    assert spread == sorted(spread, reverse=True)
    assert abs(blur(patch, 2).mean() - patch.mean()) < 1.5
    assert (blur(np.full_like(patch, 60), 3) == 60).all()


def test_jpeg_keeps_colours_apart_and_loses_more_at_low_quality(patch):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(compress(red, 95).astype(int) - red).max() <= 3
    loss = [np.abs(compress(patch, quality).astype(int) - patch).mean() for quality in (95, 70, 30)]
    assert 0 < loss[0] < loss[1] < loss[2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Brightness(brightness=1),
        lambda: Brightness(p=-1),
        lambda: Blur(sigma=(2, 1)),
        lambda: Jpeg(quality=(0, 50)),
        lambda: Jpeg(quality=(50, 101)),
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError, match=r"(brightness|blur|jpeg)\."):
        wrong()
