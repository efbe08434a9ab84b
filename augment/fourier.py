"""Fourier Domain Adaptation: a patch takes over the low-frequency amplitude of another image and keeps its own phase.

Source: Yang & Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020. The window is that of the
authors' numpy code, −b…b in signed frequencies with b = ⌊min(H, W)·β⌋. Public torch and albumentations versions have
other, off-centre windows.

`python -m augment.fourier FOLDER OUT.safetensors` stores the amplitudes of a folder of photographs, as in `targets/`.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from augment.checks import check_between, check_probability
from midog.errors import ArgumentError, DataError, UsageError

Image = NDArray[Any]
BETA_LIMIT = 0.5
"""Beyond, the window leaves the spectrum (our choice: refuse rather than clip)."""
BETA_STORED = 0.1
"""Up to here target amplitudes are kept unless asked for otherwise: 25 × 13 × 3 values at 128 px."""
PATCH = 128
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
MOST_IMAGES = 1000
"""Of a larger folder as many images are taken, evenly over the sorted paths (our choice: one per ImageNet class)."""


@dataclass(frozen=True)
class Fourier:
    """Fourier Domain Adaptation in training. Defaults: our choice, around the published β of 0.01, 0.05 and 0.09.

    p: probability. beta: range that β is drawn from. include_dc: also take over the mean colour.
    targets: `natural` (24 photographs in the package), `scanner` (training patches of other scanners), or a path.
    """

    p: float = 0.5
    beta: tuple[float, float] = (0.01, 0.09)
    include_dc: bool = True
    targets: str = "natural"

    def __post_init__(self) -> None:
        check_probability("fourier.p", self.p)
        check_between("fourier.beta", self.beta, 0, BETA_LIMIT)
        if not self.targets:
            raise UsageError("fourier.targets is empty", "natural, scanner, or the path of a folder of photographs")


@dataclass(frozen=True, eq=False)
class TargetAmplitude:
    """What FDA needs of a target image: its amplitude at low frequencies.

    block: (rows, columns, channels) float32, or float64 from a float64 image; rows are frequencies 0…b, −b…−1, columns
        0…b, each at most once.
    size: (H, W) of the image. b: the highest frequency held.
    """

    block: NDArray[Any]
    size: tuple[int, int]
    b: int

    def low(self, b: int) -> NDArray[Any]:
        """The sub-block up to frequency `b`: (channels, rows, columns).

        Raises: ArgumentError when it holds fewer frequencies.
        """
        if b > self.b:
            raise ArgumentError(
                f"this target holds frequencies up to {self.b}, {b} are asked for",
                f"a smaller beta, or target_amplitude(image, beta_max={(b + 0.5) / min(self.size):.3f})",
            )
        planes = self.block.transpose(2, 0, 1)[:, :, : b + 1]
        return planes[:, low_rows(planes.shape[1], b)]


def low_rows(height: int, b: int) -> NDArray[np.intp]:
    """Row indices of frequencies −b…b in an unshifted spectrum of `height` rows, each once."""
    if 2 * b + 1 >= height:
        return np.arange(height)
    return np.concatenate([np.arange(b + 1), np.arange(height - b, height)])


def target_amplitude(image: Image, beta_max: float = BETA_STORED) -> TargetAmplitude:
    """The amplitude of `image` as far as β ≤ `beta_max` needs it, computed once.

    Args:
        image: (h, w, channels) uint8 or float, 0–255 or any non-negative range that the sources share.

    Raises: ArgumentError for another shape or dtype, or a `beta_max` outside [0, 0.5].
    """
    _check_image("target", image)
    _check_beta(beta_max)
    height, width = image.shape[:2]
    b = _highest_frequency(image.shape, beta_max)
    # The whole spectrum, whatever b: a cached amplitude then equals one computed for a smaller β bit for bit.
    spectrum = scipy.fft.rfft2(_planes(image), axes=(1, 2))
    block = np.abs(spectrum[:, low_rows(height, b), : b + 1])
    return TargetAmplitude(np.ascontiguousarray(block.transpose(1, 2, 0)), (height, width), b)


def fourier_domain_adaptation(
    source: Image, target: Image | TargetAmplitude, beta: float, include_dc: bool = True
) -> Image:
    """Give `source` the low-frequency amplitude of `target`; the phase stays.

    Only the change of the low frequencies is transformed back and added to the source, so that a few columns of the
    spectrum are computed instead of all.

    Args:
        source: (h, w, channels) uint8 or float, non-negative (a mean-subtracted image would turn its mean round).
        target: an image of the same shape, or its `target_amplitude`.
        beta: window half-side as a share of the shorter image side, 0 to 0.5. 0 changes nothing; below 1/min(h, w) only
            the mean is taken over.
        include_dc: take over the mean of each channel too, as the authors' numpy code does.

    Returns: same shape and dtype as `source`. uint8 is rounded and clipped to 0–255, float is neither.

    Raises: ArgumentError for β outside [0, 0.5] or NaN, for shapes that differ, or for another dtype.

    Source: Yang & Soatto 2020, eq. 3. β = 0 as identity follows the paper; the authors' code would swap the mean.
    """
    _check_image("source", source)
    _check_beta(beta)
    height, width, _ = source.shape
    held = (*target.size, target.block.shape[2]) if isinstance(target, TargetAmplitude) else np.shape(target)
    if held != source.shape:
        raise ArgumentError(f"source is {source.shape}, target {held}", "resize the target to the source's shape first")
    if not isinstance(target, TargetAmplitude):
        _check_image("target", target)
    if beta == 0:
        return source.copy()
    b = _highest_frequency(source.shape, beta)
    amplitude = (target if isinstance(target, TargetAmplitude) else target_amplitude(target, beta)).low(b)
    planes = _planes(source)
    rows = low_rows(height, b)
    columns = scipy.fft.rfft(planes, axis=2)[:, :, : b + 1]
    low = scipy.fft.fft(columns, axis=1)[:, rows]
    magnitude = np.abs(low)
    phase = np.divide(low, magnitude, out=np.ones_like(low), where=magnitude > 0)
    change = np.zeros_like(columns)
    change[:, rows] = amplitude * phase - low
    if not include_dc:
        change[:, 0, 0] = 0
    adapted = scipy.fft.irfft(scipy.fft.ifft(change, axis=1, overwrite_x=True), n=width, axis=2, overwrite_x=True)
    adapted += planes
    if source.dtype == np.uint8:
        np.clip(np.rint(adapted, out=adapted), 0, 255, out=adapted)
    return np.ascontiguousarray(adapted.astype(source.dtype).transpose(1, 2, 0))


def colour_shift(images: Iterable[Image], targets: Sequence[TargetAmplitude]) -> NDArray[np.float64]:
    """Mean absolute change of each channel's mean when `images` adapt to `targets` with DC: (channels,), grey levels.

    Photographs differ from stained tissue in colour, so this is large; say it beside results.
    """
    target_means = np.array([target.block[0, 0] / math.prod(target.size) for target in targets], dtype=np.float64)
    means = np.array([image.mean(axis=(0, 1)) for image in images], dtype=np.float64)
    shift: NDArray[np.float64] = np.abs(means[:, None] - target_means[None]).mean(axis=(0, 1))
    return shift


@functools.cache
def natural_targets() -> tuple[TargetAmplitude, ...]:
    """The 24 Kodak photographs that ship with the package, as amplitudes at 128 px (β up to 0.1)."""
    return read_targets(Path(__file__).parent / "targets" / "kodak.safetensors")


def folder_targets(path: Path | str, size: int = PATCH, beta_max: float = BETA_STORED) -> tuple[TargetAmplitude, ...]:
    """Amplitudes of the photographs below a folder, or of a file that `write_targets` made.

    Images become RGB and are resized to `size` × `size` before the transform. Of a larger folder 1,000 are taken,
    evenly over the sorted paths.

    Raises: DataError when the folder is absent or holds no image, or when files cannot be read (all are named).
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        return read_targets(path)
    return tuple(target_amplitude(image, beta_max) for image in _photographs(path, size).values())


def patch_targets(patches: Iterable[Image], beta_max: float = BETA_STORED) -> tuple[TargetAmplitude, ...]:
    """Amplitudes of (128, 128, 3) uint8 patches. Which patches may be targets is the caller's to decide.

    Raises: DataError when there are none.
    """
    targets = tuple(target_amplitude(np.asarray(patch), beta_max) for patch in patches)
    if not targets:
        raise DataError("no patches to take Fourier targets from", "augment: {fourier: {targets: natural}}")
    return targets


def write_targets(folder: Path | str, out: Path | str, size: int = PATCH) -> Path:
    """Store the amplitudes of a folder's photographs as one safetensors file; the same folder gives the same bytes."""
    from safetensors.numpy import save

    from midog.files import write_bytes

    images = _photographs(Path(folder).expanduser(), size)
    # float64 first: the stored float32 then do not depend on the machine's vector width.
    targets = [target_amplitude(image.astype(np.float64)) for image in images.values()]
    blocks = np.stack([target.block for target in targets]).astype(np.float32)
    about = {"size": size, "b": targets[0].b, "names": list(images)}
    return write_bytes(out, save({"amplitude": blocks}, metadata={"targets": json.dumps(about)}))


def read_targets(path: Path | str) -> tuple[TargetAmplitude, ...]:
    """Targets that `write_targets` stored. Raises: DataError when it is another kind of file, or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            about = json.loads(stored.metadata()["targets"])
            blocks = stored.get_tensor("amplitude")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no Fourier targets: {error}", f"python -m augment.fourier FOLDER {path}"
        ) from error
    return tuple(TargetAmplitude(block, (about["size"], about["size"]), about["b"]) for block in blocks)


def _photographs(folder: Path, size: int) -> dict[str, NDArray[np.uint8]]:
    """File name below `folder` → (size, size, 3) RGB; all that cannot be read is reported at once."""
    from PIL import Image as Pillow

    if not folder.is_dir():
        raise DataError(f"no folder of Fourier targets at {folder}", "a folder of photographs, or targets: natural")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"no image in {folder}", f"photographs ({', '.join(sorted(SUFFIXES))}), or targets: natural")
    if len(files) > MOST_IMAGES:
        files = [files[at * len(files) // MOST_IMAGES] for at in range(MOST_IMAGES)]
    images, unreadable = {}, []
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            with Pillow.open(file) as image:
                small = image.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC)
            images[name] = np.asarray(small)
        except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
            unreadable.append(f"{name}: {error}")
    if unreadable:
        raise DataError(f"{len(unreadable)} images in {folder} cannot be read", "repair or remove them", unreadable)
    return images


def _planes(image: Image) -> NDArray[Any]:
    """(channels, h, w) in the precision of the computation: float64 for float64, else float32."""
    return image.transpose(2, 0, 1).astype(np.float64 if image.dtype == np.float64 else np.float32, order="C")


def _highest_frequency(shape: tuple[int, ...], beta: float) -> int:
    return math.floor(min(shape[0], shape[1]) * beta)


def _check_image(what: str, image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or 0 in image.shape:
        raise ArgumentError(f"{what} has shape {np.shape(image)}", "an array of shape (height, width, channels)")
    if image.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise ArgumentError(f"{what} is {image.dtype}", "uint8 or a float type")


def _check_beta(beta: float) -> None:
    if not 0 <= beta <= BETA_LIMIT:
        raise ArgumentError(f"beta is {beta}", f"0 (no change) to {BETA_LIMIT}; published are 0.01, 0.05, 0.09")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m augment.fourier FOLDER OUT.safetensors")
    print("wrote", write_targets(sys.argv[1], sys.argv[2]))
