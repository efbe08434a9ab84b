"""ComBat in closed form and against neuroCombat; pixels made alike on the one path to a network's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from augment.low_pass import LowPass, low_pass
from augment.reinhard import TYPICAL, reinhard
from augment.stain import jitter_stain
from midog.data.synthetic import draw_patch
from midog.errors import DataError, UsageError
from midog.models.backbones import find_backbone
from midog.models.harmonise import Harmonise, MacenkoStains, ReinhardColour, fit_combat, harmonise_pixels
from midog.models.network import Network
from midog.models.preprocess import Image, prepare, prepare_pixels

RECORD = find_backbone("mobilenetv2_100")


def drawn(seed: int = 0, d: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of three batches that differ in place and spread, and a label that moves them."""
    rng = np.random.default_rng(seed)
    batch = np.repeat(["a", "b", "c"], [20, 30, 40])
    label = rng.integers(0, 2, 90)
    shift, spread = rng.normal(0, 2, (3, d)), rng.uniform(0.5, 2, (3, d))
    code = np.repeat([0, 1, 2], [20, 30, 40])
    features = rng.normal(size=(90, d)) * spread[code] + shift[code] + 3 * label[:, None]
    return features, batch, label


def test_without_shrinking_every_batch_gets_one_mean_and_one_variance() -> None:
    features, batch, _ = drawn()
    out = fit_combat(features, batch, eb=False).transform(features, batch)
    means = np.array([out[batch == name].mean(axis=0) for name in "abc"])
    variances = np.array([out[batch == name].var(axis=0, ddof=1) for name in "abc"])
    np.testing.assert_allclose(means, np.broadcast_to(features.mean(axis=0), means.shape), atol=1e-12)
    np.testing.assert_allclose(variances, np.broadcast_to(variances[0], variances.shape), rtol=1e-10)


def test_the_closed_form_by_hand() -> None:
    features, batch, _ = drawn(1, 2)
    means = {name: features[batch == name].mean(axis=0) for name in "abc"}
    v = np.mean((features - np.array([means[name] for name in batch])) ** 2, axis=0)
    z = (features - features.mean(axis=0)) / np.sqrt(v)
    b = batch == "b"
    wanted = np.sqrt(v) * (z[b] - z[b].mean(axis=0)) / z[b].std(axis=0, ddof=1) + features.mean(axis=0)
    out = fit_combat(features, batch, eb=False).transform(features, batch)
    np.testing.assert_allclose(out[b], wanted, atol=1e-12)


def test_shrunk_parameters_lie_between_their_own_and_their_mean() -> None:
    features, batch, _ = drawn()
    own, shrunk = fit_combat(features, batch, eb=False), fit_combat(features, batch)
    between = np.abs(shrunk.gamma - own.gamma.mean(axis=1, keepdims=True))
    assert (between <= np.abs(own.gamma - own.gamma.mean(axis=1, keepdims=True)) + 1e-12).all()
    assert not np.allclose(shrunk.gamma, own.gamma)


def test_what_a_covariate_explains_survives() -> None:
    features, batch, label = drawn()
    features[label == 1] += 5
    label[batch == "a"] = (np.arange(20) < 16).astype(int)  # far more atypical in one batch
    features = np.random.default_rng(0).normal(size=(90, 4)) + 6.0 * label[:, None]
    kept = fit_combat(features, batch, label, eb=False).transform(features, batch, label)
    lost = fit_combat(features, batch, eb=False).transform(features, batch)

    def gap(x: np.ndarray) -> float:
        return float((x[label == 1].mean(axis=0) - x[label == 0].mean(axis=0)).mean())

    assert abs(gap(kept) - 6) < 0.3 and gap(lost) < 5.5


@pytest.mark.parametrize("eb", [False, True])
@pytest.mark.parametrize("covariate", [False, True])
def test_combat_agrees_with_neurocombat(eb: bool, covariate: bool) -> None:
    neurocombat = pytest.importorskip("neuroCombat")
    pandas = pytest.importorskip("pandas")
    features, batch, label = drawn()
    table = pandas.DataFrame({"batch": batch, "label": label})
    theirs = neurocombat.neuroCombat(
        features.T, table, "batch", categorical_cols=["label"] if covariate else None, eb=eb
    )["data"].T
    beside = label if covariate else None
    ours = fit_combat(features, batch, beside, eb).transform(features, batch, beside)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 if eb else 1e-12)


def test_an_unseen_batch_is_refused_or_says_where_its_parameters_come_from() -> None:
    features, batch, _ = drawn()
    combat = fit_combat(features[batch != "c"], batch[batch != "c"], eb=False)
    near = features[batch == "b"] + 0.05
    unseen = np.full(len(near), "new")
    with pytest.raises(DataError, match="never saw the batch new; it knows a, b"):
        combat.transform(near, unseen)
    as_b = combat.transform(near, np.full(len(near), "b"))
    np.testing.assert_array_equal(combat.transform(near, unseen, unseen="nearest"), as_b)
    refitted = combat.refit(near, unseen)
    assert combat.transductive == () and refitted.transductive == ("new",) and refitted.batches == ("a", "b", "new")
    np.testing.assert_allclose(refitted.transform(near, unseen).mean(axis=0), combat.mean, atol=1e-12)
    np.testing.assert_array_equal(
        refitted.transform(features[:20], batch[:20]), combat.transform(features[:20], batch[:20])
    )


def test_features_that_do_not_vary_stay() -> None:
    features, batch, _ = drawn()
    features[:, 3] = 0.1
    for eb in (False, True):
        out = fit_combat(features, batch, eb=eb).transform(features, batch)
        np.testing.assert_allclose(out[:, 3], 0.1, rtol=1e-12)
        assert np.isfinite(out).all()


def test_a_batch_that_is_added_may_hold_features_that_do_not_vary() -> None:
    features, batch, _ = drawn()
    features[:, 3] = 0.1  # nowhere in the fit, but in the new batch
    features[batch == "b", 4] = 0.3  # everywhere but in one batch of the fit
    new = np.random.default_rng(1).normal(size=(20, 8))
    new[:, 5] = 0.7  # in the fit, but not in the new batch
    named = np.full(20, "new")
    for eb in (False, True):
        combat = fit_combat(features, batch, eb=eb)
        out = combat.refit(new, named).transform(new, named)
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out[:, 3], new[:, 3], rtol=1e-12)
        np.testing.assert_allclose(out[:, 5], combat.mean[5], atol=1e-12)
        moved, spread = out.mean(axis=0), out.std(axis=0, ddof=1)
        np.testing.assert_allclose(np.delete(moved, 3), np.delete(combat.mean, 3), atol=1e-12)
        np.testing.assert_allclose(spread[[0, 1, 2, 6, 7]], combat.sd[[0, 1, 2, 6, 7]], rtol=1e-10)
        np.testing.assert_allclose(spread[4], new[:, 4].std(ddof=1), rtol=1e-10)  # moved, not scaled


def test_bad_input_is_named() -> None:
    features, batch, label = drawn()
    for message, arguments in {
        "two batches; here is only a": (features[:20], batch[:20]),
        "of a there is one": (features[19:], batch[19:]),
        "1 patches have features that are not finite": (np.where(np.arange(90)[:, None] == 3, np.nan, features), batch),
        "two features that vary": (features[:, :1], batch),
        "a covariate is constant": (features, batch, np.ones(90)),
        "are needed": (features, batch[:5]),
    }.items():
        with pytest.raises(DataError, match=message):
            fit_combat(*arguments)
    combat = fit_combat(features, batch, label)
    with pytest.raises(DataError, match="0 covariates, ComBat was fitted with 1"):
        combat.transform(features, batch)
    with pytest.raises(DataError, match="3 wide"):
        combat.transform(features[:, :3], batch, label)


# ── pixels ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("image", [Image(128, 128), Image(72, 96)])
def test_patches_are_made_alike_before_anything_is_cut(patches: np.ndarray, image: Image) -> None:
    alike = np.stack([reinhard(patch, *TYPICAL) for patch in patches])
    found = prepare(patches, image, RECORD, harmonise=ReinhardColour())
    wanted = prepare(alike, image, RECORD)
    # The array's are rounded to grey levels, which the resize's kernel may add up.
    assert float((found - wanted).abs().max()) < 0.8 / 255 / min(RECORD.std)
    assert float((found - prepare(patches, image, RECORD)).abs().max()) > 0.1


@pytest.mark.parametrize("settings", [ReinhardColour(), MacenkoStains(), LowPass()])
def test_arrays_tensors_and_floats_take_one_path(patches: np.ndarray, settings: Harmonise) -> None:
    from_array = prepare(patches, Image(64, 64), RECORD, harmonise=settings)
    tensor = torch.from_numpy(patches.copy())
    assert torch.equal(prepare(tensor, Image(64, 64), RECORD, harmonise=settings), from_array)
    x = tensor.permute(0, 3, 1, 2).float() / 255
    assert torch.equal(prepare_pixels(x, Image(64, 64), RECORD, settings), from_array)
    assert harmonise_pixels(x, None) is x


@pytest.mark.parametrize("image", [Image(128, 128), Image(72, 96)])
def test_high_frequencies_are_cut_before_anything_is_cropped(patches: np.ndarray, image: Image) -> None:
    x = torch.from_numpy(patches.copy()).permute(0, 3, 1, 2).float() / 255
    found = prepare(patches, image, RECORD, harmonise=LowPass(radius=20))
    assert torch.equal(found, prepare_pixels(low_pass(x, LowPass(radius=20)), image, RECORD))
    assert float((found - prepare(patches, image, RECORD)).abs().max()) > 0.1
    everything = prepare(patches, image, RECORD, harmonise=LowPass(radius=160))
    torch.testing.assert_close(everything, prepare(patches, image, RECORD), rtol=0, atol=1e-4)


def test_another_scanner_of_the_same_patch_looks_the_same() -> None:
    rng = np.random.default_rng(0)
    patches = np.stack([draw_patch(at % 2 == 0, rng) for at in range(4)])
    other = np.stack([jitter_stain(patch, (1.3, 0.8, 1.0)) for patch in patches])
    for settings in (ReinhardColour(), MacenkoStains()):
        plain, alike = (
            float((prepare(patches, Image(), RECORD, None, s) - prepare(other, Image(), RECORD, None, s)).abs().mean())
            for s in (None, settings)
        )
        assert alike < 0.6 * plain, settings


def test_a_network_says_what_makes_scanners_alike_where_something_does() -> None:
    plain = Network(find_backbone("test_vit"))
    assert "harmonise" not in plain.to_dict() and Network.from_dict(plain.to_dict()) == plain
    for settings, words in (
        (MacenkoStains(), {"kind": "macenko"}),
        (LowPass(radius=40), {"kind": "low_pass", "radius": 40, "of": 224}),
    ):
        network = Network(find_backbone("test_vit"), harmonise=settings)
        assert network.to_dict()["harmonise"] == words and Network.from_dict(network.to_dict()) == network
    for kind in ("makenko", "off"):
        with pytest.raises(UsageError, match="unknown harmonise"):
            Network.from_dict({**plain.to_dict(), "harmonise": {"kind": kind}})
