from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.macenko import macenko_patches
from augment.reinhard import reinhard_patches
from augment.views import DIHEDRAL, VIEW_NAMES, VIEW_SETS
from midog.errors import UsageError
from midog.models.backbones import find_backbone
from midog.models.classifier import Classifier, Network, build_classifier
from midog.models.predict import RECOLOURED, autocast, pick_batch, pick_device, pick_precision, predict_logits
from midog.models.preprocess import Image


def classifier(name: str = "test_vit") -> Classifier:
    built = build_classifier(Network(find_backbone(name), "random", Image(crop=64, size=64)))
    torch.nn.init.normal_(built.head.linear.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return built


MODEL = classifier()
PATCHES = np.random.default_rng(3).integers(0, 256, (7, 128, 128, 3), dtype=np.uint8)
ALONE = np.concatenate([predict_logits(MODEL, PATCHES[i : i + 1], VIEW_NAMES, "cpu") for i in range(7)])


def test_one_view_is_the_plain_forward() -> None:
    with torch.no_grad():
        expected = MODEL.eval()(MODEL.prepare(PATCHES)).double().numpy()
    found = predict_logits(MODEL, PATCHES, device="cpu")
    assert (found.shape, found.dtype) == ((7, 1), np.float64)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize(("view", "recolour"), [("normalised", reinhard_patches), ("macenko", macenko_patches)])
def test_a_normalised_view_is_the_normalised_patch_itself(view: str, recolour: Any) -> None:
    seen = predict_logits(MODEL, PATCHES, (view,), "cpu")
    np.testing.assert_array_equal(seen, predict_logits(MODEL, recolour(PATCHES), ("identity",), "cpu"))
    assert np.abs(seen - ALONE[:, :1]).max() > 0.01
    assert set(RECOLOURED) == set(VIEW_NAMES) - set(DIHEDRAL)


@settings(max_examples=15, deadline=None)
@given(order=st.lists(st.integers(0, 6), min_size=1, max_size=10), batch=st.integers(1, 12))
def test_companions_do_not_change_a_logit(order: list[int], batch: int) -> None:
    found = predict_logits(MODEL, PATCHES[order], VIEW_NAMES, "cpu", batch=batch)
    np.testing.assert_allclose(found, ALONE[order], atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_averaged_views_do_not_care_how_the_patch_lay(name: str) -> None:
    model = classifier(name)
    turned, mirrored = np.rot90(PATCHES, 1, (1, 2)), PATCHES[:, :, ::-1]
    plain = predict_logits(model, PATCHES, VIEW_SETS["d4"], "cpu").mean(1)
    for other in (turned, mirrored):
        again = predict_logits(model, np.ascontiguousarray(other), VIEW_SETS["d4"], "cpu").mean(1)
        np.testing.assert_allclose(again, plain, atol=1e-4)
    rotations = predict_logits(model, PATCHES, VIEW_SETS["rot4"], "cpu").mean(1)
    turned_rotations = predict_logits(model, np.ascontiguousarray(turned), VIEW_SETS["rot4"], "cpu").mean(1)
    np.testing.assert_allclose(turned_rotations, rotations, atol=1e-4)
    mirrored_rotations = predict_logits(model, np.ascontiguousarray(mirrored), VIEW_SETS["rot4"], "cpu").mean(1)
    assert np.abs(mirrored_rotations - rotations).max() > 1e-3


def test_training_mode_comes_back() -> None:
    model = classifier("test_efficientnet").train()
    statistics = model.backbone.bn1.running_mean.clone()
    predict_logits(model, PATCHES, device="cpu")
    assert model.training
    assert torch.equal(model.backbone.bn1.running_mean, statistics)
    with pytest.raises(IndexError):
        predict_logits(model, _Broken(), device="cpu")
    assert model.training


class _Broken:
    """A pixel store whose file vanished half-way."""

    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        if index.max() >= 64:
            raise IndexError("gone")
        return np.zeros((len(index), 128, 128, 3), dtype=np.uint8)


def test_no_patches_give_no_logits() -> None:
    assert predict_logits(MODEL, PATCHES[:0], VIEW_NAMES, "cpu").shape == (0, 10)


def test_what_half_precision_cannot_hold_is_computed_again() -> None:
    """fp16 overflows at 65,504; the answer in float32 is finite."""
    model = classifier("test_efficientnet")
    with torch.no_grad():
        model.backbone.conv_stem.weight.mul_(1e6)
    expected = predict_logits(model, PATCHES, device="cpu", precision="float32")
    with torch.no_grad(), autocast(torch.device("cpu"), torch.float16):
        assert not torch.isfinite(model.eval()(model.prepare(PATCHES))).all()
    found = predict_logits(model, PATCHES, device="cpu", precision="fp16")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_page_that_half_precision_cannot_hold_leaves_its_neighbours_alone() -> None:
    """Noise overflows, a nearly grey page does not: its logit is that of half precision, whatever it stands beside."""
    model = classifier("test_efficientnet")
    with torch.no_grad():
        model.backbone.conv_stem.weight.mul_(1e5)
    grey = np.full((1, 128, 128, 3), 128, dtype=np.uint8)
    grey[:, ::2] = 130
    alone, exact = (predict_logits(model, grey, device="cpu", precision=name)[0, 0] for name in ("fp16", "float32"))
    both = np.concatenate([PATCHES[:1], grey])
    with torch.no_grad(), autocast(torch.device("cpu"), torch.float16):
        assert torch.isfinite(model.eval()(model.prepare(both))).tolist() == [False, True]
    found = predict_logits(model, both, device="cpu", precision="fp16", batch=2)[1, 0]
    assert abs(found - alone) < abs(exact - alone) / 10


def test_bfloat16_is_near() -> None:
    found = predict_logits(MODEL, PATCHES, device="cpu", precision="bf16")[:, 0]
    assert 0 < np.abs(found - ALONE[:, 0]).max() < 0.1


def test_devices_and_precisions() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_precision(torch.device("cpu")) == torch.float32
    assert pick_precision(torch.device("cpu"), "bf16") == torch.bfloat16
    with pytest.raises(UsageError, match="unknown device"):
        pick_device("gpu0")
    with pytest.raises(UsageError, match="no such device here"):
        pick_device("cuda:63")
    with pytest.raises(UsageError, match="unknown precision"):
        pick_precision(torch.device("cpu"), "fp8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_agrees_with_the_processor() -> None:
    found = predict_logits(classifier(), PATCHES, VIEW_NAMES, "cuda", precision="float32")
    np.testing.assert_allclose(found, ALONE, atol=1e-3)


def test_too_little_memory_halves_the_batch() -> None:
    """A hook stands in for the card: it runs out above two images. The answers are the same, all batches small."""
    model, sizes = classifier(), []

    def card(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(card)
    found = predict_logits(model, PATCHES, VIEW_NAMES, "cpu", batch=7)
    np.testing.assert_allclose(found, ALONE, atol=1e-5)
    assert sizes[:2] == [7, 3]
    assert max(sizes[2:]) == 1


def test_no_memory_at_all_moves_to_the_processor() -> None:
    model, sizes = classifier(), []

    def card(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if torch.is_autocast_enabled("cpu"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(inputs[0]))

    model.register_forward_pre_hook(card)
    np.testing.assert_allclose(predict_logits(model, PATCHES, VIEW_NAMES, "cpu", 4, "bf16"), ALONE, atol=1e-5)
    assert max(sizes) == pick_batch(torch.device("cpu"))
