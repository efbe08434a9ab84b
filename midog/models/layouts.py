"""Published checkpoints under timm's names: which of their tensors make which of ours.

A layout is data: renamings, applied one after the other, and the names that no network here has. Where a new name is
not enough, one of three recipes makes the tensor (`Piece`): parts joined to one matrix, a position added to the CLS
token, a position table without that position. Nothing is resampled: a record builds its file's own position table.

Sources of the names: timm; facebookresearch/dinov2 and dinov3; Hugging Face transformers (ViT, Dinov2, and Dinov2 with
registers, which is also what Hibou's own code calls its tensors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a family of checkpoints names its tensors.

    `names` are (pattern, replacement) of regular expressions; a replacement that ends in [0], [1], … makes a part of a
    tensor, to be joined with the others along the first axis. `dropped` matches published names without a counterpart.
    """

    names: tuple[tuple[str, str], ...] = ()
    dropped: str = r"(?!)"


# Meta's: blocks may be numbered within chunks (blocks.<chunk>.<block>), and w12 is gate and value in one matrix.
DINOV2 = Layout(
    names=(
        (r"^register_tokens$", "reg_token"),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    ),
    dropped=r"mask_token$",
)

# Meta's: w1 is the gate. Rotary periods and the mask of the key's bias are computed, not learned.
DINOV3 = Layout(
    names=(
        (r"^storage_tokens$", "reg_token"),
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"\.mlp\.w1\.", ".mlp.fc1_g."),
        (r"\.mlp\.w2\.", ".mlp.fc1_x."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    ),
    dropped=r"mask_token$|^rope_embed\.|\.bias_mask$|^local_cls_norm\.",
)

# The first matching name of a pair is Dinov2's, the second ViT's.
TRANSFORMERS = Layout(
    names=(
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^layernorm\.", "norm."),
        (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.attention\.query\.(weight|bias)$", r".attn.qkv.\1[0]"),
        (r"\.attention\.attention\.key\.(weight|bias)$", r".attn.qkv.\1[1]"),
        (r"\.attention\.attention\.value\.(weight|bias)$", r".attn.qkv.\1[2]"),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.weights_in\.|\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.mlp\.weights_out\.|\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
    ),
    dropped=r"mask_token$|^pooler\.",
)

LAYOUTS = {"timm": Layout(), "dinov2": DINOV2, "dinov3": DINOV3, "transformers": TRANSFORMERS}
PATCHES = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
"""A tensor that every vision tower has, and nothing else in a file: what stands before it is the tower's prefix."""

Shapes = Mapping[str, tuple[int, ...]]
Recipe = Literal["copy", "join", "add position", "cut position"]


@dataclass(frozen=True)
class Piece:
    """One tensor of ours: the published ones that make it, and how."""

    parts: tuple[str, ...]
    recipe: Recipe = "copy"

    def make(self, parts: Sequence[Tensor]) -> Tensor:
        """`parts` are the tensors named by `self.parts`, on any device, also meta."""
        import torch

        if self.recipe == "join":
            return torch.cat(tuple(parts))
        if self.recipe == "add position":  # of the CLS token (1, 1, d), the first in the table (1, 1 + n, d)
            return parts[0].float() + parts[1][:, :1].float()
        if self.recipe == "cut position":
            return parts[0][:, 1:]
        return parts[0]

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Of the tensor it makes; where its parts do not go together, the first part's."""
        first = shapes[self.parts[0]]
        if self.recipe == "join":
            alike = all(shapes[part][1:] == first[1:] for part in self.parts)
            return (sum(shapes[part][0] for part in self.parts), *first[1:]) if alike and first else first
        if self.recipe == "cut position":
            return (first[0], first[1] - 1, *first[2:])
        return first


def prefixes(names: Iterable[str], recorded: str) -> tuple[str, ...]:
    """Where a file may keep the vision tower: under the recorded prefix if it occurs, then under those in its names.

    A recorded prefix picks one network of several: where it occurs no other will do; where it does not, the file has a
    single tower, or one under a longer prefix that ends in it.
    """
    names = list(names)
    shown = {name.removesuffix(ending) for name in names for ending in PATCHES if name.endswith(ending)}
    # A training checkpoint may hold both networks of a self-distillation; the teacher is the one that authors use.
    ordered = sorted(shown, key=lambda prefix: ("student" in prefix, prefix))
    occurs = any(name.startswith(recorded) for name in names)
    if recorded and (occurs or (len(shown) > 1 and not any(prefix.endswith(recorded) for prefix in shown))):
        return (recorded,)
    if occurs:
        ordered.insert(0, recorded)
    return tuple(dict.fromkeys([*ordered, recorded]))


def translate(shapes: Shapes, wanted: Shapes, layout: str, prefix: str = "") -> dict[str, Piece]:
    """Published tensors under timm's names.

    Args:
        shapes: Name and shape of every tensor in the file.
        wanted: Name and shape of every tensor of the network; only its position table is looked at.
        layout: Key of `LAYOUTS`.
        prefix: Only names that start with it count; it is cut off.

    Returns: by name; what the file lacks is absent, and a published name that no rule knows stays as it is.
    """
    rules = LAYOUTS[layout]
    groups: dict[str, dict[str, str]] = {}
    for published in shapes:
        name = published.removeprefix(prefix)
        if not published.startswith(prefix) or re.search(rules.dropped, name):
            continue
        for pattern, replacement in rules.names:
            name = re.sub(pattern, replacement, name)
        whole, _, part = name.removesuffix("]").partition("[")
        groups.setdefault(whole, {})[part] = published
    pieces = {
        name: Piece(tuple(parts[key] for key in sorted(parts)), "copy" if set(parts) == {""} else "join")
        for name, parts in groups.items()
    }
    cls, table = pieces.get("cls_token"), pieces.get("pos_embed")
    if cls and table and _positions(table.shape(shapes)) == _positions(wanted.get("pos_embed")) + 1:
        # Published with a position for the CLS token; timm's networks with registers have none: it goes to the token.
        pieces["cls_token"] = Piece((*cls.parts, *table.parts), "add position")
        pieces["pos_embed"] = Piece(table.parts, "cut position")
    return pieces


def _positions(shape: tuple[int, ...] | None) -> int:
    return shape[1] if shape is not None and len(shape) == 3 else 0
