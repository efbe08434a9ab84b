"""The run folder: what is read back is what was written, and what is missing is named."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.views import VIEW_NAMES
from midog.data.folds import make_folds
from midog.data.patches import PatchTable
from midog.data.readers import read_layout
from midog.data.synthetic import draw
from midog.errors import DataError, UsageError
from midog.files import lock, read_csv, sha256_file, write_csv, write_json, write_text
from midog.provenance import provenance
from midog.run import Oof, Run, list_runs, open_run, read_oof, sigmoid, write_oof
from midog.status import LOG, START, START_LOG, locked, readable_seconds
from midog.yaml import parse_yaml, write_yaml, yaml_text

MEMBERS = ("a", "b")
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    return make_folds(read_layout([draw(tmp_path_factory.mktemp("drawn"), cases=6, per_case=3)]), "grouped:2:0")


@pytest.fixture
def run(tmp_path: Path, table: PatchTable) -> Run:
    """A run of two members on two folds, as training leaves it, with logits that follow the label."""
    folder = tmp_path / "run"
    table.write(folder / "patches.csv", absolute=True)
    settings = {name: {"training": {"epochs": 4}} for name in MEMBERS}
    write_yaml(folder / "recipe.yaml", {"folds": "fold", "members": settings})
    write_json(folder / "manifest.json", {"fold_names": ["0", "1"]})
    for at, name in enumerate(MEMBERS):
        for k in (0, 1):
            write_fold(folder / name / f"fold_{k}", table, k, at + 1.0)
    return open_run(folder)


def write_fold(folder: Path, table: PatchTable, k: int, scale: float) -> None:
    rows = np.flatnonzero(table.folds == k)
    z = scale * (2.0 * table.labels[rows] - 1)
    logits = np.repeat(z[:, None], len(VIEW_NAMES), axis=1)
    ids = tuple(table.ids[row] for row in rows)
    write_oof(folder / "oof.csv", Oof(ids, np.full(len(rows), k, dtype=np.int32), logits))
    write_text(folder / "log.jsonl", "".join(f'{{"epoch": {e}, "seconds": 2.0, "loss": 0.5}}\n' for e in (1, 2, 3, 4)))
    write_json(folder / "done.json", {"oof_sha256": sha256_file(folder / "oof.csv"), "network": {"seed": k}})


@given(st.lists(st.tuples(*[finite] * len(VIEW_NAMES)), min_size=1, max_size=5))
def test_oof_tables_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]]) -> None:
    ids = tuple(f'set/a,{at} "x"' for at in range(len(rows)))
    oof = Oof(ids, np.arange(len(rows), dtype=np.int32), np.array(rows))
    path = write_oof(tmp_path_factory.getbasetemp() / "oof.csv", oof)
    again = read_oof(path)
    assert again.ids == ids
    assert np.array_equal(again.folds, oof.folds) and again.folds.dtype == np.int32
    assert again.logits.tobytes() == oof.logits.tobytes()
    header = path.read_text().splitlines()[0].split(",")
    assert header == ["patch_id", "fold", *(f"logit_{view}" for view in VIEW_NAMES)]


@pytest.mark.parametrize("views", [VIEW_NAMES[:8], VIEW_NAMES[:9], (*VIEW_NAMES[:8], VIEW_NAMES[9])])
def test_a_table_of_an_earlier_release_lacks_views(tmp_path: Path, views: tuple[str, ...]) -> None:
    """First the eight symmetries alone, then one normalised view; no view takes the place of one that is missing."""
    oof = Oof(("a", "b"), np.zeros(2, dtype=np.int32), np.arange(20.0).reshape(2, 10))
    path = write_oof(tmp_path / "oof.csv", oof)
    header, rows = read_csv(path)
    kept = [at for at, name in enumerate(header) if name in ("patch_id", "fold", *(f"logit_{view}" for view in views))]
    write_csv(path, [header[at] for at in kept], [[row[at] for at in kept] for row in rows])
    again = read_oof(path).logits
    held = [view in views for view in VIEW_NAMES]
    assert np.array_equal(again[:, held], oof.logits[:, held]) and np.isnan(again[:, np.logical_not(held)]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("logit_rot90", "rot90"), "columns missing: logit_rot90"),
        (lambda text: text + text.splitlines()[1] + "\n", "appears twice"),
        (lambda text: text.replace(",1.0", ",nan", 1), "logit is not finite"),
        (lambda text: text.replace(",1.0", ",much", 1), "no number"),
    ],
)
def test_a_bad_oof_table_is_refused(run: Run, tmp_path: Path, change: object, message: str) -> None:
    path = run.fold_folder("a", 0) / "oof.csv"
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        read_oof(path)


def test_oof_is_in_table_order(run: Run, table: PatchTable) -> None:
    oof = run.oof("b")
    assert oof.ids == table.ids
    assert oof.folds.tolist() == table.folds.tolist()
    assert np.array_equal(oof.logits[:, 0] > 0, table.labels == 1)


def test_missing_folds_are_named_with_the_command_to_type(run: Run) -> None:
    (run.fold_folder("a", 1) / "done.json").unlink()
    with pytest.raises(DataError) as caught:
        run.oof("a")
    assert str(run.fold_folder("a", 1)) in caught.value.details[0]
    assert caught.value.fix.startswith("midog train") and "--member a" in caught.value.fix
    with pytest.raises(UsageError, match="unknown member"):
        run.oof("c")


def test_changed_and_foreign_logits_are_refused(run: Run, table: PatchTable) -> None:
    folder = run.fold_folder("a", 1)
    original = (folder / "oof.csv").read_text()
    (folder / "oof.csv").write_text(original.replace("1.0", "2.0", 1))
    with pytest.raises(DataError, match="not what training wrote"):
        run.oof("a")
    lines = original.splitlines()
    (folder / "oof.csv").write_text("\n".join([*lines[:-1], f"other/patch{lines[-1][lines[-1].index(',') :]}"]) + "\n")
    write_json(folder / "done.json", {"oof_sha256": sha256_file(folder / "oof.csv")})
    with pytest.raises(DataError) as caught:
        run.oof("a")
    assert len(caught.value.details) == 2
    assert "no logits" in caught.value.details[0] and "other/patch" in caught.value.details[1]


def test_scores_overall_and_by_group(run: Run, table: PatchTable) -> None:
    overall = run.scores()
    assert {name: score.balanced_accuracy for name, score in overall.items()} == {"a": 1.0, "b": 1.0}
    assert overall["a"].n == len(table)
    grouped = run.scores("a", by="scanner")
    assert sum(score.n for score in grouped.values()) == len(table)
    assert set(run.scores(by="scanner")) == {f"{name}/{group}" for name in MEMBERS for group in grouped}


def test_status_tells_states_pace_and_scores(run: Run) -> None:
    folder = run.fold_folder("b", 1)
    (folder / "done.json").unlink()
    write_text(folder / "log.jsonl", '{"epoch": 1, "seconds": 3.0}\n')
    (folder / "last.safetensors").touch()
    status = run.status()
    assert not status.finished
    assert [fold.state for fold in status.members[1].folds] == ["done", "stopped"]
    assert status.members[1].folds[1].seconds_left == 9.0
    assert status.seconds_left == 9.0
    assert status.members[0].scores is not None and status.members[0].scores.balanced_accuracy == 1.0
    assert status.members[0].intervals["balanced_accuracy"].low == 1.0
    with lock(folder / ".lock", "held by the test"):
        assert run.status(intervals=False).members[1].folds[1].state == "running"
    write_json(folder / "failed.json", {"error": "it broke"})
    failed = run.status(intervals=False).members[1].folds[1]
    assert (failed.state, failed.problem) == ("failed", "it broke")


def write_log(folder: Path, name: str, epochs: int, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / name, "".join(f'{{"epoch": {e + 1}, "seconds": {seconds}}}\n' for e in range(epochs)))


def pupil(run: Run, *started: int) -> Run:
    """The run with b as a pupil of a: ten epochs of start, of which its folds have `started` logged."""
    members = {**run.recipe["members"], "b": {"training": {"epochs": 4}, "start": {"kind": "distil", "epochs": 10}}}
    write_yaml(run.path / "recipe.yaml", {**run.recipe, "members": members})
    for k, epochs in enumerate(started):
        write_log(run.fold_folder("b", k), START_LOG, epochs, 20.0)
    return open_run(run.path)


def test_time_left_counts_the_start_at_its_own_pace(run: Run) -> None:
    """A fold that has not begun needs ten epochs of 20 s and four of 2 s; one that trains has its start behind it."""
    shutil.rmtree(run.fold_folder("b", 1))
    again = pupil(run, 10)
    waiting = again.status(intervals=False).members[1].folds[1]
    assert (waiting.state, waiting.seconds_left) == ("waiting", 208.0)
    write_log(run.fold_folder("b", 1), LOG, 1, 3.0)
    assert again.status(intervals=False).members[1].folds[1].seconds_left == 9.0


def test_status_shows_the_start(run: Run) -> None:
    shutil.rmtree(run.path / "b")
    again = pupil(run, 3)
    (run.fold_folder("b", 0) / START).touch()
    stopped, waiting = again.status(intervals=False).members[1].folds
    assert (stopped.state, stopped.progress, waiting.state) == ("stopped", "start 3/10", "waiting")
    assert stopped.seconds_left == (7 + 4) * 20.0, "until a training epoch is logged, the start's pace stands in"
    with lock(run.fold_folder("b", 0) / ".lock", "held by the test"):
        running = again.status(intervals=False).members[1].folds[0]
    assert (running.state, running.progress) == ("running", "start 3/10")
    write_log(run.fold_folder("b", 0), START_LOG, 10, 20.0)
    assert again.status(intervals=False).members[1].folds[0].progress == "0/4"


@pytest.mark.parametrize(("code", "busy"), [(errno.EWOULDBLOCK, True), (errno.ENOLCK, False), (errno.ENOSYS, False)])
def test_a_file_system_without_locks_does_not_call_every_fold_busy(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int, busy: bool
) -> None:
    def flock(handle: object, how: int) -> None:
        raise OSError(code, "as the kernel says it")

    folder = run.fold_folder("a", 0)
    (folder / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert locked(folder) is busy


def test_a_member_that_has_not_begun_leaves_the_rest_unknown(run: Run) -> None:
    shutil.rmtree(run.path / "b")
    status = run.status()
    assert [fold.state for fold in status.members[1].folds] == ["waiting", "waiting"]
    assert status.seconds_left is None and status.members[1].scores is None


def test_what_is_no_run_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(DataError, match=r"recipe.yaml, manifest.json, patches.csv missing"):
        open_run(tmp_path)
    (run.path / "recipe.yaml").write_text("- a\n")
    with pytest.raises(DataError, match="no resolved recipe"):
        open_run(run.path)


def test_runs_are_listed(run: Run) -> None:
    assert list_runs(run.path.parent) == (run.path,)
    assert list_runs(run.path / "nowhere") == ()


def test_yaml_reads_back_equal() -> None:
    content = {"b": 1, "a": [0.01, 1e-05, None, True, "off", "1e-4"], "c": {"x": {}}}
    assert parse_yaml(yaml_text(content), "text") == content
    assert yaml_text(content).index("b:") < yaml_text(content).index("a:"), "order is kept"


def test_provenance_names_versions_and_commit() -> None:
    found = provenance()
    assert found["versions"]["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["git"] is None or len(found["git"].rstrip("+")) == 40


@given(st.floats(-800, 800))
def test_sigmoid_never_overflows(z: float) -> None:
    p = sigmoid(np.array([z, -z]))
    assert 0 <= p[0] <= 1 and p.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "unknown"), (0.4, "0 s"), (90, "1 min 30 s"), (7260, "2 h 1 min"), (59.7, "1 min 0 s")]
)
def test_readable_seconds(seconds: float | None, text: str) -> None:
    assert readable_seconds(seconds) == text


def test_reading_a_run_needs_no_torch(run: Run) -> None:
    code = "import sys; from midog.run import open_run; open_run(sys.argv[1]).oof('a'); open_run(sys.argv[1]).status();"
    code += "print([m for m in ('torch', 'pydantic', 'sklearn', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
