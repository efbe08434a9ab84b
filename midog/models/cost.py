"""What a network costs: floating-point work and memory, counted once for every consumer.

Nothing is estimated by rule of thumb. A step is carried out on tensors without contents, of the real network with its
real tuning, while two things are counted: the matrix products (a multiply-add is two operations; norms, activations
and sums, below one per cent, are left out) and the bytes alive at each moment. It takes a second, and no memory.

What follows from the counting rather than being put in. Of a full step's three equal shares (forward, gradients of
activations, gradients of weights) autograd skips the third for frozen layers, all but the forward where no layer before
them is trained: a LoRA step costs a little over two thirds of a full one, the head alone one forward. Under autocast
each frozen weight is cast anew in every forward, and the cast is kept until the backward pass has used it: 2 bytes per
weight beside the 4.

What is counted is what a GPU does: fused attention, and CUDA's choice of what autocast computes in 16 bit. The head,
some thousand operations, is left out, and so is what a device keeps for itself: its context, workspaces and fragments,
some hundred megabytes. A CPU's allocator may hold up to twice the bytes that are alive.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from midog.models.backbones import Backbone

if TYPE_CHECKING:
    import torch

    from midog.models.classifier import Classifier
    from midog.models.network import Network

SHAPING = ("timm", "timm_kwargs", "input_size", "patch", "pooling", "prefix_tokens", "lora_targets")
"""Fields of a record that decide what it costs; two records that agree in them are counted once."""
MOMENTS = 8
"""Bytes that AdamW keeps per trained parameter: two float32."""
LISTED_BATCH = 32
"""Patches per step in the memory that `describe` gives."""


@dataclass(frozen=True)
class Counted:
    """A pass over one batch: operations, bytes at most (without the optimizer's moments), how many parameters."""

    flops: int
    peak: int
    parameters: int  # of the backbone, with what tuning adds to it
    trained: int


def forward_flops(record: Backbone, size: int | None = None) -> int:
    """Operations of one patch through the backbone, attention included.

    Args:
        record: The backbone.
        size: Side of the square input in pixels; None is the backbone's own.
    """
    import torch

    return _counted(_key(_probe(record, size)), 1, torch.float32, False, False).flops


def step_flops(network: Network) -> int:
    """Operations per patch of a training step: forward, gradients of activations, gradients of trained weights.

    What gradient checkpointing computes twice is counted once: it is no progress.
    """
    import torch

    # Batch norms need two patches to train.
    return _counted(_key(network), 2, torch.float32, True, False).flops // 2


def training_memory(network: Network, batch: int, dtype: torch.dtype, checkpointing: bool = False) -> int:
    """Bytes at most during a training step: weights, gradients, AdamW's moments, activations.

    Args:
        network: What is trained; a running mean of the weights (`training.ema`) is not part of it.
        batch: Patches that go through the network at once.
        dtype: Autocast's; float32 without it.
        checkpointing: Whether activations are computed again in the backward pass.
    """
    counted = _counted(_key(network), batch, dtype, True, checkpointing)
    return counted.peak + MOMENTS * counted.trained


def predict_memory(record: Backbone, batch: int, dtype: torch.dtype, size: int | None = None) -> int:
    """Bytes at most while a batch is predicted. The weights are in float32, whatever autocast's `dtype`.

    `size` is the side of the square input in pixels; None is the backbone's own.
    """
    return _counted(_key(_probe(record, size)), batch, dtype, False, False).peak


def parameter_counts(network: Network) -> tuple[int, int]:
    """Parameters of the backbone with what tuning adds to it, and how many of them and of the head are trained."""
    import torch

    counted = _counted(_key(network), 1, torch.float32, False, False)
    return counted.parameters, counted.trained


def bundle_bytes(networks: Sequence[Network], folds: int, whole: Sequence[Network] = ()) -> int:
    """Bytes of the weights in a bundle of these members with `folds` fold models each, before compression.

    A backbone is stored once, in float16 with its buffers as they are, without the tensors that every fold model on it
    brings along. A fold model holds what was trained and its head in float16, and the buffers of batch norms that it
    trained as they are. Fold models of `whole` hold their backbones too.
    """
    from midog.models.classifier import backbone_key

    total, backbones = 0, dict[str, dict[str, int]]()
    for network in networks:
        stored, left = _stored(_skeleton(network))
        total += folds * stored
        backbones.setdefault(backbone_key(network), {}).update(left)
    for network in whole:
        stored, left = _stored(_skeleton(network))
        total += folds * (stored + sum(left.values()))
    return total + sum(size for left in backbones.values() for size in left.values())


def _stored(classifier: Classifier) -> tuple[int, dict[str, int]]:
    """Bytes of one fold model, and the bytes of each tensor that it leaves to the backbone's file, by name."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from midog.models.tuning import is_added, plain_name

    backbone = classifier.backbone
    parameters = dict(backbone.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    for module_name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            trained |= {f"{module_name}.{name}" for name, _ in module.named_buffers()}
    stored, left = sum(2 * tensor.numel() for tensor in classifier.head.state_dict().values()), {}
    for wrapped, tensor in backbone.state_dict().items():
        size = 2 * tensor.numel() if wrapped in parameters else tensor.nbytes
        if wrapped in trained or is_added(plain_name(wrapped)):
            stored += size
        else:
            left[plain_name(wrapped)] = size
    return stored, left


def matrix_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product on a device: the best of about a second of trying."""
    import torch

    device = torch.device(device)
    side = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    repeats, best, began = 1 if device.type == "cpu" else 10, float("inf"), time.perf_counter()
    while time.perf_counter() - began < 1:
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            left @ right
        _wait(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return float(2 * side**3 / best)


def _wait(device: torch.device) -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(record: Backbone) -> dict[str, Any]:
    """A row of `midog models list`.

    `parameters_m` are millions, `gflop` the forward of one patch, `weights_mb` the backbone in a bundle (float16), and
    `lora_gb` the memory that a LoRA step of 32 patches in bfloat16 takes (None: no layers for adapters), in gigabytes
    of 10⁹ bytes.
    """
    import torch

    from midog.models.network import Network
    from midog.models.tuning import Lora

    forward = _counted(_key(_probe(record)), 1, torch.float32, False, False)
    lora = None
    if record.lora_targets:
        network = Network(backbone=record, pretrained="random", tune=Lora())
        lora = training_memory(network, LISTED_BATCH, torch.bfloat16) / 1e9
    return {
        "name": record.name,
        "parameters_m": forward.parameters / 1e6,
        "input": record.input_size,
        "patch": record.patch,
        "features": record.features,
        "pooling": record.pooling,
        "gflop": forward.flops / 1e9,
        "weights_mb": round(2 * forward.parameters / 1e6),
        "lora_gb": lora,
        "gated": "yes" if record.gated else "",
        "licence": record.licence,
    }


def _probe(record: Backbone, size: int | None = None) -> Network:
    """A network of which the head alone would be trained."""
    from midog.models.network import Network
    from midog.models.preprocess import Image
    from midog.models.tuning import Frozen

    return Network(backbone=record, pretrained="random", image=Image(size=size or "native"), tune=Frozen())


def _key(network: Network) -> str:
    """A network as text, without what does not change its cost."""
    record = network.backbone
    shaping = {name: getattr(record, name) for name in SHAPING}
    plain = Backbone(name="any", mean=(0, 0, 0), std=(1, 1, 1), **shaping)
    alike = dataclasses.replace(network, backbone=plain, pretrained="random", seed=0)
    return json.dumps(alike.to_dict(), sort_keys=True)


def _skeleton(network: Network) -> Classifier:
    """The classifier as training builds it, tuning included, of tensors without contents."""
    import torch

    from midog.models.build import empty_backbone
    from midog.models.classifier import Classifier
    from midog.models.tuning import apply_tuning

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        backbone = empty_backbone(network.backbone)
        apply_tuning(backbone, network.tune, network.backbone)
        return Classifier(network, backbone).train()


@cache
def _counted(key: str, batch: int, dtype: torch.dtype, training: bool, checkpointing: bool) -> Counted:
    import torch

    from midog.models.meter import LikeCuda, Meter
    from midog.models.network import Network
    from midog.models.preprocess import input_size

    network = Network.from_dict(json.loads(key))
    classifier = _skeleton(network).train(training)
    backbone, size = classifier.backbone, input_size(network.image, network.backbone)
    if checkpointing:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    x = torch.empty(batch, 3, size, size, device="meta")
    with torch.random.fork_rng(devices=[]), Meter() as meter, LikeCuda(dtype), torch.set_grad_enabled(training):
        for tensor in (x, *classifier.parameters(), *classifier.buffers()):
            meter.watch(tensor)
        if training and classifier.head.wants_frozen:
            classifier.look_untuned(x)
        features = classifier.look(x)
        if features.requires_grad:
            # Not `Tensor.backward`, which would leave LikeCuda, and checkpointing computes the forward again in there.
            torch.autograd.backward(features.float().sum())
    parameters = sum(tensor.numel() for tensor in classifier.backbone.parameters())
    trained = sum(tensor.numel() for tensor in classifier.parameters() if tensor.requires_grad)
    return Counted(meter.flops, meter.peak, parameters, trained)
