"""Stain normalisation as augmentation: its closed form without spread, its limits with it, its place in a policy."""

import dataclasses

import numpy as np
import pytest
import torch

from augment.fourier import natural_targets
from augment.macenko import STAINS, STRENGTHS, WHITE, macenko, macenko_patches
from augment.normalise import METHODS, Normalise, normalise
from augment.policies import TRANSFORMS, build_policy, sample_rng, settings
from augment.reinhard import TYPICAL, reinhard
from midog.errors import ArgumentError, UsageError

MIDDLE = (0.5,) * 6


def policy(method, **keys):
    return build_policy(settings("none", normalise={"p": 1.0, "method": method, **keys}))


def exactly(patch, method):
    """The reference itself, from the functions that a network's own normalisation uses."""
    if method == "reinhard":
        return reinhard(patch, *TYPICAL)
    x = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None].double() / 255
    return (255 * macenko(x)[0]).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_without_spread_every_patch_is_shown_in_the_reference_itself(real_patches, method):
    for at, patch in enumerate(real_patches):
        out = policy(method, spread=0)(patch, sample_rng(0, "m", 0, 0, at))
        np.testing.assert_array_equal(out, exactly(patch, method))
        assert np.abs(out.astype(int) - patch).mean() > 1
        # In the middle of its range a spread moves nothing either.
        np.testing.assert_array_equal(normalise(patch, Normalise(method=method, spread=0.5), MIDDLE), out)


@pytest.mark.parametrize("method", METHODS)
def test_never_is_never(real_patches, method):
    augment = settings("none", normalise={"p": 0, "method": method})
    np.testing.assert_array_equal(build_policy(augment)(real_patches[0], sample_rng(0, "m", 0, 0, 0)), real_patches[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_draw_gives_the_same_bytes_and_another_draw_others(real_patches, method):
    outs = [policy(method)(real_patches[0], sample_rng(0, "m", 0, 0, at)) for at in range(6)]
    again = [policy(method)(real_patches[0], sample_rng(0, "m", 0, 0, at)) for at in range(6)]
    assert [out.tobytes() for out in outs] == [out.tobytes() for out in again]
    assert len({out.tobytes() for out in outs}) == 6
    assert all(out.shape == (128, 128, 3) and out.dtype == np.uint8 and out.flags.c_contiguous for out in outs)


def test_means_and_deviations_move_each_on_its_own(real_patches):
    shown = normalise(real_patches[0], Normalise(spread=0.2), (1, 0, 0.5, 0, 1, 0.5))
    mean, std = (60 + 0.2 * 15, 35 - 0.2 * 10, -15), (15 * np.exp(-0.2), 10 * np.exp(0.2), 10)
    np.testing.assert_array_equal(shown, reinhard(real_patches[0], mean, std))


def test_the_strengths_of_both_stains_move_each_on_its_own():
    amounts = np.random.default_rng(0).gamma(2.0, 0.2, (2, 128, 128))
    amounts[0, :40], amounts[1, 40:80] = 0, 0
    patch = np.clip(WHITE * np.exp(-np.einsum("shw,sc->hwc", amounts, np.array(STAINS))) - 1, 0, 255).round()
    changed = normalise(patch.astype(np.uint8), Normalise(method="macenko", spread=0.2), (0, 0.999999, *MIDDLE[:4]))
    density = -np.log((changed.reshape(-1, 3) + 1.0) / WHITE)
    strongest = np.percentile(np.linalg.lstsq(np.array(STAINS).T, density.T, rcond=None)[0], 99, axis=1)
    np.testing.assert_allclose(strongest, STRENGTHS * np.exp([-0.2, 0.2]), rtol=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_black_padding_stays_black_and_does_not_count(real_patches, method):
    padded = real_patches[0].copy()
    padded[:40] = 0
    out = normalise(padded, Normalise(method=method), MIDDLE)
    assert not out[:40].any() and out[40:].any()
    np.testing.assert_array_equal(out[40:], normalise(padded[40:], Normalise(method=method), MIDDLE))


@pytest.mark.parametrize("grey", [0, 127, 255])
def test_a_patch_without_two_stains_comes_back(grey):
    flat = np.full((128, 128, 3), grey, np.uint8)
    np.testing.assert_array_equal(normalise(flat, Normalise(method="macenko"), MIDDLE), flat)


def test_neither_threads_nor_companions_change_a_grey_level(real_patches):
    together = macenko_patches(real_patches)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            alone = [macenko_patches(real_patches[at : at + 1])[0] for at in range(len(real_patches))]
            np.testing.assert_array_equal(np.stack(alone), together)
    finally:
        torch.set_num_threads(threads)


def test_it_comes_last_among_the_numbers_and_leaves_those_of_all_others():
    off = settings("strong", **{name: {"p": 1.0} for name in TRANSFORMS[:-1]})
    on = dataclasses.replace(off, normalise=Normalise(1.0))
    assert TRANSFORMS[-1] == "normalise" and off.normalise is None
    earlier = dict(zip(TRANSFORMS[:-1], sample_rng(0, "m", 0, 0, 0).random((8, 8)).tolist(), strict=True))
    policies = [build_policy(augment, natural_targets()) for augment in (off, on)]
    off_drawn, on_drawn = (one._draw(sample_rng(0, "m", 0, 0, 0)) for one in policies)
    assert off_drawn == earlier
    assert {name: u for name, u in on_drawn.items() if name != "normalise"} == earlier


def test_other_colours_change_what_was_normalised(real_patches):
    first = settings("none", normalise={"p": 1.0}, stain={"p": 1.0})
    key = (0, "m", 0, 0, 0)
    alone = build_policy(settings("none", stain={"p": 1.0}))
    shown = normalise(real_patches[0], Normalise(), build_policy(first)._draw(sample_rng(*key))["normalise"][1:7])
    np.testing.assert_array_equal(
        build_policy(first)(real_patches[0], sample_rng(*key)), alone(shown, sample_rng(*key))
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"p": 2}, "normalise.p is 2\n  fix: a probability"),
        ({"spread": 1.0}, "normalise.spread is 1.0\n  fix: 0 or more and below 1"),
        ({"spread": float("nan")}, "normalise.spread is nan\n  fix: 0 or more and below 1"),
        ({"method": "makenko"}, "unknown normalise.method: makenko\n  fix: did you mean macenko?"),
        ({"methud": "macenko"}, "unknown key of normalise: methud\n  fix: did you mean method?"),
    ],
)
def test_wrong_settings_say_what_is_wrong(wrong, says):
    with pytest.raises(UsageError) as caught:
        settings("none", normalise=wrong)
    assert says in str(caught.value)


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, 0.0), (-1.0, 1.0), (1.0, float("nan"))])
def test_strengths_that_are_none_are_refused(patch, wrong):
    with pytest.raises(ArgumentError, match="two finite numbers above 0"):
        macenko_patches(patch[None], wrong)
