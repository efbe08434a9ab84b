"""Published checkpoints that are pickled: their tensors are read, and nothing in them is executed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model", "teacher")
"""Keys below which training checkpoints keep the tensors of the network that their authors use."""


def is_safetensors(path: Path) -> bool:
    """By content: eight bytes of length, then a JSON object."""
    with path.open("rb") as handle:
        return handle.read(9)[8:] == b"{"


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint, mapped from the file where its format allows; nothing in it is executed.

    A checkpoint that wraps them (`state_dict`, `model`, `teacher`) is unwrapped; what is no tensor is left out.

    Raises: WeightsError when it holds anything but tensors and plain values, none at all, or is damaged.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a foreign file provokes in the reader
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise WeightsError(
                f"{path} holds code ({found[1]}), not only tensors: refused, and nothing of it was run",
                "use a safetensors file of the model, or one that its authors saved as a plain state dict",
            ) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "Weights only load failed" in reason:
            reason = "it is neither safetensors nor a file of torch"
        raise WeightsError(f"{path} is not a readable checkpoint: {reason}", "it is damaged: get it again") from error
    tensors = _unwrapped(content)
    if not tensors:
        seen = [str(key) for key in content][:10] if isinstance(content, Mapping) else [type(content).__name__]
        raise WeightsError(
            f"{path} holds no tensors by name", "name the model's own file", [f"seen: {', '.join(seen)}"]
        )
    return _apart(tensors)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        inner = _unwrapped(content.get(key))
        if inner:
            return inner
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor with memory of its own, as safetensors stores them; only those that share are copied."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        storage = value.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != value.nbytes
        seen.add(storage.data_ptr())
        apart[name] = value.clone() if shared else value
    return apart
