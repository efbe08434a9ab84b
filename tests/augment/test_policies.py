"""Kinds, settings by key, seeding, and what a policy promises about its patches."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from augment.fisheye import Fisheye
from augment.fourier import Fourier, natural_targets, patch_targets
from augment.placement import Shift, turn
from augment.policies import KINDS, TRANSFORMS, Augment, build_policy, refuse_agpl, sample_rng, settings
from augment.stain import Stain
from augment.views import DIHEDRAL, apply_view
from midog.errors import DataError, MidogError, UsageError

OFF = dict.fromkeys(TRANSFORMS)


def run(augment, patch, key=(0, "uni", 0, 0, 0)):
    return build_policy(augment, natural_targets())(patch, sample_rng(*key))


def test_the_kinds():
    assert Augment() == settings("paper") == settings()
    assert all(getattr(settings("none"), name) is None for name in TRANSFORMS)
    light, paper, strong = settings("light"), settings("paper"), settings("strong")
    assert light.fisheye is None and light.fourier is None and light.dihedral and light.shift and light.stain
    assert dataclasses.replace(light, kind="paper", fisheye=Fisheye(), fourier=Fourier()) == paper
    assert strong.fisheye == paper.fisheye and strong.fourier == paper.fourier
    assert all(augment.normalise is None for augment in KINDS.values())
    assert strong.blur and strong.jpeg and strong.stain.scale > paper.stain.scale


def test_overrides_as_a_recipe_writes_them():
    augment = settings("paper", fisheye="off", fourier={"p": 0.3, "beta": [0.02, 0.05]}, blur="on", jpeg={"p": 0.9})
    assert augment.fisheye is None
    assert augment.fourier == Fourier(p=0.3, beta=(0.02, 0.05)) and augment.jpeg.p == 0.9 and augment.blur is not None
    strong = settings("strong", stain={"p": 0.4}, shift=None, fourier=False, dihedral=True)
    assert strong.stain == dataclasses.replace(KINDS["strong"].stain, p=0.4)
    assert strong.shift is None and strong.fourier is None and strong.dihedral is not None
    assert settings("none", stain=Stain(p=1)).stain == Stain(p=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: settings("papper"), "unknown augmentation kind: papper\n  fix: did you mean paper?"),
        (lambda: Augment(kind="papper"), "did you mean paper?"),
        (lambda: settings("paper", fisheyes="off"), "unknown augmentation: fisheyes\n  fix: did you mean fisheye?"),
        (lambda: settings("paper", fourier={"bta": 1}), "unknown key of fourier: bta\n  fix: did you mean beta?"),
        (lambda: settings("paper", fisheye={"p": 2}), "fisheye.p is 2"),
        (lambda: settings("paper", fisheye="strong"), "fisheye is 'strong'"),
        (lambda: settings("paper", fisheye=Stain()), "fisheye is Stain"),
        (lambda: settings("paper", shift={"scale": [0.1, 1]}), "shift.scale"),
        (lambda: Shift(pixels=64), "shift.pixels is 64"),
    ],
)
def test_wrong_settings_say_what_is_wrong(make, says):
    with pytest.raises(UsageError) as caught:
        make()
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_in_a_patch_out(patch, kind):
    before = patch.copy()
    frozen = patch.copy()
    frozen.flags.writeable = False
    for position in range(20):
        out = run(settings(kind), frozen, (0, "uni", 0, 0, position))
        assert out.shape == (128, 128, 3) and out.dtype == np.uint8
        assert out.flags.c_contiguous and out.flags.writeable and not np.shares_memory(out, frozen)
    np.testing.assert_array_equal(frozen, before)


def test_none_changes_nothing(patch):
    np.testing.assert_array_equal(run(settings("none"), patch), patch)
    off = settings("strong", **{name: {"p": 0.0} for name in TRANSFORMS})
    np.testing.assert_array_equal(run(off, patch), patch)


@pytest.mark.parametrize("kind", ["light", "paper", "strong"])
def test_the_same_draw_gives_the_same_bytes_and_another_draw_others(patch, kind):
    policy = build_policy(settings(kind), natural_targets())
    keys = [(seed, member, fold, epoch, at) for seed in (0, 1) for member in "ab" for fold in (0, 1) for epoch in (0, 1)
            for at in (0, 1)]  # fmt: skip
    first = [policy(patch, sample_rng(*key)).tobytes() for key in keys]
    assert first == [policy(patch, sample_rng(*key)).tobytes() for key in keys]
    assert len(set(first)) == len(keys)
    with ThreadPoolExecutor(4) as pool:
        assert first == list(pool.map(lambda key: policy(patch, sample_rng(*key)).tobytes(), keys))


def test_the_generator_does_not_care_for_the_type_of_a_number():
    one = sample_rng(0, "uni", 1, 2, 3).random(4)
    np.testing.assert_array_equal(one, sample_rng(np.int64(0), "uni", np.int32(1), np.int64(2), np.int64(3)).random(4))
    assert not np.array_equal(one, sample_rng(0, "uni", 12, 3, 3).random(4))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_alone_changes_the_patch(patch, name):
    augment = settings("none", **{name: {"p": 1.0}})
    outs = [run(augment, patch, (0, "uni", 0, 0, at)) for at in range(4)]
    assert any(not np.array_equal(out, patch) for out in outs)
    assert len({out.tobytes() for out in outs}) > 1


@pytest.mark.parametrize("name", TRANSFORMS)
def test_switching_one_transform_off_leaves_the_draws_of_the_others(name):
    whole = settings("strong", **{other: {"p": 0.5} for other in TRANSFORMS})
    reduced = dataclasses.replace(whole, **{name: None})
    for at in range(10):
        one, other = (build_policy(a, natural_targets())._draw(sample_rng(0, "m", 0, 0, at)) for a in (whole, reduced))
        assert other == {key: u for key, u in one.items() if key != name}


def test_transforms_happen_as_often_as_p_says():
    policy = build_policy(settings("strong", normalise="on"), natural_targets())
    drawn = [policy._draw(sample_rng(0, "m", 0, 0, at)) for at in range(2000)]
    for name in TRANSFORMS:
        share = np.mean([name in one for one in drawn])
        assert share == pytest.approx(getattr(policy.augment, name).p, abs=0.04)


@pytest.mark.parametrize("name", DIHEDRAL)
def test_turn_is_the_view_of_pixels(patch, name):
    view = apply_view(patch.transpose(2, 0, 1), name).transpose(1, 2, 0)
    np.testing.assert_array_equal(turn(patch, name), view)


def test_all_eight_symmetries_are_drawn(patch):
    augment = settings("none", dihedral={"p": 1.0})
    outs = {run(augment, patch, (0, "uni", 0, 0, at)).tobytes() for at in range(100)}
    assert outs == {turn(patch, name).tobytes() for name in DIHEDRAL}


def test_only_squares_can_be_turned(patch):
    with pytest.raises(UsageError, match="square patches"):
        turn(patch[:100], "rot90")
    with pytest.raises(UsageError, match="unknown view"):
        turn(patch, "rot45")


def test_shifts_stay_within_their_pixels():
    dot = np.zeros((128, 128, 3), np.uint8)
    dot[60:68, 60:68] = 255
    seen = []
    for at in range(60):
        out = run(settings("none", shift={"p": 1.0, "scale": [1, 1]}), dot, (0, "uni", 0, 0, at))[..., 0].astype(float)
        seen.append(np.average(np.indices(out.shape).reshape(2, -1), axis=1, weights=out.ravel()) - 63.5)
    assert 4 < np.abs(seen).max() <= 5.1 and np.abs(np.mean(seen, axis=0)).max() < 1.5


def test_fda_without_targets_is_an_error_never_a_skip():
    for none in (None, ()):
        with pytest.raises(DataError, match="there are no targets"):
            build_policy(settings("paper"), none)
        build_policy(settings("paper", fourier="off"), none)
        build_policy(settings("paper", fourier={"p": 0}), none)


def test_targets_that_hold_too_little_are_refused_before_training(patch):
    wide = settings("paper", fourier={"beta": [0.01, 0.2]})
    with pytest.raises(UsageError, match=r"reaches 0\.2, these targets serve beta below 0\.102"):
        build_policy(wide, natural_targets())
    targets = patch_targets([patch], beta_max=0.2)
    for at in range(10):
        build_policy(wide, targets)(patch, sample_rng(0, "m", 0, 0, at))


def test_every_target_is_drawn(patch):
    flat = patch_targets([np.full((128, 128, 3), grey, np.uint8) for grey in (40, 90, 140, 190)])
    policy = build_policy(settings("none", fourier={"p": 1.0}), flat)
    means = {round(policy(patch, sample_rng(0, "m", 0, 0, at)).mean() / 10) * 10 for at in range(40)}
    assert means == {40, 90, 140, 190}


def test_albumentationsx_is_refused(tmp_path, monkeypatch):
    refuse_agpl()
    folder = tmp_path / "albumentationsx-2.0.11.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: albumentationsx\nVersion: 2.0.11\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "augment.transforms", raising=False)
    with pytest.raises(MidogError) as caught:
        refuse_agpl()
    assert caught.value.fix == "pip uninstall albumentationsx && pip install albumentations==2.0.8"
    assert "albumentationsx 2.0.11 is installed; it is AGPL" in str(caught.value)
    with pytest.raises(MidogError, match="AGPL"):
        __import__("augment.transforms")
