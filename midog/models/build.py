"""From a backbone's record to the network: random, with its published weights, or empty for a state that comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from midog.models.backbones import Backbone, find_backbone
from midog.models.timm_import import create_network
from midog.models.weights import find_weights, load_pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def empty_backbone(record: Backbone) -> nn.Module:
    """The network with exact buffers and *uninitialised* parameters, for a state that is loaded next.

    Initialising a ViT-H takes longer than reading its weights. Parameters stay untouched memory; buffers, also those
    that no state dict holds (rotary tables), are computed as always.
    """
    with _without_initialisation():
        return create_network(record.timm, record.timm_kwargs)


@contextmanager
def _without_initialisation() -> Iterator[None]:
    from torch import nn
    from torch.overrides import TorchFunctionMode

    class Skip(TorchFunctionMode):
        """Leaves out in-place fills of parameters (`uniform_`, `mul_`, …) on this thread."""

        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            target = args[0] if args else kwargs.get("tensor")
            name = getattr(function, "__name__", "")
            in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
            if in_place and isinstance(target, nn.Parameter):
                return target
            return function(*args, **kwargs)

    with Skip():
        yield


def build_backbone(
    name: str | Mapping[str, Any] | Backbone,
    pretrained: str = "random",
    seed: int = 0,
    weights: Path | None = None,
) -> nn.Module:
    """The timm network without classifier, in float32 on the CPU.

    Args:
        name: Registry name, `timm/<name>`, or a record.
        pretrained: `random` (reproducible from `seed`), `record` (the record's published file), or a path.
        seed: Seed of the random initialisation; torch's own generator is left as it was.
        weights: Folder (or file) to look for pretrained weights in; see `weights.find_weights`.

    Raises: UsageError for an unknown backbone; WeightsError when its weights are missing or do not fit.
    """
    import torch

    record = find_backbone(name)
    if pretrained == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_network(record.timm, record.timm_kwargs)
    path = find_weights(record, pretrained, weights)
    model = empty_backbone(record)
    load_pretrained(model, path, record)
    return model
