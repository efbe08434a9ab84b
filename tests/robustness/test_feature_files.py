"""Feature files: what is written reads back, what is damaged or pickled is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_features import draw, real_embeddings

from midog.errors import DataError, UsageError
from midog.robustness.features import Features, read_features, write_features
from midog.robustness.report import MEASURES, Effort, report

QUICK = Effort(repeats=1, limit=20, clusters=(2, 3), starts=1, runs=2)


@pytest.fixture
def features() -> Features:
    drawn = draw(1, 1)
    columns = {"label": drawn.label, "scanner": drawn.scanner, "case": drawn.case.astype(str)}
    x = drawn.features.astype(np.float32)
    return Features({"frozen": x, "adapted": 2 * x}, {name: words.astype(object) for name, words in columns.items()})


def same(one: Features, other: Features) -> bool:
    return all(
        list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in ((one.arrays, other.arrays), (one.columns, other.columns))
    )


def test_a_written_file_reads_back(features: Features, tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.safetensors", features)
    found = read_features(path)
    assert {name: x.dtype for name, x in found.arrays.items()} == {"adapted": np.float32, "frozen": np.float32}
    assert same(Features(dict(sorted(features.arrays.items())), features.columns), found)
    first = path.read_bytes()
    assert write_features(path, features).read_bytes() == first


FULL = """
import resource, sys
import numpy as np
from midog.errors import MidogError
from midog.robustness.features import Features, write_features
columns = {"label": np.full(144, "normal", dtype=object)}
features = Features({"frozen": np.ones((144, 64), dtype=np.float32)}, columns)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_features(sys.argv[1], features)
except MidogError as error:
    print(error.render())
"""


@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_leaves_both_files_as_they_were(features: Features, tmp_path: Path, room: int) -> None:
    """No file may grow beyond `room` bytes: too few for either, or for the vectors alone."""
    path = write_features(tmp_path / "f.safetensors", features)
    before = read_features(path)
    command = [sys.executable, "-c", FULL, str(path), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"cannot write {path}: File too large" in done.stdout, done.stderr
    assert same(read_features(path), before)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.csv", "f.safetensors"]


def test_another_table_is_noticed(features: Features, tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.safetensors", features)
    table = path.with_suffix(".csv")
    table.write_text(table.read_text().replace("S0", "S1", 1))
    with pytest.raises(DataError, match=r"is not the table that was written with f\.safetensors"):
        read_features(path)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv"])
def test_other_layouts(features: Features, tmp_path: Path, suffix: str) -> None:
    x = features.arrays["frozen"]
    path = tmp_path / f"f{suffix}"
    columns = dict(features.columns)
    if suffix == ".csv":
        columns |= {f"feature_{at}": x[:, at].astype(str) for at in range(x.shape[1])}
    else:
        np.save(path, x) if suffix == ".npy" else np.savez(path, X=x)
    rows = zip(*columns.values(), strict=True)
    (tmp_path / "f.csv").write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    found = read_features(path)
    assert list(found.arrays) == (["X"] if suffix == ".npz" else ["f"])
    np.testing.assert_array_equal(next(iter(found.arrays.values())), x)
    assert found.column("scanner").tolist() == features.column("scanner").tolist()


def test_what_is_refused(features: Features, tmp_path: Path) -> None:
    table = "label\n" + "normal\n" * 3
    for name in ("pickled", "short", "ragged", "words", "flat"):
        (tmp_path / f"{name}.csv").write_text(table)
    np.savez(tmp_path / "pickled.npz", X=np.array([{"a": 1}, None, 3], dtype=object))
    np.savez(tmp_path / "short.npz", X=np.zeros((2, 4)))
    np.savez(tmp_path / "words.npz", X=np.array([["a"], ["b"], ["c"]]))
    (tmp_path / "ragged.npz").write_bytes(b"PK\x03\x04 cut off")
    for name, words in {
        "pickled": "cannot be read",
        "ragged": "cannot be read",
        "words": "holds no feature vectors",
        "short": r"do not have the same rows\n  X: 2\n  label: 3",
    }.items():
        with pytest.raises(DataError, match=words):
            read_features(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match="has no columns of features"):
        read_features(tmp_path / "flat.csv")
    (tmp_path / "flat.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        read_features(tmp_path / "flat.safetensors")
    with pytest.raises(DataError, match="no such file"):
        read_features(tmp_path / "absent.npz")
    (tmp_path / "f.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match="unknown kind of feature file"):
        read_features(tmp_path / "f.pkl")
    with pytest.raises(UsageError, match=r"-o f\.safetensors"):
        write_features(tmp_path / "f.npz", features)
    with pytest.raises(UsageError, match=r"unknown column: scaner\n.*did you mean scanner"):
        features.column("scaner")


def test_the_report_measures_every_array(features: Features) -> None:
    found = report(features, effort=QUICK)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["n"] == 144 and found["cases"] == 24 and found["counts"]["S0"] == {"atypical": 36, "normal": 36}
    frozen, adapted = found["arrays"]["frozen"], found["arrays"]["adapted"]
    assert set(frozen) == {"dimensions", *MEASURES} and not any("problem" in frozen[name] for name in MEASURES)
    assert frozen["paired"] == adapted["paired"] and frozen["paired"]["chance"] > 0.5  # cases hold both labels
    assert report(features, only=("paired",), effort=QUICK)["arrays"]["frozen"]["paired"] == frozen["paired"]
    with pytest.raises(UsageError, match=r"unknown measure: pair\n.*paired"):
        report(features, only=("pair",))


def test_a_measure_that_a_table_does_not_allow_says_why(features: Features) -> None:
    """A scanner with one label, one with a single case, and rows without scanner."""
    scanner, label = features.columns["scanner"].copy(), features.columns["label"].copy()
    case = features.columns["case"]
    scanner[case == "0"] = "lone"
    label[scanner == "S1"] = "normal"
    scanner[case == "3"] = ""
    found = report(Features(features.arrays, {"label": label, "scanner": scanner, "case": case}), effort=QUICK)
    frozen = found["arrays"]["frozen"]
    assert found["left_out"] == 6 and found["n"] == 138
    assert frozen["confounder"]["left_out"] == ["lone"] and frozen["confounder"]["folds"] == 5
    assert "5 splits need" in frozen["drop"]["problem"]
    constant = report(
        Features(features.arrays, {"label": label, "scanner": np.full(144, "S0", dtype=object), "case": case}),
        effort=QUICK,
    )
    assert "confounder has one level" in constant["arrays"]["frozen"]["paired"]["problem"]
    json.dumps(found, allow_nan=False), json.dumps(constant, allow_nan=False)


def test_a_table_that_allows_nothing_is_refused_at_once(features: Features) -> None:
    empty = {**features.columns, "scanner": np.full(144, "", dtype=object)}
    with pytest.raises(DataError, match="no row has both label and scanner"):
        report(Features(features.arrays, empty))
    broken = features.arrays["frozen"].copy()
    broken[[3, 5], 0] = np.nan
    with pytest.raises(DataError, match=r"not finite\n  frozen: 2 of 144\n"):
        report(Features({**features.arrays, "frozen": broken}, features.columns))


@pytest.mark.parametrize(("n", "cases"), [(1, 1), (3, 3), (12, 4), (40, 8)])
def test_tiny_tables_give_numbers_or_reasons_and_never_nan(n: int, cases: int) -> None:
    at = np.arange(n)
    numbers = {"label": at // 2 % 2, "scanner": at % 2, "case": at % cases}
    words = {name: values.astype(str).astype(object) for name, values in numbers.items()}
    found = report(Features({"x": np.random.default_rng(n).normal(size=(n, 4))}, words), effort=QUICK)
    json.dumps(found, allow_nan=False)
    measures = found["arrays"]["x"]
    assert all("problem" in measures[name] or measures[name] for name in MEASURES)
    assert "problem" in measures["drop"] and ("problem" in measures["paired"]) == (n < 40)


def test_real_embeddings_are_in_a_layout_that_is_read() -> None:
    found = read_features(real_embeddings())
    assert len(found) == 9687 and found.arrays["X"].shape == (9687, 192)
    assert len(set(found.column("slide"))) == 267
