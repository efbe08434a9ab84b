"""The albumentations face: the same results, reproducible in a Compose, masks on the same map."""

import subprocess
import sys

import numpy as np
import pytest

from augment import transforms
from augment.fisheye import fisheye, fisheye_map
from augment.fourier import fourier_domain_adaptation, natural_targets, patch_targets
from augment.macenko import macenko_patches
from augment.policies import settings
from augment.reinhard import reinhard_patches
from augment.stain import jitter_stain
from midog.errors import DataError, UsageError

albumentations = transforms.albumentations


def test_fixed_settings_give_what_the_functions_give(patch):
    target = patch_targets([patch[::-1] // 2])
    np.testing.assert_array_equal(transforms.Fisheye((0.4, 0.4), p=1)(image=patch)["image"], fisheye(patch, 0.4))
    np.testing.assert_array_equal(
        transforms.FourierDomainAdaptation(target, (0.05, 0.05), p=1)(image=patch)["image"],
        fourier_domain_adaptation(patch, target[0], 0.05),
    )
    still = transforms.StainJitter(0, 0, p=1)(image=patch)["image"]
    np.testing.assert_array_equal(still, jitter_stain(patch, (1, 1, 1)))
    for method, view in (("reinhard", reinhard_patches), ("macenko", macenko_patches)):
        shown = transforms.StainNormalisation(method, 0, p=1)(image=patch)["image"]
        np.testing.assert_array_equal(shown, view(patch[None])[0])


def test_float_images_are_zero_to_one(patch):
    dark = patch // 3
    target = patch_targets([255 - patch])
    out = transforms.FourierDomainAdaptation(target, (0.09, 0.09), p=1)(image=dark.astype(np.float32) / 255)["image"]
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
    np.testing.assert_allclose(out * 255, fourier_domain_adaptation(dark, target[0], 0.09), atol=0.51)


def test_a_mask_is_read_at_the_nearest_pixel(patch):
    mask = np.zeros((128, 128), np.uint8)
    mask[50:78, 50:78] = 7
    out = transforms.Fisheye((0.5, 0.5), p=1)(image=patch, mask=mask)["mask"]
    assert set(np.unique(out)) == {0, 7}
    map_x, map_y = np.rint(fisheye_map(128, 0.5)).astype(int)
    assert (out != mask[map_y, map_x]).mean() < 0.01
    assert (out == 7).sum() > 1.5 * (mask == 7).sum()


def test_a_seeded_pipeline_repeats_itself(patch):
    def pipeline(seed):
        return albumentations.Compose(
            [
                transforms.FourierDomainAdaptation(natural_targets(), p=1),
                transforms.StainJitter(p=1),
                transforms.StainNormalisation(p=1),
                transforms.Fisheye(p=1),
                transforms.PatchPolicy(settings("paper"), natural_targets()),
            ],
            seed=seed,
        )

    one, same, other = pipeline(3), pipeline(3), pipeline(4)
    first = [one(image=patch)["image"] for _ in range(3)]
    again = [same(image=patch)["image"] for _ in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other(image=patch)["image"])
    assert first[0].shape == patch.shape and first[0].dtype == np.uint8


def test_probability_zero_leaves_the_patch(patch):
    for transform in (transforms.Fisheye(p=0), transforms.StainJitter(p=0), transforms.StainNormalisation(p=0)):
        np.testing.assert_array_equal(transform(image=patch)["image"], patch)


def test_wrong_settings_are_refused():
    with pytest.raises(DataError, match="no targets"):
        transforms.FourierDomainAdaptation([], p=0.5)
    with pytest.raises(UsageError, match=r"fisheye\.strength"):
        transforms.Fisheye((-1, 0))
    with pytest.raises(UsageError, match=r"normalise\.method"):
        transforms.StainNormalisation("vahadane")
    with pytest.raises(UsageError, match=r"fourier\.beta"):
        transforms.FourierDomainAdaptation(natural_targets(), (0.2, 0.1))


def test_importing_asks_nobody_for_updates_and_the_rest_does_without_albumentations():
    code = """
import sys, urllib.request
def refuse(*a, **k): raise SystemExit("asked the network")
urllib.request.OpenerDirector.open = refuse
import augment.policies, augment.stain, augment.views
assert "albumentations" not in sys.modules, "policies import albumentations"
import augment.transforms
assert "albumentations" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_views_need_no_opencv_scipy_or_torch():
    code = "import sys, augment.views; assert not {'cv2', 'scipy', 'torch', 'albumentations'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
