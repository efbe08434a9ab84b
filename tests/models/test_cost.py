"""Costs against closed forms, published figures, and what torch's profiler sees of a real step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from midog.models.backbones import find_backbone
from midog.models.classifier import (
    BACKBONE,
    Classifier,
    backbone_state,
    build_classifier,
    fold_state,
    round_trained,
)
from midog.models.cost import (
    bundle_bytes,
    describe,
    forward_flops,
    matrix_rate,
    predict_memory,
    step_flops,
    training_memory,
)
from midog.models.network import Network
from midog.models.predict import autocast
from midog.models.preprocess import Image
from midog.models.tuning import Frozen, Full, Last, Lora, Tune

CLASSES = 1000


def network(name: str, tune: Tune, size: int | str = "native") -> Network:
    return Network(find_backbone(name), "random", Image(size=size), tune)


class Vit:
    """The operations of a plain ViT, from its widths: a multiply-add is two."""

    def __init__(self, width: int, depth: int, side: int, patch: int = 16) -> None:
        patches = (side // patch) ** 2
        tokens = patches + 1
        self.embedding = 2 * patches * 3 * patch**2 * width
        self.qkv = 2 * tokens * 3 * width**2
        self.attention = 4 * tokens**2 * width
        self.block = 2 * tokens * 12 * width**2 + self.attention
        self.forward = self.embedding + depth * self.block
        self.adapter = 2 * tokens * width  # of rank 1, per width of input or output
        self.attentions = depth * self.attention
        self.adapters = depth * self.adapter * (4 + 2 + 5 + 5)  # qkv, proj, fc1, fc2: input and output


@pytest.mark.parametrize(
    ("name", "width", "depth", "size"),
    [
        ("vit_tiny_patch16_224", 192, 12, 224),
        ("vit_base_patch16_224", 768, 12, 224),
        ("vit_base_patch16_224", 768, 12, 96),
        ("vit_large_patch16_224", 1024, 24, 224),
    ],
)
def test_forward_of_a_vit(name: str, width: int, depth: int, size: int) -> None:
    record = find_backbone(name)
    assert forward_flops(record, size) == Vit(width, depth, size).forward
    if size == record.input_size:
        assert forward_flops(record) == forward_flops(record, size)


@pytest.mark.parametrize(
    ("name", "size", "published"),
    [
        # Thousand millions of multiply-adds, classifier included. torchvision's table of models, …
        ("vit_base_patch16_224", 224, "17.56"),
        ("vit_large_patch16_224", 224, "61.55"),
        ("convnext_tiny_dinov3", 224, "4.46"),
        ("convnext_small", 224, "8.68"),
        ("convnext_base", 224, "15.36"),
        ("convnext_large_dinov3", 224, "34.36"),
        # … Liu et al. 2021, table 1, …
        ("swin_base_patch4_window7_224", 224, "15.4"),
        # … and timm's card.
        ("convnextv2_huge", 224, "115.0"),
    ],
)
def test_forward_as_published(name: str, size: int, published: str) -> None:
    record = find_backbone(name)
    assert record.features is not None
    counted = (forward_flops(record, size) / 2 + CLASSES * record.features) / 1e9
    last_digit = 10.0 ** -len(published.partition(".")[2])
    # Some additions and norms are in the published figures.
    assert counted == pytest.approx(float(published), abs=last_digit)


@pytest.mark.parametrize(
    ("tune", "expected"),
    [
        (Frozen(), lambda vit: vit.forward),
        # Nothing asks for the gradient of the pixels.
        (Full(), lambda vit: 3 * vit.forward - vit.embedding),
        (Last(blocks=3), lambda vit: vit.forward + 2 * 3 * vit.block),
        # Attention has no weights: both its operands take gradients. Nothing asks for that of the first layer's input.
        (
            Lora(rank=4),
            lambda vit: (
                2 * vit.forward + (vit.attentions - vit.embedding - vit.qkv) + 4 * (3 * vit.adapters - vit.adapter)
            ),
        ),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_step_of_a_vit(tune: Tune, expected: Callable[[Vit], int]) -> None:
    assert step_flops(network("vit_tiny_patch16_224", tune)) == expected(Vit(192, 12, 224))


def test_lora_takes_two_thirds_of_full_training() -> None:
    lora, full = (step_flops(network("vit_base_patch16_224", tune)) for tune in (Lora(), Full()))
    assert 0.66 < lora / full < 0.70


def profiled(net: Network, batch: int, dtype: torch.dtype, checkpointing: bool) -> int:
    """Bytes at most during a real step, as torch's profiler sees the allocator, AdamW's moments added."""
    classifier: Any = build_classifier(net)
    if checkpointing:
        classifier.backbone.set_grad_checkpointing(True)
    size = net.backbone.input_size
    x = torch.randn(batch, 3, size, size)
    held = sum(tensor.nbytes for tensor in (x, *classifier.parameters(), *classifier.buffers()))
    moments = 8 * sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        with autocast(x.device, dtype):
            logits = classifier(x)
        logits.sum().backward()
    results: Any = profile.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return held + moments + int(np.cumsum([event.nbytes() for event in changes]).max())


@pytest.mark.parametrize(
    ("name", "tune", "batch", "dtype", "checkpointing"),
    [
        ("vit_small_patch16_224", Lora(), 8, torch.float32, False),
        ("vit_tiny_patch16_224", Lora(), 4, torch.float32, True),
        ("vit_tiny_patch16_224", Lora(), 4, torch.bfloat16, False),
        ("vit_tiny_patch16_224", Last(), 4, torch.float32, False),
        ("test_vit", Lora(kind="dora"), 8, torch.float32, False),
        ("test_vit", Full(), 8, torch.bfloat16, False),
        ("test_convnextv2", Lora(), 8, torch.float32, False),
        ("test_efficientnet", Full(), 8, torch.float32, False),
    ],
    ids=str,
)
def test_memory_of_a_step_is_what_it_takes(
    name: str, tune: Tune, batch: int, dtype: torch.dtype, checkpointing: bool
) -> None:
    net = network(name, tune)
    measured = profiled(net, batch, dtype, checkpointing)
    assert training_memory(net, batch, dtype, checkpointing) == pytest.approx(measured, rel=0.1)


def test_memory_orders_the_ways_to_train() -> None:
    def memory(tune: Tune, batch: int = 16, dtype: torch.dtype = torch.bfloat16, checkpointing: bool = False) -> int:
        return training_memory(network("vit_base_patch16_224", tune), batch, dtype, checkpointing)

    parameters = find_backbone("vit_base_patch16_224").parameters
    assert parameters is not None
    assert memory(Frozen()) < memory(Last()) < memory(Lora()) < memory(Full())
    assert memory(Lora(), checkpointing=True) < 0.5 * memory(Lora())
    assert memory(Lora()) < memory(Lora(), dtype=torch.float32)
    # Weights and moments; then weights, gradients and moments of full training.
    assert memory(Frozen(), batch=1) > 4 * parameters
    assert memory(Full(), batch=1) > 16 * parameters
    # Activations grow with the batch, nothing else does.
    assert memory(Lora(), 32) - memory(Lora(), 16) == pytest.approx(
        2 * (memory(Lora(), 16) - memory(Lora(), 8)), rel=0.02
    )


def test_memory_to_predict_is_the_weights_and_a_layer() -> None:
    record = find_backbone("vit_large_patch16_224")
    assert record.parameters is not None
    one, many = (predict_memory(record, batch, torch.float32) for batch in (1, 16))
    assert 4 * record.parameters < one < 4.2 * record.parameters
    assert many - one < 0.2 * one


def test_cuda_computes_norms_in_float32() -> None:
    """Without it, the bfloat16 steps of ConvNeXts would look a quarter smaller than they are on a GPU."""
    net = network("test_convnextv2", Lora())
    assert training_memory(net, 8, torch.bfloat16) > 1.2 * profiled(net, 8, torch.bfloat16, False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("test_vit", kind) for kind in ("lora", "dora", "prompts", "last", "full", "head")),
        *(("test_convnextv2", kind) for kind in ("lora", "dora", "last", "full", "head")),
        *(("test_efficientnet", kind) for kind in ("last", "full", "head")),
    ],
)
def test_bundle_is_what_is_stored(
    name: str, kind: str, train: Callable[..., Classifier], patches: NDArray[np.uint8]
) -> None:
    net = Network.from_dict({"backbone": name, "pretrained": "random", "tune": {"kind": kind}})
    classifier = train(net, patches)
    round_trained(classifier)
    fold = fold_state(classifier)
    left = {key: value for key, value in backbone_state(classifier).items() if BACKBONE + key not in fold}
    stored = [sum(tensor.nbytes for tensor in state.values()) for state in (fold, left)]
    assert bundle_bytes([net], 5) == 5 * stored[0] + stored[1]


@pytest.mark.parametrize("name", ["mobilenetv2_100", "convnextv2_atto", "efficientvit_l2"])
def test_grouped_convolutions_take_twice_their_forward_backwards(name: str) -> None:
    """A full step is three forwards, less the image's own gradient, which nobody asks for."""
    forward, step = forward_flops(find_backbone(name)), step_flops(network(name, Full()))
    assert 2.8 * forward < step <= 3 * forward


def test_bundle_holds_a_shared_backbone_once() -> None:
    lora, head = network("test_vit", Lora()), network("test_vit", Frozen())
    other = replace(lora, seed=1)  # other random weights: another backbone
    parameters = find_backbone("test_vit").parameters
    assert parameters is not None
    assert bundle_bytes([lora, head], 3) == bundle_bytes([lora], 3) + bundle_bytes([head], 3) - 2 * parameters
    assert bundle_bytes([lora, other], 3) == 2 * bundle_bytes([lora], 3)
    # What a fully trained member brings along is still needed by the other one.
    full = network("test_vit", Full())
    assert bundle_bytes([full, lora], 3) == bundle_bytes([full], 3) + bundle_bytes([lora], 3)


def test_describe_gives_one_row() -> None:
    row = describe(find_backbone("virchow2"))
    assert row["name"] == "virchow2"
    assert row["parameters_m"] == pytest.approx(631.239424)
    assert row["gflop"] == pytest.approx(340.1, abs=0.1)
    assert (row["weights_mb"], row["gated"], row["features"]) == (1262, "yes", 2560)
    assert 10 < row["lora_gb"] < 30
    assert describe(find_backbone("mobilenetv2_100"))["lora_gb"] is None


def test_counting_draws_nothing_and_repeats() -> None:
    before = torch.random.get_rng_state()
    net = network("test_vit", Lora(dropout=0.1))
    assert step_flops(net) == step_flops(replace(net, seed=7))
    assert training_memory(net, 3, torch.float32) == training_memory(net, 3, torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_matrix_rate_is_a_rate() -> None:
    rate = matrix_rate("cpu", torch.float32)
    assert math.isfinite(rate) and rate > 1e8
