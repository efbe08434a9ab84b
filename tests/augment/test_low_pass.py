"""The low-pass filter against its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from augment.low_pass import LowPass, low_pass, pass_mask
from midog.errors import UsageError


def wave(u: int, v: int, size: int = 224) -> Tensor:
    """(1, 3, size, size): a half plus a quarter of a cosine of u and v cycles."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) / size] * 2, indexing="ij")
    return (0.5 + 0.25 * torch.cos(2 * torch.pi * (u * y + v * x))).expand(1, 3, size, size)


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


def test_filter_is_linear_idempotent_and_keeps_means() -> None:
    pixels = torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
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


@pytest.mark.parametrize("settings", [LowPass(), LowPass(radius=1), LowPass(radius=0.1)])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_image_stays(level: float, settings: LowPass) -> None:
    x = torch.full((2, 3, 128, 128), level)
    torch.testing.assert_close(low_pass(x, settings), x, rtol=0, atol=1e-6)


def test_a_patch_of_128_pixels_keeps_28_waves_across(patch: np.ndarray) -> None:
    """Fifty cycles in 224 pixels are a frequency: what lies beyond it is gone, what lies below it is untouched."""
    x = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None].double() / 255
    before, after = (torch.fft.rfft2(image).abs() for image in (x, low_pass(x, clip=False)))
    u, v = torch.fft.fftfreq(128, 1 / 128).double(), torch.arange(65).double()
    passing = u[:, None].square() + v[None, :].square() < 28.58**2
    assert float(before[:, :, ~passing].max()) > 1 and float(after[:, :, ~passing].max()) < 1e-9
    torch.testing.assert_close(after[:, :, passing], before[:, :, passing])


def test_gradients_are_filtered_too() -> None:
    """The filter is its own adjoint: whoever attacks through it is told low frequencies alone."""
    x = torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64, requires_grad=True)
    w = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (low_pass(x) * w).sum().backward()
    torch.testing.assert_close(x.grad, low_pass(w, clip=False))


@pytest.mark.parametrize("wrong", [{"radius": 0}, {"radius": float("nan")}, {"radius": float("inf")}, {"of": -1}])
def test_a_filter_without_a_radius_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"low_pass.{next(iter(wrong))} is "):
        LowPass(**wrong)  # type: ignore[arg-type]
