"""Counts what a pass through a network takes, on tensors that have a shape and a type but no contents (`meta`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LOWERED = frozenset(
    {"linear", "conv1d", "conv2d", "matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm", "einsum"}
    | {"scaled_dot_product_attention"}
)
"""Functions that CUDA's autocast computes in 16 bit: those that occur in timm's networks."""
RAISED = frozenset({"layer_norm", "group_norm", "norm", "vector_norm", "softmax", "log_softmax", "pow", "rsqrt", "sum"})
"""Functions that it computes in float32."""
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Meter(TorchDispatchMode):
    """Counts while it is entered: `flops` of matrix products (a multiply-add is two), `peak` bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.alive = self.peak = 0
        self._known: dict[int, int] = {}

    def watch(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.alive -= self._known.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.flops += _flops(func._overloadpacket, args, kwargs or {}, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.watch(leaf)
        return out


def _flops(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    if operation is FUSED:
        return _attention_flops(*args[:3])
    if operation is FUSED_BACKWARD:
        # Twice the forward. That a fused kernel computes the scores again is its own affair.
        return 2 * _attention_flops(*args[1:4])
    if operation is torch.ops.aten.convolution_backward:
        # torch's own formula forgets that a grouped convolution sees a part of the channels.
        gradient, _, weight = args[:3]
        return int(2 * gradient.numel() * weight.shape[1:].numel() * sum(args[-1][:2]))
    formula: Callable[..., int] | None = flop_registry.get(operation)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """The scores, and their product with the values; (n, heads, tokens, width) each."""
    return 2 * query.shape[:3].numel() * key.shape[2] * (query.shape[3] + value.shape[3])


class LikeCuda(TorchFunctionMode):
    """Gives tensors without contents what a GPU gives: fused attention, and CUDA's autocast to `dtype`.

    torch itself has neither for them. Attention stands for any fused kernel: they keep the same tensors for the
    backward pass. Without autocast `dtype` is float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self.dtype != torch.float32 and name in LOWERED | RAISED:
            wanted = self.dtype if name in LOWERED else torch.float32
            args = [_cast(value, wanted) for value in args]
            kwargs = {key: _cast(value, wanted) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            return _fused(*args, **kwargs)
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **rest: Any
) -> Tensor:
    out: Tensor = FUSED(query, key, value, attn_mask=attn_mask, scale=rest.get("scale"))[0]
    return out
