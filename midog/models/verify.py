"""Whether a weight file holds a model, and what exactly is wrong with it where it does not."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import WeightsError
from midog.files import sha256_file
from midog.models.backbones import Backbone, find_backbone, list_backbones
from midog.models.build import empty_backbone
from midog.models.layouts import LAYOUTS, prefixes, translate
from midog.models.pickled import is_safetensors, read_pickled
from midog.models.weights import CLASSIFIERS, PICKLED, TensorFile, load_pretrained

if TYPE_CHECKING:
    from torch import nn

SAME_SIZE = 0.02
"""How far parameter counts may differ for a file to be tried as another model's."""


@dataclass(frozen=True)
class Verified:
    """A weight file that fills a model: every tensor there, of the right shape, finite.

    `layout` says under whose key names, `tensors` how many the file has, `parameters` the numbers of the network that
    they fill. `recorded` says whether the record knows a sha256 (then it is equal). `source` and `commit` are known of
    a file that `pull` converted.
    """

    name: str
    path: Path
    layout: str
    tensors: int
    parameters: int
    sha256: str
    recorded: bool
    source: str
    commit: str

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def verify(name: str | Backbone, file: Path | str) -> Verified:
    """Read a weight file as a model would and say exactly what is wrong with it; the model's memory is not needed.

    Raises: WeightsError when it is damaged, cut short, pickled, another model's, incomplete, not finite, or (where the
    record knows the sha256) not the published file; UsageError for an unknown name.
    """
    record, path = find_backbone(name), Path(file).expanduser()
    if path.is_file() and not is_safetensors(path) and (path.suffix in PICKLED or zipfile.is_zipfile(path)):
        read_pickled(path)  # raises with the reason when it holds code or is damaged
        raise WeightsError(
            f"{path} is a pickled checkpoint; its tensors can be read safely, but only a conversion is used",
            f"midog models pull {record.name} DIR --file {path}",
        )
    _check_length(path)
    opened = TensorFile(path)
    model = _fill(record, path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sha256 = str(opened.about.get("sha256") or sha256_file(path))
    if record.sha256 and sha256 != record.sha256:
        raise WeightsError(
            f"{path} fits {record.name}, but is not the file that the record describes",
            f"midog models pull {record.name} DIR, or name it on purpose: pretrained: {path}",
            [f"sha256 {sha256}", f"expected {record.sha256}"],
        )
    layout = _layout(opened, model, record)
    source, commit = (str(opened.about.get(key, "")) for key in ("source", "commit"))
    tensors, recorded = len(opened.names), bool(record.sha256)
    return Verified(record.name, path, layout, tensors, parameters, sha256, recorded, source, commit)


def _check_length(path: Path) -> None:
    """Raises: WeightsError with both lengths when a safetensors file is shorter than its header says."""
    if not path.is_file() or not is_safetensors(path):
        return
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(length) if length < 100_000_000 else b""
    try:
        entries = json.loads(header).items()
        stated = 8 + length + max(entry["data_offsets"][1] for key, entry in entries if key != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # no header of safetensors: its own reader says what it is
    actual = path.stat().st_size
    if actual < stated:
        raise WeightsError(
            f"{path} is cut short: {actual:,} of {stated:,} bytes", "get it again, with the command that made it"
        )


def _layout(file: TensorFile, model: nn.Module, record: Backbone) -> str:
    """Under whose names a file that fills the model keeps its tensors."""
    shapes = {name: file.shape(name) for name in sorted(file.names)}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for layout in dict.fromkeys([record.layout, *LAYOUTS]):
        for prefix in prefixes(shapes, record.prefix):
            if wanted.keys() <= translate(shapes, wanted, layout, prefix).keys():
                return f"{layout}, below {prefix}" if prefix else layout
    return record.layout


def _fill(record: Backbone, path: Path) -> nn.Module:
    """The model without its numbers, after the file filled it.

    Raises: WeightsError naming the models that the file would fill.
    """
    import torch

    with torch.device("meta"):
        model = empty_backbone(record)
    try:
        load_pretrained(model, path, record)
    except WeightsError as error:
        others = _others(record, path)
        if not others:
            raise
        fix = f"it is a file of {' or '.join(others)}: midog models verify {others[0]} {path}"
        raise WeightsError(error.problem, fix, error.details) from error
    return model


def _others(record: Backbone, path: Path) -> list[str]:
    """Models of the registry that the file fills; only those of about its size are tried."""
    import torch

    file = TensorFile(path)
    count = sum(torch.Size(file.shape(name)).numel() for name in file.names if not name.startswith(CLASSIFIERS))
    fitting = []
    for name in list_backbones():
        other = find_backbone(name)
        if name == record.name or not other.parameters or abs(count - other.parameters) > SAME_SIZE * count:
            continue
        with torch.device("meta"):
            model = empty_backbone(other)
        try:
            load_pretrained(model, path, other)
        except WeightsError:
            continue
        fitting.append(name)
    return fitting
