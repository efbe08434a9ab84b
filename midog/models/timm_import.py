"""timm in a third of the time.

The platform starts a process for every 16 patches, so imports are a good part of a run. Of `import timm`, two thirds
are torch's compiler and sympy, which torchvision imports for one function and timm for one decorator; neither is needed
before somebody compiles a network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

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
