"""Checkpoints as they are published: pickled, in both of torch's formats, some with code inside."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch


def pickled(content: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


class Bomb:
    """Runs a command when it is unpickled carelessly: it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.path}",))
