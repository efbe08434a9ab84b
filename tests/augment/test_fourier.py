"""Fourier Domain Adaptation against an independent full-spectrum implementation, closed forms, and albumentations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from augment.fourier import (
    Fourier,
    colour_shift,
    folder_targets,
    fourier_domain_adaptation,
    natural_targets,
    patch_targets,
    read_targets,
    target_amplitude,
    write_targets,
)
from midog.errors import DataError, UsageError

SIZES = [(128, 128), (127, 127), (96, 128), (65, 40), (33, 90)]
BETAS = [0.001, 0.01, 0.05, 0.09, 0.3, 0.5]


def pair(size=(128, 128), seed=0, channels=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    source, target = rng.uniform(0, 255, (2, *size, channels))
    # A gradient makes the two spectra differ where FDA works.
    target = target * 0.3 + np.linspace(0, 180, size[1])[None, :, None]
    return source.astype(dtype), target.astype(dtype)


def by_definition(source, target, beta, include_dc=True):
    """The definition, written out: full complex spectra and a mask of signed frequencies."""
    height, width = source.shape[:2]
    b = math.floor(min(height, width) * beta)
    u = np.round(np.fft.fftfreq(height) * height)[:, None]
    v = np.round(np.fft.fftfreq(width) * width)[None, :]
    window = (np.abs(u) <= b) & (np.abs(v) <= b)
    if not include_dc:
        window[0, 0] = False
    out = np.empty(source.shape)
    for channel in range(source.shape[2]):
        whole = np.fft.fft2(source[:, :, channel].astype(np.float64))
        amplitude = np.where(window, np.abs(np.fft.fft2(target[:, :, channel].astype(np.float64))), np.abs(whole))
        out[:, :, channel] = np.fft.ifft2(amplitude * np.exp(1j * np.angle(whole))).real
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("include_dc", [True, False])
def test_agrees_with_the_definition(size, beta, include_dc):
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-3)):
        source, target = pair(size, dtype=dtype)
        ours = fourier_domain_adaptation(source, target, beta, include_dc)
        assert ours.dtype == dtype and ours.shape == source.shape
        assert np.abs(ours - by_definition(source, target, beta, include_dc)).max() < tolerance


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_beta_zero_is_a_byte_identical_copy(dtype):
    source, target = pair(dtype=dtype)
    out = fourier_domain_adaptation(source, target, 0)
    assert out.tobytes() == source.tobytes() and out.dtype == dtype
    assert not np.shares_memory(out, source)


@given(st.floats(0, 0.5), st.sampled_from(SIZES))
@settings(max_examples=30, deadline=None)
def test_an_image_adapted_to_itself_stays(beta, size):
    source, _ = pair(size)
    assert np.abs(fourier_domain_adaptation(source, source, beta) - source).max() < 1e-9


def test_the_mean_follows_the_dc_coefficient():
    source, target = pair()
    with_dc = fourier_domain_adaptation(source, target, 0.05)
    without = fourier_domain_adaptation(source, target, 0.05, include_dc=False)
    np.testing.assert_allclose(with_dc.mean(axis=(0, 1)), target.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(without.mean(axis=(0, 1)), source.mean(axis=(0, 1)), rtol=1e-12)


def test_below_one_frequency_only_the_mean_moves():
    source, target = pair()
    out = fourier_domain_adaptation(source, target, 0.001)
    moved = target.mean(axis=(0, 1)) - source.mean(axis=(0, 1))
    np.testing.assert_allclose(out - source, np.broadcast_to(moved, source.shape), atol=1e-9)


def test_the_phase_of_swapped_coefficients_stays():
    source, target = pair()
    out = fourier_domain_adaptation(source, target, 0.05)
    low = np.ix_(np.r_[0:7, 122:128], np.r_[0:7, 122:128], range(3))
    before, after = np.fft.fft2(source, axes=(0, 1))[low], np.fft.fft2(out, axes=(0, 1))[low]
    np.testing.assert_allclose(after / np.abs(after), before / np.abs(before), atol=1e-9)
    np.testing.assert_allclose(np.abs(after), np.abs(np.fft.fft2(target, axes=(0, 1))[low]), rtol=1e-9)


@pytest.mark.parametrize("side", [64, 63])
def test_beta_one_half_on_a_square_takes_the_whole_amplitude_spectrum(side):
    source, target = pair((side, side))
    out = fourier_domain_adaptation(source, target, 0.5)
    got, wanted = (np.abs(np.fft.fft2(image, axes=(0, 1))) for image in (out, target))
    np.testing.assert_allclose(got, wanted, atol=1e-8 * wanted.max())


def test_channels_are_independent():
    source, target = pair()
    whole = fourier_domain_adaptation(source, target, 0.05)
    other = target.copy()
    other[..., 1] = 0
    np.testing.assert_array_equal(fourier_domain_adaptation(source, other, 0.05)[..., [0, 2]], whole[..., [0, 2]])
    alone = fourier_domain_adaptation(source[..., :1], target[..., :1], 0.05)
    np.testing.assert_allclose(alone, whole[..., :1], atol=1e-9)


def test_a_constant_target_flattens_the_low_band():
    source, _ = pair()
    out = fourier_domain_adaptation(source, np.full_like(source, 90.0), 0.05)
    np.testing.assert_allclose(out.mean(axis=(0, 1)), 90, rtol=1e-9)
    spectrum = np.abs(np.fft.fft2(out, axes=(0, 1)))
    assert spectrum[:7, :7].reshape(49, 3)[1:].max() < 1e-6
    assert spectrum[20, 20].min() > 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_commutes_with_quarter_turns(turns):
    source, target = pair()
    turned = fourier_domain_adaptation(np.rot90(source, turns), np.rot90(target, turns), 0.09)
    np.testing.assert_allclose(turned, np.rot90(fourier_domain_adaptation(source, target, 0.09), turns), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_a_cached_target_gives_the_same_bits(dtype, size):
    source, target = pair(size, dtype=dtype)
    cached = target_amplitude(target, 0.1)
    for beta in (0.001, 0.01, 0.05, 0.09, 0.1):
        ours = fourier_domain_adaptation(source, cached, beta)
        assert ours.tobytes() == fourier_domain_adaptation(source, target, beta).tobytes()


def test_a_cached_target_takes_four_kilobytes():
    block = target_amplitude(pair(dtype=np.uint8)[1]).block
    assert block.shape == (25, 13, 3) and block.dtype == np.float32 and block.nbytes == 3900


def test_uint8_is_rounded_and_clipped_where_float_overshoots():
    source, target = pair(dtype=np.uint8)
    source[:20], source[20:40] = 0, 255
    raw = fourier_domain_adaptation(source.astype(np.float64), target.astype(np.float64), 0.05)
    assert raw.min() < -1 and raw.max() > 256
    out = fourier_domain_adaptation(source, target, 0.05)
    assert out.dtype == np.uint8 and out.flags.c_contiguous
    assert np.abs(out - np.clip(raw, 0, 255)).max() < 0.501


def test_a_coefficient_without_phase_gets_phase_zero():
    source, target = pair((32, 32))
    out = fourier_domain_adaptation(np.zeros_like(source), target, 0.1)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out.mean(axis=(0, 1)), target.mean(axis=(0, 1)), rtol=1e-12)


@pytest.mark.parametrize("beta", [-0.01, 0.51, 1.0, float("nan"), float("inf")])
def test_beta_outside_its_range_is_refused(beta):
    source, target = pair((32, 32))
    with pytest.raises(ValueError, match=r"beta is .*\n  fix: 0 \(no change\) to 0\.5"):
        fourier_domain_adaptation(source, target, beta)
    with pytest.raises(UsageError):
        target_amplitude(target, beta)


def test_shapes_and_types_that_do_not_fit_are_refused():
    source, target = pair((32, 32))
    for other in (target[:, :30], target[..., :1], target_amplitude(target[:30])):
        for beta in (0.0, 0.1):
            with pytest.raises(ValueError, match="resize the target"):
                fourier_domain_adaptation(source, other, beta)
    with pytest.raises(ValueError, match="height, width, channels"):
        fourier_domain_adaptation(source[..., 0], target[..., 0], 0.1)
    with pytest.raises(ValueError, match="int64"):
        fourier_domain_adaptation(source.astype(np.int64), target, 0.1)
    with pytest.raises(ValueError, match="holds frequencies up to 3, 9 are asked for"):
        fourier_domain_adaptation(source, target_amplitude(target, 0.1), 0.3)


def test_the_fix_for_a_small_cache_works():
    source, target = pair((128, 128))
    with pytest.raises(ValueError, match=r"beta_max=0\.301"):
        fourier_domain_adaptation(source, target_amplitude(target, 0.1), 0.3)
    fourier_domain_adaptation(source, target_amplitude(target, 0.301), 0.3)


def test_albumentations_swaps_an_off_centre_window():
    """Why FDA is ours: on even sizes theirs reaches from −(b+1) to b−2, so at b = 1 not even the mean is taken over."""
    theirs = pytest.importorskip("augment.transforms").albumentations.FDA(beta_limit=(0.01, 0.01), p=1.0)
    source, target = pair(dtype=np.uint8)
    source, target = source // 4 + 90, target // 2
    swapped = theirs(image=source, fda_metadata=[target])["image"].astype(float)
    ours = fourier_domain_adaptation(source, target, 0.01).astype(float)
    assert np.abs(source.mean((0, 1)) - target.mean((0, 1))).min() > 20
    assert np.abs(swapped.mean((0, 1)) - source.mean((0, 1))).max() < 1
    assert np.abs(ours.mean((0, 1)) - target.mean((0, 1))).max() < 1
    # The window itself, from their own function: zeros that it replaces by ones, read in signed frequencies.
    from albumentations.augmentations.mixing.domain_adaptation_functional import low_freq_mutate

    for beta, b in ((0.01, 1), (0.05, 6), (0.09, 11)):
        window = np.fft.ifftshift(low_freq_mutate(np.zeros((128, 128)), np.ones((128, 128)), beta))
        rows = (np.round(np.fft.fftfreq(128) * 128))[window.any(axis=1)]
        assert (rows.min(), rows.max()) == (-(b + 1), b - 2)


def test_the_package_holds_24_photographs(kodak):
    targets = natural_targets()
    assert len(targets) == 24 and natural_targets() is targets
    assert all(target.block.shape == (25, 13, 3) and target.size == (128, 128) and target.b == 12 for target in targets)
    image = np.asarray(Image.open(sorted(kodak.glob("*.png"))[0]).convert("RGB").resize((128, 128), 3), dtype=float)
    np.testing.assert_allclose(targets[0].block[0, 0] / 128**2, image.mean((0, 1)), rtol=1e-5)


def test_the_committed_targets_are_reproduced_byte_by_byte(kodak, tmp_path):
    from augment import fourier

    committed = Path(fourier.__file__).parent / "targets" / "kodak.safetensors"
    assert write_targets(kodak, tmp_path / "again.safetensors").read_bytes() == committed.read_bytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(3)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (90, 140, 3), dtype=np.uint8)).save(tmp_path / "photos" / "a.png")
    Image.fromarray(rng.integers(0, 255, (70, 70), dtype=np.uint8)).save(tmp_path / "photos" / "deep" / "grey.JPEG")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def test_a_folder_of_ones_own(folder, tmp_path):
    targets = folder_targets(folder)
    assert len(targets) == 2 and all(target.size == (128, 128) for target in targets)
    grey = targets[1].block
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    stored = folder_targets(write_targets(folder, tmp_path / "own.safetensors"))
    for one, other in zip(targets, stored, strict=True):
        np.testing.assert_allclose(one.block, other.block, rtol=1e-4, atol=0.5)


def test_a_large_folder_is_sampled_evenly(folder, monkeypatch):
    monkeypatch.setattr("augment.fourier.MOST_IMAGES", 4)
    for at in range(8):
        Image.fromarray(np.full((8, 8, 3), at * 20, np.uint8)).save(folder / f"b{at}.png")
    means = [round(float(target.block[0, 0, 0]) / 128**2) for target in folder_targets(folder)]
    assert len(means) == 4 and means[1:] == [20, 80, 120]


def test_absent_empty_and_damaged_targets_are_errors(folder, tmp_path):
    with pytest.raises(DataError, match="no folder of Fourier targets"):
        folder_targets(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        folder_targets(tmp_path / "empty")
    for name in ("x.png", "y.jpg"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 images in .* cannot be read\n  x\.png.*\n  y\.jpg"):
        folder_targets(folder)
    (tmp_path / "foreign.safetensors").write_bytes(b"12345678")
    with pytest.raises(DataError, match="holds no Fourier targets"):
        read_targets(tmp_path / "foreign.safetensors")
    with pytest.raises(DataError, match="no patches"):
        patch_targets([])


def test_the_file_says_what_it_holds(folder, tmp_path):
    from safetensors import safe_open

    with safe_open(write_targets(folder, tmp_path / "own.safetensors"), framework="numpy") as stored:
        assert json.loads(stored.metadata()["targets"]) == {"size": 128, "b": 12, "names": ["a.png", "deep/grey.JPEG"]}


def test_colour_shift_is_the_mean_change_that_fda_makes():
    patches = [pair(seed=seed, dtype=np.float64)[0] * (0.5 + seed / 4) for seed in range(3)]
    photographs = [pair(seed=seed, dtype=np.float64)[1] for seed in (7, 8)]
    moved = [
        np.abs(fourier_domain_adaptation(patch, photograph, 0.05).mean((0, 1)) - patch.mean((0, 1)))
        for patch in patches
        for photograph in photographs
    ]
    np.testing.assert_allclose(colour_shift(patches, patch_targets(photographs)), np.mean(moved, axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"p": 1.1}, "fourier.p is 1.1"),
        ({"beta": (0.1, 0.05)}, "fourier.beta"),
        ({"beta": (0.1, 0.6)}, r"within 0 to 0\.5"),
        ({"targets": ""}, "fourier.targets is empty"),
    ],
)
def test_settings_out_of_range(wrong, says):
    with pytest.raises(UsageError, match=says):
        Fourier(**wrong)
