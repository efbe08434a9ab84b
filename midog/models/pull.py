"""Published weights, brought to this machine once: local file first, checked, stored as safetensors, never executed."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midog.errors import UsageError, WeightsError
from midog.files import atomic, lock, sha256_file, write_problem
from midog.models import hub
from midog.models.backbones import Backbone, find_backbone
from midog.models.pickled import is_safetensors, read_pickled
from midog.models.verify import verify
from midog.models.weights import PICKLED, TensorFile, file_names, write_tensors


@dataclass(frozen=True)
class Pulled:
    """Where the weights of a model are now, and where they came from.

    `source` is the repository, or the local file; `revision` was asked for, `commit` is what the hub had under it ("":
    a local file). `sha256` and `bytes` are the published file's, before a conversion. `found` is True when the folder
    held the finished file already; `converted` when tensors were read out of a pickled file.
    """

    name: str
    path: Path
    source: str
    revision: str
    commit: str
    sha256: str
    bytes: int
    licence: str
    converted: bool
    found: bool

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def licence_note(record: Backbone) -> str:
    """Under which terms the weights come, and where to read (or accept) them."""
    if not record.source:
        return f"{record.name}: {record.licence}"
    access = f"gated: access is asked for at {hub.page(record)}" if record.gated else hub.page(record)
    return f"{record.name}: {record.licence} ({access})"


def pull(name: str, folder: Path | str, file: Path | str | None = None) -> Pulled:
    """Bring the published weights of a backbone into a folder, as `<folder>/<name>.safetensors`.

    What the folder holds already comes first, then `file` (a download made by hand), then the hub. A safetensors file
    is stored as it is; a pickled one is read as tensors alone and written under its own key names.

    Raises: WeightsError when it cannot be had, is not the recorded file, or holds code instead of tensors; UsageError
    for an unknown name or while another process pulls the same; MidogError when the disk is full. Nothing half-written
    is left under a name that `find_weights` knows.
    """
    record, folder = find_backbone(name), Path(folder).expanduser()
    target = folder / f"{hub.file_stem(record)}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_problem(folder, error) from error
    with lock(folder / f".{hub.file_stem(record)}.lock", f"another process pulls {record.name} into {folder}"):
        held = next((folder / name for name in file_names(record) if (folder / name).is_file()), None)
        if held is not None and not held.name.endswith(PICKLED):
            return _found(record, held)
        local = Path(file).expanduser() if file is not None else held
        if local is not None:
            return _take(record, local, target)
        if not record.source or not record.file:
            raise WeightsError(
                f"the weights of {record.name} are not published on the hub",
                f"midog models pull {record.name} {folder} --file FILE, or start from `pretrained: random`",
            )
        published = hub.ask(record)
        part = hub.fetch(record, published, folder)
        try:
            return _store(record, part, target, record.source, published.commit)
        except WeightsError:  # refused for what it is: no reason to keep it
            part.unlink(missing_ok=True)
            raise


def _found(record: Backbone, path: Path) -> Pulled:
    try:
        verified = verify(record, path)
    except WeightsError as error:
        fix = f"move it away and repeat the command, or: {error.fix}"
        raise WeightsError(f"already there, but not good: {error.problem}", fix, error.details) from error
    about = TensorFile(path).about
    return Pulled(
        name=record.name,
        path=path,
        source=verified.source,
        revision=record.revision,
        commit=verified.commit,
        sha256=verified.sha256,
        bytes=int(about.get("bytes", path.stat().st_size)),
        licence=record.licence,
        converted="sha256" in about,
        found=True,
    )


def _take(record: Backbone, file: Path, target: Path) -> Pulled:
    """A local file, refused unless it fills the model."""
    if not file.is_file():
        raise UsageError(f"no such file: {file}", "name the weight file itself, not its folder")
    pulled = _store(record, file, target, str(file), "")
    try:
        verify(record, target)
    except WeightsError as error:
        target.unlink()
        problem, fix = (text.replace(str(target), str(file)) for text in (error.problem, error.fix))
        raise WeightsError(problem, fix, error.details) from error
    return pulled


def _store(record: Backbone, file: Path, target: Path, source: str, commit: str) -> Pulled:
    """Put `file` under its final name, whole or not at all; one from the hub (`commit`) is moved, others are copied."""
    size, sha256 = file.stat().st_size, sha256_file(file)
    converted = not is_safetensors(file)
    if converted:
        about = {"content": "pretrained weights", "source": source, "commit": commit, "licence": record.licence}
        write_tensors(target, read_pickled(file), {**about, "sha256": sha256, "bytes": size})
        if commit:
            file.unlink()
    elif commit:
        file.replace(target)
    else:
        with atomic(target) as temporary:
            shutil.copyfile(file, temporary)
    return Pulled(
        record.name, target, source, record.revision, commit, sha256, size, record.licence, converted, found=False
    )
