"""The bundle: what inference needs in one archive, and how it answers.

Members × fold models × views → one logit per member → blend → confidence → class. `pack` makes a bundle,
`open_bundle` verifies and opens one, `Bundle.predict` is THE way to an answer: `midog predict`, the Python interface
and the challenge's container all take it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import BLEND_FILE, Blend, OperatingPoint, combine, confidence, decide, read_blend
from midog.archive import (
    CARD_FILE,
    DEFAULT,
    MANIFEST_FILE,
    bundle_path,
    locate,
    parse_manifest,
    read_manifest,
    unpack_to_temporary,
    verify,
)
from midog.deadline import Clock, OutOfTime
from midog.errors import DataError, UsageError, WeightsError, nearest
from midog.files import sha256_bytes
from midog.result import Result

__all__ = ["CONTEXT", "MPP", "Bundle", "OutOfTime", "Result", "open_bundle", "pack", "read_manifest"]

PATCH = 128
MPP = 0.25
"""µm per pixel of a patch."""
CONTEXT = PATCH * MPP
"""µm of tissue a patch shows: 32."""
TOLERANCE = 0.01
"""Share by which a resolution or a context may miss its value before it counts as another (our choice: a scanner's
nominal 0.25 µm/px is 0.248 to 0.252)."""

Images = Sequence[NDArray[np.uint8] | None]


def pack(
    blend_folder: Path | str,
    out: Path | str,
    weights: Path | str | None = None,
    card: str = "",
    accept: Sequence[str] = (),
) -> Path:
    """Write the bundle of a blend, byte-identical when repeated; see `packing.pack_blend`."""
    from midog.packing import pack_blend

    return pack_blend(blend_folder, out, None if weights is None else Path(weights), card, accept)


def open_bundle(path: Path | str, use: str = "full", device: str = "auto") -> Bundle:
    """Open a bundle, an archive or an unpacked folder, after checking every file against its manifest.

    Args:
        path: model.tar.gz (unpacked to a temporary folder), a folder with manifest.json at its top or in its only
            sub-folder, or the word `default`: the bundle that ships with the package.
        use: operating point.
        device: auto, cpu, cuda, …

    Raises: WeightsError when it is no bundle, damaged, incomplete or newer than this release; ContractError when an
        archive is unsafe to unpack; UsageError for an operating point it does not have.
    """
    path = bundle_path(path)
    holder, hashes, folder = None, None, locate(path)
    if path.is_file():
        holder, unpacked = unpack_to_temporary(path)
        folder = locate(holder.name)
        top = "" if folder is None or folder == Path(holder.name) else f"{folder.name}/"
        hashes = {name.removeprefix(top): value for name, value in unpacked.items()}
    if folder is None:
        if not path.exists() and nearest(str(path), [DEFAULT]):
            raise WeightsError(f"no such bundle: {path}", f"did you mean {DEFAULT}, which ships? else check the path")
        read_manifest(path)  # raises, and says why
        raise WeightsError(f"{path} is no bundle", "give model.tar.gz, or the folder it was unpacked to")
    content = (folder / MANIFEST_FILE).read_bytes()
    manifest = parse_manifest(content, path)
    verify(folder, manifest, hashes, str(path))
    try:
        blend = read_blend(folder / BLEND_FILE)
    except DataError as error:
        raise WeightsError(error.problem, "make the bundle again: midog bundle BLEND", error.details) from error
    return Bundle(folder, manifest, blend, blend.point(use), sha256_bytes(content), device, holder)


@dataclass(frozen=True)
class Bundle:
    """An open bundle at one operating point. `digest` is the sha256 of its manifest, which names every other byte."""

    folder: Path
    manifest: dict[str, Any]
    blend: Blend
    point: OperatingPoint
    digest: str
    device: str = "auto"
    holder: Any = None  # keeps the temporary folder of an archive while this lives
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # a single backbone, between calls

    def at(self, use: str) -> Bundle:
        """The same bundle at another operating point. Raises: UsageError with the nearest name."""
        return replace(self, point=self.blend.point(use))

    @property
    def card(self) -> str:
        """The model card, Markdown; "" where the bundle was packed without one."""
        return (self.folder / CARD_FILE).read_text("utf-8") if CARD_FILE in self.manifest["files"] else ""

    @property
    def prevalence(self) -> float:
        """Share of atypical patches in training: the answer where there is nothing to look at."""
        return self.blend.prevalence

    def predict(
        self,
        images: NDArray[np.uint8] | Images | Any,
        mpp: float | None = MPP,
        ids: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> Result:
        """Classify patches.

        Args:
            images: (n, h, w, 3) uint8 RGB, or a sequence of (h, w, 3) uint8 of any sizes; None in it stands for an
                image that could not be read and is answered with the training prevalence. `midog.data.pixels.Pixels`
                works too, without being held in memory.
            mpp: µm per pixel. At about 0.25 the centre is cut out; at another value it is resampled first. None takes
                the images as they come, as the container must: any size is 0.25 µm/px, and smaller ones are mirrored.
            ids: names of the patches; default "0", "1", …
            deadline: time of `time.monotonic()` by which to be done, looked at after every fold model.

        Returns: one row per image, in order.

        Raises: DataError for images of another shape or type, or showing less than 32 µm, all at once; OutOfTime as
            soon as the end is projected to come after the deadline.
        """
        patches, usable = _gather(images, mpp)
        names = tuple(map(str, range(len(images)))) if ids is None else tuple(ids)
        if len(names) != len(images):
            raise DataError(f"{len(names)} ids for {len(images)} images", "one id per image")
        logits = self._member_logits(patches, deadline)
        blended = combine(self.point, logits)
        z, flags = np.full(len(names), np.nan), np.zeros(len(names), dtype=np.bool_)
        z[usable] = blended
        p = confidence(self.point, z)
        absent = ~np.isfinite(z)
        z[absent], p[absent] = self._logit_of(self.prevalence), self.prevalence
        flags[usable] = self._seen(patches)
        notes, shown = self._notes(names, usable, logits), _shown(patches, usable, len(names))
        return Result(names, z, p, decide(self.point, p), flags, self.about(), notes, shown)

    def about(self) -> dict[str, Any]:
        """Which bundle and operating point answered, as plain JSON."""
        return {
            "bundle_sha256": self.digest,
            "midog": self.manifest.get("midog"),
            "use": self.point.name,
            "members": list(self.point.members),
            "fold_models": sum(len(files) for files in self.fold_files().values()),
            "views": self.point.views,
            "threshold": self.point.threshold,
            "prevalence": self.prevalence,
        }

    def fold_files(self) -> dict[str, list[str]]:
        """Files, in the bundle, of the fold models that answer at this operating point: member → its first ones."""
        entries = {entry["name"]: entry["folds"] for entry in self.manifest["members"]}
        ordered = {name: sorted(entries[name].items(), key=lambda fold: int(fold[0])) for name in self.point.members}
        return {name: [file for _, file in found][: self.point.fold_models or None] for name, found in ordered.items()}

    def _logit_of(self, p: float) -> float:
        """The blended logit whose calibrated confidence is `p`."""
        p = min(max(p, 1e-12), 1 - 1e-12)
        return self.point.shift + self.point.temperature * math.log(p / (1 - p))

    def _member_logits(self, patches: Any, deadline: float | None = None) -> NDArray[np.float64]:
        """(n, members) logits of the operating point's members: means over fold models and views."""
        from augment.views import VIEW_SETS
        from midog.models.inference import Inference
        from midog.models.network import Network
        from midog.models.predict import pick_device, predict_logits

        device = pick_device(self.device)
        views = VIEW_SETS[self.point.views]
        entries = {entry["name"]: entry for entry in self.manifest["members"]}
        logits = np.zeros((len(patches), len(self.point.members)), dtype=np.float64)
        if not len(patches):
            return logits
        files = self.fold_files()
        costs = {name: self._cost(entries[name]) for name in self.point.members}
        clock = Clock(deadline, [cost * len(files[name]) for name, cost in costs.items()])
        groups = _by_backbone([entries[name] for name in self.point.members])
        kept = dict(self.kept)
        self.kept.clear()
        for key, members in groups.items():
            file = None if members[0]["backbone"] is None else self.folder / members[0]["backbone"]
            network = Network.from_dict(members[0]["network"])
            inference = kept.pop(key, None) or Inference(network, file, device)
            kept.clear()
            for entry in members:
                column = self.point.members.index(entry["name"])
                answering = files[entry["name"]]
                for name in answering:
                    model = inference.switch(self.folder / name)
                    found = predict_logits(model, patches, views, device, label=entry["name"])
                    logits[:, column] += found.mean(axis=1) / len(answering)
                    clock.passed(costs[entry["name"]])
            if len(groups) == 1:
                self.kept[key] = inference
            del inference, model  # before the next backbone is read: never two in memory
        return logits

    def _cost(self, entry: Mapping[str, Any]) -> float:
        """Work of one fold model, in bytes of weights that patches pass through: for projections only."""
        first = next(iter(entry["folds"].values()))
        return float(self.manifest["files"][entry["backbone"] or first]["bytes"])

    def _seen(self, patches: Any) -> NDArray[np.bool_]:
        known = set(self.manifest["training"]["pixels"])
        hashes = getattr(patches, "hashes", None)
        if hashes is None:
            hashes = [sha256_bytes(patch.tobytes())[:16] for patch in patches]
        return np.array([value in known for value in hashes], dtype=np.bool_)

    def _notes(self, names: Sequence[str], usable: Sequence[int], logits: NDArray[np.float64]) -> tuple[str, ...]:
        notes = []
        for row, index in enumerate(usable):
            left_out = [m for m, z in zip(self.point.members, logits[row], strict=True) if not math.isfinite(z)]
            if len(left_out) == len(self.point.members):
                notes.append(f"patch {names[index]}: no finite logit, the training prevalence stands in")
            elif left_out:
                notes.append(f"patch {names[index]}: no finite logit from {', '.join(left_out)}, answered without")
        return tuple(notes)


def _by_backbone(members: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Members grouped so that each backbone is built once: by file, and without one by architecture."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in members:
        record = entry["network"]["backbone"]
        groups.setdefault((entry["backbone"], repr((record["timm"], record["timm_kwargs"]))), []).append(entry)
    return groups


def _gather(images: Any, mpp: float | None) -> tuple[Any, list[int]]:
    """Patches, (k, 128, 128, 3) uint8 or something that indexes like it, and which images they are."""
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"mpp is {mpp}", "µm per pixel, such as 0.25 at 40x or 0.5 at 20x")
    native = mpp is None or abs(mpp / MPP - 1) <= TOLERANCE
    if hasattr(images, "hashes") and native:
        return images, list(range(len(images)))
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise DataError(f"one image of shape {images.shape} instead of several", "predict(image[None])")
    usable = [index for index in range(len(images)) if images[index] is not None]
    problems = [text for index in usable if (text := _image_problem(images[index], mpp, index))]
    if problems:
        fix = f"images are (h, w, 3) uint8 RGB and show at least {CONTEXT:g} µm; give their resolution as mpp"
        raise DataError(f"{len(problems)} of {len(images)} images cannot be used", fix, problems)
    if isinstance(images, np.ndarray) and images.shape[1:] == (PATCH, PATCH, 3) and native:
        return images, usable
    patches = np.empty((len(usable), PATCH, PATCH, 3), dtype=np.uint8)
    for row, index in enumerate(usable):
        patches[row] = fit(images[index], None if native else mpp)
    return patches, usable


def _image_problem(image: Any, mpp: float | None, index: int) -> str:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        kind = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        return f"image {index} is {kind}, not (h, w, 3) uint8"
    if mpp is None:
        return "" if min(image.shape[:2]) else f"image {index} is empty"
    shown = min(image.shape[:2]) * mpp
    return "" if shown >= CONTEXT * (1 - TOLERANCE) else f"image {index} shows {shown:g} µm, less than {CONTEXT:g}"


def fit(image: NDArray[np.uint8], mpp: float | None = None) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 → (128, 128, 3) uint8: the central 32 µm, resampled to 0.25 µm/px, or as it is."""
    from midog.models.preprocess import fit_patch

    if mpp is None:
        return fit_patch(image)
    from PIL import Image

    side = min(CONTEXT / mpp, *image.shape[:2])
    top, left = (image.shape[0] - side) / 2, (image.shape[1] - side) / 2
    box = (left, top, left + side, top + side)
    # Pillow widens the filter when it shrinks, so a finer scan is averaged, not sampled.
    return np.asarray(Image.fromarray(image).resize((PATCH, PATCH), Image.Resampling.BICUBIC, box=box))


def _shown(patches: Any, usable: Sequence[int], count: int) -> Any:
    """Patches by image, None where there was none to see; what is not in memory stays where it is."""
    if not isinstance(patches, np.ndarray):
        return patches
    shown: list[NDArray[np.uint8] | None] = [None] * count
    for row, index in enumerate(usable):
        shown[index] = patches[row]
    return shown
