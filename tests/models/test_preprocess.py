from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from midog.errors import UsageError
from midog.models.backbones import find_backbone
from midog.models.preprocess import PATCH, Image, fit_patch, input_size, prepare, prepare_pixels

VIT_ANY = find_backbone({**find_backbone("test_vit").to_dict(), "patch": None})
VIT, CNN = find_backbone("test_vit"), find_backbone("mobilenetv2_100")


def denormalised(x: torch.Tensor) -> np.ndarray:
    """(n, h, w, 3) in 0…255."""
    mean, std = torch.tensor(VIT.mean), torch.tensor(VIT.std)
    return ((x.permute(0, 2, 3, 1) * std + mean) * 255).numpy()


def test_without_resizing_it_is_crop_and_normalise(patches: np.ndarray) -> None:
    x = prepare(patches, Image(crop=64, size=64), VIT)
    assert (x.shape, x.dtype) == ((6, 3, 64, 64), torch.float32)
    expected = (patches[:, 32:96, 32:96].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("crop", "size"), [(128, 224), (72, 160), (128, 96)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_is_that_of_pillow(crop: int, size: int, interpolation: str) -> None:
    """Pillow filters with the same antialiased kernels, but rounds and clips to bytes after each axis."""
    patch = np.random.default_rng(1).integers(90, 160, (1, PATCH, PATCH, 3), dtype=np.uint8)
    record = find_backbone({**VIT_ANY.to_dict(), "interpolation": interpolation})
    margin = (PATCH - crop) // 2
    pillow = PillowImage.fromarray(patch[0, margin : PATCH - margin, margin : PATCH - margin])
    expected = np.asarray(pillow.resize((size, size), PillowImage.Resampling[interpolation.upper()]), dtype=float)
    found = denormalised(prepare(patch, Image(crop, size), record))[0]
    assert np.abs(found - expected).max() < 1.5


@pytest.mark.parametrize("image", [Image(), Image(crop=72, size=160), Image(crop=60, size=224)])
def test_the_centre_stays_the_centre(image: Image) -> None:
    """Turning before or after is the same: nothing moves by half a pixel."""
    patch = np.random.default_rng(2).integers(0, 256, (1, PATCH, PATCH, 3), dtype=np.uint8)
    turned = np.ascontiguousarray(np.rot90(patch, 1, axes=(1, 2)))
    mirrored = np.ascontiguousarray(patch[:, :, ::-1])
    x = prepare(patch, image, CNN)
    torch.testing.assert_close(prepare(turned, image, CNN), x.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(prepare(mirrored, image, CNN), x.flip(3), atol=1e-4, rtol=0)


def test_overshoot_is_clipped() -> None:
    patch = np.zeros((1, PATCH, PATCH, 3), dtype=np.uint8)
    patch[:, 40:80, 40:80] = 255
    found = denormalised(prepare(patch, Image(size=224), VIT_ANY))
    assert found.min() == pytest.approx(0, abs=1e-3)
    assert found.max() == pytest.approx(255, abs=1e-3)


def test_companions_and_repetition_change_nothing(patches: np.ndarray) -> None:
    image = Image(crop=80, size=160)
    whole = prepare(patches, image, VIT)
    assert torch.equal(whole, prepare(patches, image, VIT))
    assert torch.equal(whole, torch.cat([prepare(patches[i : i + 1], image, VIT) for i in range(len(patches))]))


def test_a_read_only_memory_map_is_fine_and_untouched(tmp_path: Path, patches: np.ndarray) -> None:
    np.save(tmp_path / "pixels.npy", patches)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert torch.equal(prepare(mapped, Image(128, 128), CNN), prepare(patches.copy(), Image(128, 128), CNN))
    assert np.array_equal(mapped, patches)


@pytest.mark.parametrize("image", [Image(128, 128), Image(128, 224), Image(72, 160)])
def test_floats_take_the_same_path_and_let_gradients_through(patches: np.ndarray, image: Image) -> None:
    x = (torch.from_numpy(patches.copy()).permute(0, 3, 1, 2).float() / 255).requires_grad_(True)
    before = x.detach().clone()
    found = prepare_pixels(x, image, CNN)
    assert torch.equal(found.detach(), prepare(patches, image, CNN))
    found.square().sum().backward()
    margin = (PATCH - image.crop) // 2
    inside = x.grad[:, :, margin : PATCH - margin, margin : PATCH - margin]
    assert int((x.grad != 0).sum()) == int((inside != 0).sum()) > 0
    assert torch.equal(x.detach(), before)
    with pytest.raises(ValueError, match="float"):
        prepare_pixels(torch.zeros(1, 3, 64, 64), image, CNN)


@pytest.mark.parametrize("wrong", [np.zeros((128, 128, 3), np.uint8), np.zeros((1, 128, 128, 3), np.float32)])
def test_wrong_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepare(wrong, Image(), VIT)


def test_settings_that_cannot_be() -> None:
    for crop in (61, 14, 130, 0):
        with pytest.raises(UsageError, match=r"image\.crop"):
            Image(crop=crop)
    for size in ("nativ", 8, 5000):
        with pytest.raises(UsageError, match=r"image\.size"):
            Image(size=size)


def test_input_size() -> None:
    assert input_size(Image(), VIT) == 160
    assert input_size(Image(size=96), VIT) == 96
    assert input_size(Image(size=100), CNN) == 100
    with pytest.raises(UsageError, match="no multiple of the 16-pixel patches") as caught:
        input_size(Image(size=100), VIT)
    assert caught.value.fix == "image.size: 96 or 112"


@given(st.integers(1, 300), st.integers(1, 300))
def test_fit_patch_gives_a_patch_around_the_centre(height: int, width: int) -> None:
    rows, columns = np.mgrid[:height, :width].astype(np.uint16)
    image = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    fitted = fit_patch(image)
    assert (fitted.shape, fitted.dtype) == ((PATCH, PATCH, 3), np.uint8)
    middle = fitted[PATCH // 2, PATCH // 2]
    assert abs(int(middle[0]) - (height // 2) % 256) <= 1
    assert abs(int(middle[1]) - (width // 2) % 256) <= 1


def test_fit_patch_leaves_a_patch_alone(patches: np.ndarray) -> None:
    assert np.array_equal(fit_patch(patches[0]), patches[0])
    small = fit_patch(patches[0][:100, :101])
    assert np.array_equal(small[14:114, 13:114], patches[0][:100, :101])
    assert np.array_equal(small[:14], small[28:14:-1])
