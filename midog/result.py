"""What a bundle says about patches: logit, confidence, class, and which of them it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.files import sha256_file, write_csv, write_json

if TYPE_CHECKING:
    from midog.notebook import SelfShown

HEADER = ("patch_id", "logit", "confidence", "class")
CLASSES = ("normal", "atypical")
SHOWN = 24
COLOURS = {False: "#3b6ea5", True: "#c0392b"}


@dataclass(frozen=True)
class Result:
    """One row per patch, in input order.

    `logit` (n,) float64 is the blended logit of *atypical* before calibration, `confidence` (n,) float64 P(atypical),
    `atypical` (n,) bool the class, `seen` (n,) bool whether the bundle was trained on exactly these pixels. `about`
    says which bundle and operating point answered; `notes` are warnings, one line each.
    """

    ids: tuple[str, ...]
    logit: NDArray[np.float64]
    confidence: NDArray[np.float64]
    atypical: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    patches: Any = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def table(self) -> list[dict[str, Any]]:
        """Plain rows: patch_id, logit, confidence, class."""
        return [dict(zip(HEADER, row, strict=True)) for row in self._rows()]

    def _rows(self) -> list[tuple[str, float, float, str]]:
        words = [CLASSES[int(flag)] for flag in self.atypical]
        return list(zip(self.ids, self.logit.tolist(), self.confidence.tolist(), words, strict=True))

    def write(self, path: Path | str) -> Path:
        """Write `patch_id,logit,confidence,class` as CSV and, beside it, `<path>.json`.

        The second file names bundle and operating point and lists the patches seen in training: the table's four
        columns have no place for that, and `midog evaluate` heads its scores with it. Numbers read back exactly.
        """
        path = write_csv(path, HEADER, self._rows())
        seen = [name for name, flag in zip(self.ids, self.seen, strict=True) if flag]
        write_json(sidecar(path), {**self.about, "sha256": sha256_file(path), "seen_in_training": seen})
        return path

    def figure(self, shown: int = SHOWN) -> SelfShown:
        """The most atypical `shown` patches with confidence and class, as a matplotlib figure that notebooks show."""
        from midog.notebook import SelfShown

        order = np.argsort(-self.confidence, kind="stable")[:shown]
        columns = min(8, max(1, len(order)))
        rows = max(1, math.ceil(len(order) / columns))
        figure = SelfShown(figsize=(1.5 * columns, 1.85 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in grid:
            axis.set_axis_off()
        for axis, row in zip(grid, order, strict=False):
            patch = None if self.patches is None else self.patches[int(row)]
            if patch is not None:
                axis.imshow(patch)
            flag = bool(self.atypical[row])
            axis.set_title(
                f"{self.ids[row]}\n{CLASSES[flag]} {self.confidence[row]:.2f}", fontsize=7, color=COLOURS[flag]
            )
        return figure

    def _repr_html_(self) -> str:
        """Figure and table, for a notebook; the first rows where there are many."""
        from midog.notebook import result_html

        point = f"; operating point {self.about['use']}" if "use" in self.about else ""
        headline = f"{len(self)} patches, {int(self.atypical.sum())} atypical{point}"
        return result_html(headline, self.figure()._repr_png_(), self.table()[:SHOWN], max(0, len(self) - SHOWN))


def sidecar(path: Path | str) -> Path:
    """The file that `Result.write` puts beside a prediction table."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def seen_note(result: Result) -> Sequence[str]:
    """One line when some patches were trained on, else nothing."""
    count = int(result.seen.sum())
    return [f"seen in training: {count} of {len(result)} patches"] if count else []
