"""timm in a third of the time, and its networks without classifier.

The platform starts a process for every 16 patches, so imports are a good part of a run. Of `import timm`, two thirds
are torch's compiler and sympy, which torchvision imports for one function and timm for one decorator; neither is needed
before somebody compiles a network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from midog.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import nn

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


def import_timm() -> ModuleType:
    """timm. While it is imported for the first time, two small modules stand in for torch's compiler; whoever compiles
    later gets the real one. Where the compiler is there already, or a later timm asks for more, nothing is spared.
    """
    if "timm" not in sys.modules and COMPILER not in sys.modules:
        before = set(sys.modules)
        try:
            with _without_compiler():
                import timm
        except (ImportError, AttributeError):
            for name in set(sys.modules) - before:
                if name.partition(".")[0] in ("timm", "torchvision"):
                    del sys.modules[name]
    import timm

    return timm


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    compiler: Any = ModuleType(COMPILER)
    utils: Any = ModuleType(UTILS)
    compiler.__path__ = []
    compiler.disable = _unchanged  # marks functions of timm's NaFlexViT
    utils.is_compile_supported = lambda device: False  # torchvision's RoI align asks
    sys.modules |= {COMPILER: compiler, UTILS: utils}
    torch._dynamo = compiler
    try:
        yield
    finally:
        for name in (COMPILER, UTILS):
            sys.modules.pop(name, None)
        if torch.__dict__.get("_dynamo") is compiler:
            del torch._dynamo


def _unchanged(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    return function


def create_network(timm_name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """timm's network without classifier. A hub address is refused: building never talks to the network.

    One made for a single channel (`in_chans: 1`) is given the channels of an image one by one.
    """
    from midog.models.channels import channel_by_channel

    timm = import_timm()
    if not timm.is_model(timm_name):
        raise unknown("timm model", timm_name, timm.list_models())
    ignored = [key for key, value in kwargs.items() if value is None]
    if ignored:
        raise UsageError(
            f"timm ignores arguments that are null: {', '.join(ignored)}", "leave them out of `timm_kwargs`"
        )
    try:
        model: nn.Module = timm.create_model(timm_name, pretrained=False, num_classes=0, **_layer_classes(kwargs))
    except TypeError as error:
        raise UsageError(f"timm cannot build {timm_name}: {error}", "check `timm_kwargs` of the backbone") from error
    return channel_by_channel(model) if kwargs.get("in_chans") == 1 else model


def _layer_classes(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for timm: layer classes are named by strings in a record, so that it stays plain data."""
    import timm.layers
    from torch import nn

    found = dict(kwargs)
    for key, value in kwargs.items():
        if key.endswith("_layer") and isinstance(value, str):
            found[key] = getattr(timm.layers, value, None) or getattr(nn, value, value)
    return found
