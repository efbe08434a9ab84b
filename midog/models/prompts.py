"""Deep visual prompts: learned tokens that join the tokens of every block and are taken out again after it.

Nothing outside the blocks ever sees a prompt: not the next block, not the last norm, not pooling. They are the
parameters `blocks.N.prompts` (count, width); every other name stays timm's.

Source: Jia et al. 2022 (VPT-deep): the prompts of one block replace those of the block before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from midog.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

START = 0.02
"""Standard deviation of the truncated normal that prompts start from."""
PART = "prompts"
"""The parameter's name inside its block."""


@dataclass(frozen=True)
class Prompts:
    """`count` learned tokens in every block of a frozen ViT, after its prefix tokens (CLS, registers)."""

    kind: Literal["prompts"] = "prompts"
    count: int = 8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"tune.count is {self.count}", "at least 1; to train the head alone: tune: head")


def prompted_blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """The blocks that take prompts, by name.

    Raises: UsageError for anything but timm's VisionTransformer and Eva (DINOv3): other networks have no tokens, or
        windows and position biases that leave no room for more.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(backbone, VisionTransformer | Eva):
        raise UsageError(f"{type(backbone).__name__} takes no prompts, only plain ViTs do", "tune: lora, last or full")
    return {f"blocks.{name}": block for name, block in backbone.blocks.named_children()}


def insert_prompts(backbone: nn.Module, count: int) -> Callable[[], None]:
    """Give every block `count` prompts, in place, at zero.

    Returns: a function that takes them out again and leaves the backbone as it was.

    Raises: UsageError as `prompted_blocks` does.
    """
    import torch

    blocks = list(prompted_blocks(backbone).values())
    prefix, width = int(backbone.num_prefix_tokens), int(backbone.embed_dim)  # type: ignore[arg-type]
    hooks = []
    for block in blocks:
        prompts = torch.zeros(count, width, device=next(block.parameters()).device)
        block.register_parameter(PART, torch.nn.Parameter(prompts))
        hooks.append(block.register_forward_pre_hook(partial(_join, prefix)))
        hooks.append(block.register_forward_hook(partial(_leave, prefix)))
        _shift_rotary(block, count)

    def remove() -> None:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            delattr(block, PART)
            _shift_rotary(block, -count)

    return remove


def _shift_rotary(block: Any, count: int) -> None:
    """Rotary positions start after `attn.num_prefix_tokens`; prompts have no place in the grid."""
    attention = getattr(block, "attn", None)
    if attention is not None and hasattr(attention, "num_prefix_tokens"):
        attention.num_prefix_tokens += count


def _join(prefix: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """(n, prefix + patches, width) to (n, prefix + count + patches, width)."""
    import torch

    x, *others = inputs
    prompts = block.prompts.to(x.dtype).expand(len(x), -1, -1)
    return (torch.cat((x[:, :prefix], prompts, x[:, prefix:]), dim=1), *others)


def _leave(prefix: int, block: Any, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
    """The way back."""
    import torch

    return torch.cat((x[:, :prefix], x[:, prefix + len(block.prompts) :]), dim=1)
