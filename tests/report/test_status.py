"""The rows of `midog status`."""

from __future__ import annotations

from midog.files import lock, write_text
from midog.report.status import status_rows
from midog.status import START, START_LOG


def test_a_fold_in_its_start_says_how_far_it_is(make, table, members, tmp_path):
    run = make.run(tmp_path / "run", table, {"good": members["good"]}, undone=("good/0", "good/1"), pupils=("good",))
    for k in (0, 1):
        folder = run / "good" / f"fold_{k}"
        (folder / "log.jsonl").unlink()
        write_text(folder / START_LOG, '{"epoch": 1, "seconds": 3.0}\n')
        (folder / START).touch()
    with lock(run / "good" / "fold_1" / ".lock", "held by the test"):
        rows, folds = status_rows(run)
    assert rows[0]["folds"] == "0: stopped start 1/2, 1: running start 1/2"
    assert [line["epoch"] for line in folds] == ["start 1/2"]
