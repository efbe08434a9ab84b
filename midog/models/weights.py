"""Weight files: find the pretrained ones, read and write safetensors, say exactly what does not fit.

Nothing here talks to the network, and nothing here unpickles.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import WeightsError
from midog.files import atomic, check_schema, sha256_file
from midog.models.layouts import LAYOUTS, Piece, prefixes, translate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from midog.models.backbones import Backbone

GENERIC_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin", "model.pth")
"""Names that every hub repository uses: they identify a model only inside a folder of its own name."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
CLASSIFIERS = ("classifier.", "head.", "fc.", "head_dist.")
"""Prefixes of a published checkpoint's own classifier, which a backbone does without."""
SCHEMA_VERSION = 1
MAPPED = 16 << 20
"""Bytes read from a mapped file after which it is mapped anew."""


def find_weights(record: Backbone, pretrained: str = "record", weights: Path | None = None) -> Path:
    """The pretrained file of a backbone on this machine.

    With `pretrained` a path, that file, or that folder searched. Else `weights` (`--pretrained`), then the folder
    `MIDOG_WEIGHTS`; where neither is given, `MIDOG_DATA/weights`. In a folder the names tried are the record's own
    file name, `<name>.safetensors`, and both inside `<name>/`.

    Raises: WeightsError when there is none, with the ways to get it, or when it is not the file the record describes.
    """
    places = _places(pretrained, weights)
    for place in places:
        if not place.exists():
            raise WeightsError(f"no such file or folder: {place}", "check --pretrained, MIDOG_WEIGHTS or `pretrained`")
        if place.is_file():
            return place
    names = file_names(record)
    found = next((place / name for place in places for name in names if (place / name).is_file()), None)
    if found is None:
        raise _missing(record, places, names)
    if pretrained == "record" and record.sha256 and found.name == record.file:
        _check_hash(record, found)
    return found


def _places(pretrained: str, weights: Path | None) -> list[Path]:
    if pretrained != "record":
        return [Path(pretrained).expanduser()]
    given = [Path(weights).expanduser()] if weights is not None else []
    if os.environ.get("MIDOG_WEIGHTS"):
        given.append(Path(os.environ["MIDOG_WEIGHTS"]).expanduser())
    if not given and os.environ.get("MIDOG_DATA"):
        fallback = Path(os.environ["MIDOG_DATA"]).expanduser() / "weights"
        given = [fallback] if fallback.is_dir() else []
    return given


def file_names(record: Backbone) -> list[str]:
    """Names under which a folder may hold the weights, the best first."""
    stem = record.name.removeprefix("timm/")
    own = [record.file] if record.file and record.file not in GENERIC_FILES else []
    inside = [f"{stem}/{name}" for name in dict.fromkeys([record.file, "model.safetensors"]) if name]
    names = [*own, f"{stem}.safetensors", *inside, f"{stem}.bin", f"{stem}/pytorch_model.bin"]
    # A pickled file comes last: it is only found to say how to convert it.
    return sorted(dict.fromkeys(names), key=lambda name: name.endswith(PICKLED))


def _missing(record: Backbone, places: list[Path], names: list[str]) -> WeightsError:
    terms = f"{record.licence}{', gated' if record.gated else ''}"
    details = [f"published at {record.source} ({terms})" if record.source else "published nowhere"]
    details += [f"looked in {place} for {', '.join(n for n in names if not n.endswith(PICKLED))}" for place in places]
    if not places:
        details.append("no folder was given: neither --pretrained nor MIDOG_WEIGHTS")
    stem = record.name.removeprefix("timm/")
    return WeightsError(
        f"pretrained weights of {record.name} are not on this machine",
        f"midog models pull {record.name} DIR, or copy the file to DIR/{stem}.safetensors; then --pretrained DIR. "
        "To start from random weights on purpose: pretrained: random",
        details,
    )


def _check_hash(record: Backbone, path: Path) -> None:
    actual = sha256_file(path)
    if actual != record.sha256:
        raise WeightsError(
            f"{path} is not the file that the record of {record.name} describes",
            f"get it again (midog models pull {record.name} DIR), or name it on purpose: pretrained: {path}",
            [f"sha256 {actual}", f"expected {record.sha256}"],
        )


class TensorFile:
    """A safetensors file, mapped piece by piece: names, shapes, tensors on demand, and the JSON this project stores.

    Raises: WeightsError when the file is missing, truncated, or something else altogether.
    """

    def __init__(self, path: Path | str) -> None:
        from safetensors import SafetensorError

        self.path = Path(path)
        if not self.path.is_file():
            raise WeightsError(f"no such weight file: {self.path}", "check the path")
        try:
            self._open()
            self.names = frozenset(self._file.keys())
            metadata: dict[str, str] = self._file.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            if self.path.suffix in PICKLED or _looks_pickled(self.path):
                problem = f"{self.path} is a pickled checkpoint, which can run code when read; it was not opened"
                raise WeightsError(problem, "midog models pull converts published checkpoints to safetensors") from None
            problem = f"{self.path} is no readable safetensors file: {error}"
            raise WeightsError(problem, "it is damaged or foreign: get it again") from error
        try:
            about = json.loads(metadata.get("midog", "{}"))
        except ValueError:
            about = {}
        self.about: dict[str, Any] = about if isinstance(about, dict) else {}
        check_schema(self.about, str(self.path))

    def _open(self) -> None:
        from safetensors import safe_open

        opener: Any = safe_open  # untyped in its stubs
        self._file, self._read = opener(self.path, framework="pt"), 0

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU."""
        # Pages of a mapped file count as this process's memory until the mapping goes: with a new one every so often, a
        # backbone that is copied tensor by tensor is not held twice.
        if self._read > MAPPED:
            self._open()
        tensor: Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(4).startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> Path:
    """Write a safetensors file atomically; equal content gives equal bytes.

    `about` is stored as one JSON text under the key `midog`: several keys would be written in an order that changes
    from one process to the next.

    Raises: MidogError when the disk is full; what was there before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    text = json.dumps({"schema_version": SCHEMA_VERSION, **(about or {})}, sort_keys=True, allow_nan=False)
    with atomic(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"midog": text})
        except SafetensorError as error:
            full = "os error 28" in str(error) or "No space" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    return Path(path)


def load_pretrained(backbone: nn.Module, path: Path, record: Backbone) -> None:
    """Fill every parameter and persistent buffer of a backbone from a published checkpoint, in float32.

    Its tensors are brought under timm's names by the record's layout, or by another that fits where that one does not
    (a model converted to timm's names, say). The checkpoint's own classifier is dropped, and a 1x1 convolution
    (o, i, 1, 1) fills a linear layer (o, i) or the other way round; apart from that everything must match name by name
    and shape by shape. Tensors are read one by one.

    Raises: WeightsError listing the keys that are missing, unexpected, of another shape, or not finite.
    """
    import torch

    file = TensorFile(path)
    wanted = backbone.state_dict()
    pieces, details = _fitting(file, wanted, record), []
    with torch.no_grad():
        for name, target in wanted.items():
            parts = [file[part] for part in pieces[name].parts]
            value = pieces[name].make(parts)
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                details.append(f"not finite: {name}")
            target.copy_(value.reshape(target.shape))
    if details:
        raise WeightsError(f"{path} holds numbers that are not finite", "the file is damaged: get it again", details)


def _fitting(file: TensorFile, wanted: Mapping[str, Tensor], record: Backbone) -> dict[str, Piece]:
    """The file's tensors under the names of `wanted`: the first layout and prefix, the record's before all, that fit.

    Raises: WeightsError with what does not fit the record's own.
    """
    shapes = {name: file.shape(name) for name in sorted(file.names)}
    ours = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    found: list[list[str]] = []
    for layout in dict.fromkeys([record.layout, *LAYOUTS]):
        for prefix in prefixes(shapes, record.prefix):
            pieces = translate(shapes, ours, layout, prefix)
            pieces = {name: p for name, p in pieces.items() if name in wanted or not name.startswith(CLASSIFIERS)}
            found.append(mismatches(wanted, {n: _like(p.shape(shapes), wanted.get(n)) for n, p in pieces.items()}))
            if not found[-1]:
                return pieces
    raise WeightsError(
        f"{file.path} does not fit {record.name}",
        f"it is another model's file: midog models pull {record.name} DIR",
        found[0],
    )


def _like(shape: tuple[int, ...], target: Tensor | None) -> tuple[int, ...]:
    """The shape itself, or the target's where both are one matrix, as linear layer and as 1x1 convolution."""
    if target is None:
        return shape
    wanted = tuple(target.shape)
    same_matrix = {len(shape), len(wanted)} == {2, 4} and (*shape, 1, 1)[:4] == (*wanted, 1, 1)[:4]
    return wanted if same_matrix else shape


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps `given` (name to shape) from filling `wanted`, one line per kind, key names shortened to a handful."""
    missing = [name for name in wanted if name not in given]
    unexpected = sorted(name for name in given if name not in wanted)
    shapes = [
        f"{name} {given[name]} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name] != tuple(wanted[name].shape)
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{len(names)} {kind}: {_some(names)}" for kind, names in groups if names]


def _some(names: Iterable[str], shown: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f", … and {len(names) - shown} more" if len(names) > shown else "")
