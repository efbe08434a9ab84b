from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from midog.errors import DataError, UsageError
from submission.ledger import Entry, append, ledger_table, mark_sent, read_ledger, report_scores, used_before

IMAGES = [f"sha256:{digit * 64}" for digit in "abc"]


def make(n: int, **others: object) -> Entry:
    fields = {
        "event": "saved",
        "image": IMAGES[n],
        "date": f"2026-01-0{n + 1}T00:00:00Z",
        "archive": str(n + 1) * 64,
        "tarball": "d" * 63 + str(n),
        "submission": f"r{n + 1}",
        "scores": {"balanced_accuracy": 0.8 + n / 100, "roc_auc": 0.9},
        **others,
    }
    return Entry(**fields)  # type: ignore[arg-type]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "submissions.jsonl"
    append(path, make(0))
    return append(path, make(1))


def test_entries_come_back_in_order(ledger: Path) -> None:
    assert read_ledger(ledger) == (make(0), make(1))
    assert [json.loads(line)["schema_version"] for line in ledger.read_text().splitlines()] == [1, 1]


def test_no_file_is_an_empty_ledger(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "none.jsonl") == ()


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_cut_last_line_is_dropped_and_overwritten(ledger: Path, cut: int) -> None:
    ledger.write_bytes(ledger.read_bytes()[: -cut - 1])
    assert read_ledger(ledger) == (make(0),)
    append(ledger, make(2))
    assert read_ledger(ledger) == (make(0), make(2))
    assert len(ledger.read_text().splitlines()) == 2


def test_a_last_line_without_line_end_is_kept_when_it_is_whole(ledger: Path) -> None:
    ledger.write_text(ledger.read_text().rstrip("\n"))
    append(ledger, make(2))
    assert read_ledger(ledger) == (make(0), make(1), make(2))


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "saved", "ima',
        "[]",
        '{"event": "saved"}',
        '{"event": "sold", "image": "x"}',
        '{"event": "saved", "image": 3}',
        '{"event": "scored", "image": "x", "reported": {"roc_auc": 7}}',
        "\udcff",
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_appended(ledger: Path, line: str) -> None:
    first, second = ledger.read_text().splitlines()
    content = f"{first}\n{line}\n{second}\n".encode("utf-8", "surrogateescape")
    ledger.write_bytes(content)
    with pytest.raises(DataError, match="line 2"):
        read_ledger(ledger)
    with pytest.raises(DataError, match="line 2"):
        append(ledger, make(2))
    assert ledger.read_bytes() == content


def test_a_newer_ledger_is_refused(ledger: Path) -> None:
    ledger.write_text(ledger.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(UsageError, match="schema version 99"):
        read_ledger(ledger)


def test_unknown_keys_and_missing_ones_are_borne(ledger: Path) -> None:
    ledger.write_text('{"event": "saved", "image": "sha256:00", "colour": "red"}\n')
    assert read_ledger(ledger)[0].image == "sha256:00"


def test_the_lock_keeps_others_out(ledger: Path) -> None:
    with ledger.with_name(".submissions.jsonl.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process"):
            append(ledger, make(2))
    append(ledger, make(2))
    assert len(read_ledger(ledger)) == 3


def test_parallel_writers_lose_nothing(tmp_path: Path) -> None:
    path, written = tmp_path / "ledger.jsonl", []

    def write(n: int) -> None:
        while True:
            try:
                append(path, make(0, submission=f"t{n}"))
            except UsageError:
                continue
            written.append(n)
            return

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.submission for entry in read_ledger(path)) == [f"t{n}" for n in range(8)]


def test_saved_is_not_used_but_sent_and_scored_are(ledger: Path) -> None:
    assert used_before(read_ledger(ledger), IMAGES[0]) is None
    mark_sent(ledger, "r1")
    report_scores(ledger, "r2", {"roc_auc": 0.9})
    entries = read_ledger(ledger)
    assert [used_before(entries, image) is not None for image in IMAGES] == [True, True, False]
    sent = used_before(entries, IMAGES[0].removeprefix("sha256:"))
    assert sent is not None and sent.event == "sent" and sent.archive == make(0).archive
    assert used_before(entries, make(0).tarball) == sent
    assert used_before(entries, "") is None
    append(ledger, make(0))  # saved again: still used
    assert used_before(read_ledger(ledger), IMAGES[0]) == sent


@pytest.mark.parametrize("which", ["r2", "sha256:bbbb", "bbbb", "2222", "d" * 63 + "1"])
def test_an_image_is_named_by_id_or_digest(ledger: Path, which: str) -> None:
    assert report_scores(ledger, which, {"overall_roc_auc": 0.93}).image == IMAGES[1]


def test_an_exact_id_wins_over_a_longer_one(ledger: Path) -> None:
    append(ledger, make(2, submission="r11"))
    assert mark_sent(ledger, "r1").image == IMAGES[0]


def test_the_same_image_saved_twice_is_no_question(ledger: Path) -> None:
    append(ledger, make(1, archive="9" * 64))
    assert mark_sent(ledger, "bbbb").archive == "9" * 64


@pytest.mark.parametrize(("which", "said"), [("r", "fits 2 images"), ("x", "no image 'x'"), ("", "no image ''")])
def test_an_unclear_image_lists_the_candidates(ledger: Path, which: str, said: str) -> None:
    before = ledger.read_bytes()
    with pytest.raises(UsageError, match=said) as caught:
        report_scores(ledger, which, {"roc_auc": 0.9})
    assert [detail.split(":")[0] for detail in caught.value.details] == ["r1", "r2"]
    assert ledger.read_bytes() == before


def test_an_empty_ledger_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="save an image first"):
        mark_sent(tmp_path / "none.jsonl", "r1")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"overall_balanced_acuracy": 0.8}, "did you mean overall_balanced_accuracy"),
        ({"ballanced_accuracy": 0.8}, "did you mean balanced_accuracy"),
        ({"roc_auc": 88.0}, "between 0 and 1"),
        ({"roc_auc": -0.1}, "between 0 and 1"),
        ({"roc_auc": float("nan")}, "between 0 and 1"),
        ({}, "no score"),
    ],
)
def test_bad_scores_are_refused(ledger: Path, scores: dict[str, float], said: str) -> None:
    before = ledger.read_bytes()
    with pytest.raises(UsageError, match=said):
        report_scores(ledger, "r1", scores)
    assert ledger.read_bytes() == before


def test_the_table_shows_own_scores_beside_the_sites(ledger: Path) -> None:
    append(ledger, make(2, scores={}))
    mark_sent(ledger, "r1", "try-out passed")
    report_scores(ledger, "r1", {"overall_balanced_accuracy": 0.7}, "preliminary")
    report_scores(ledger, "r1", {"roc_auc": 0.91})
    mark_sent(ledger, "r2")
    rows = ledger_table(read_ledger(ledger))
    assert [(row["submission"], row["state"]) for row in rows] == [("r1", "scored"), ("r2", "sent"), ("r3", "saved")]
    assert (rows[0]["ba"], rows[0]["auroc"], rows[0]["site_ba"], rows[0]["site_auroc"]) == (0.8, 0.9, 0.7, 0.91)
    assert rows[0]["note"] == "try-out passed; preliminary"
    assert rows[0]["date"] == make(0).date
    assert rows[2]["ba"] is None and rows[1]["site_ba"] is None


def test_an_entry_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="event"):
        append(tmp_path / "ledger.jsonl", make(0, event="lost"))
    assert not (tmp_path / "ledger.jsonl").exists()
