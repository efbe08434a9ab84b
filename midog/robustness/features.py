"""Feature files: vectors and what is known of each row. Nothing in them is ever unpickled.

<name>.safetensors (or .npz, .npy) with <name>.csv beside it, row for row: any columns, a header; several arrays are
                   several features of the same patches (`midog features` writes `frozen` and `adapted`)
<name>.csv alone   columns feature_0, feature_1, … hold the vectors
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError, UsageError, unknown
from midog.files import atomic, check_schema, csv_text, read_csv, sha256_bytes, sha256_file

ARRAYS = (".safetensors", ".npz", ".npy")
NUMBERED = re.compile(r"feature_\d+")


@dataclass(frozen=True)
class Features:
    """`arrays`: name → (n, d) features of the same n rows; `columns`: name → (n,) words."""

    arrays: dict[str, NDArray[Any]]
    columns: dict[str, NDArray[np.object_]]

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in (*self.arrays.items(), *self.columns.items())}
        if not self.arrays or len(set(lengths.values())) != 1:
            raise DataError(
                "features and table do not have the same rows", "", [f"{name}: {n}" for name, n in lengths.items()]
            )

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def column(self, name: str) -> NDArray[np.object_]:
        """(n,) words. Raises: UsageError for an unknown column, with the nearest."""
        if name not in self.columns:
            raise unknown("column", name, self.columns)
        return self.columns[name]

    def subset(self, rows: ArrayLike) -> Features:
        """The rows at these places, or where a mask is True."""
        at = np.asarray(rows)
        return Features(
            {name: values[at] for name, values in self.arrays.items()},
            {name: words[at] for name, words in self.columns.items()},
        )


def write_features(path: Path | str, features: Features) -> Path:
    """Write `<name>.safetensors` and the table `<name>.csv` beside it, whose hash the former knows.

    Raises: UsageError for another suffix; MidogError when the disk is full, and both files stay as they were.
    """
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"features are written as .safetensors, not {path.name}", f"-o {path.stem}.safetensors")
    rows = csv_text(features.columns, zip(*features.columns.values(), strict=True)).encode("utf-8")
    about = {"schema_version": 1, "content": "features", "table_sha256": sha256_bytes(rows)}
    plain = {name: np.ascontiguousarray(values) for name, values in sorted(features.arrays.items())}
    with atomic(path.with_suffix(".csv")) as table, atomic(path) as temporary:  # both are whole before either moves
        table.write_bytes(rows)
        temporary.write_bytes(save(plain, metadata={"midog": json.dumps(about, sort_keys=True)}))
    return path


def read_features(path: Path | str) -> Features:
    """Read a feature file in one of the layouts above.

    Raises: DataError for a file that is missing, damaged, pickled, of other rows than its table, or without vectors;
        UsageError for an unknown suffix.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}", "midog features RUN -o features.safetensors makes one")
    if path.suffix == ".csv":
        return _from_table(path)
    if path.suffix not in ARRAYS:
        raise UsageError(f"unknown kind of feature file: {path.name}", f"one of {', '.join((*ARRAYS, '.csv'))}")
    table = path.with_suffix(".csv")
    header, rows = read_csv(table)
    arrays, about = _safetensors(path) if path.suffix == ".safetensors" else (_numpy(path), {})
    if "table_sha256" in about and about["table_sha256"] != sha256_file(table):
        raise DataError(f"{table} is not the table that was written with {path.name}", "write both again")
    flat = {name: values for name, values in arrays.items() if values.ndim == 2 and values.dtype.kind == "f"}
    if not flat:
        shapes = [f"{name}: {values.dtype} {values.shape}" for name, values in arrays.items()]
        raise DataError(f"{path} holds no feature vectors, which are (rows, features) of floats", "", shapes)
    return Features(flat, _columns(header, rows))


def _columns(header: list[str], rows: list[list[str]]) -> dict[str, NDArray[np.object_]]:
    return {name: np.array([row[at] for row in rows], dtype=object) for at, name in enumerate(header)}


def _from_table(path: Path) -> Features:
    header, rows = read_csv(path)
    columns = _columns(header, rows)
    names = [name for name in header if NUMBERED.fullmatch(name)]
    if not names or not rows:
        beside = [path.with_suffix(suffix) for suffix in ARRAYS if path.with_suffix(suffix).is_file()]
        fix = f"give {beside[0]}, whose table this is" if beside else "name them feature_0, feature_1, …"
        raise DataError(f"{path} has no columns of features", fix)
    try:
        values = np.stack([columns.pop(name).astype(np.float64) for name in names], axis=1)
    except ValueError as error:
        raise DataError(f"{path} holds a feature that is no number: {error}", "repair these rows") from None
    return Features({path.stem: values.astype(np.float32)}, columns)


def _safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], Mapping[str, Any]]:
    from safetensors import SafetensorError, safe_open

    opener: Any = safe_open  # untyped in its stubs
    try:
        with opener(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            about = json.loads((file.metadata() or {}).get("midog", "{}"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}", "save it again, in float32") from error
    check_schema(about, str(path))
    return arrays, about


def _numpy(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as handle:
            found = np.load(handle, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {path.stem: found}
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "arrays of floats alone are read, nothing is unpickled"
        ) from error
