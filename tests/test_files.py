"""What a user is told where a file cannot be written or a lock not be had."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from midog.cli import run as midog
from midog.errors import MidogError, UsageError
from midog.files import atomic, lock, write_text
from midog.training.jobs import Job, keep_failure

HOLD = """
import sys, time
from midog.files import lock
with lock(sys.argv[1], "busy"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file, where a folder would be needed."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


@pytest.mark.parametrize("inside", ["x.yaml", "folder/x.yaml"])
def test_a_path_that_cannot_be_written_is_a_problem_with_a_fix(file: Path, inside: str) -> None:
    target = file / inside
    with pytest.raises(MidogError, match="cannot write") as caught:
        write_text(target, "")
    assert str(target) in caught.value.problem and "a file stands where a folder must be" in caught.value.fix
    with pytest.raises(MidogError, match="cannot write"), lock(target, "busy"):
        pass


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no /sys here")
def test_a_folder_that_nobody_may_write_into_is_a_problem_with_a_fix() -> None:
    with pytest.raises(MidogError, match=r"cannot write /sys/x\.yaml"), atomic("/sys/x.yaml"):
        pass
    with pytest.raises(MidogError, match=r"cannot write /sys/x\.lock"), lock("/sys/x.lock", "busy"):
        pass


def test_a_command_says_so_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert midog(["recipes", "copy", "paper", str(file / "x.yaml")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_failure_that_cannot_be_kept_is_still_told(file: Path) -> None:
    failure = keep_failure(Job("m", 0, "0", file / "fold_0", 1), UsageError("wrong", "right"))
    assert (failure.kind, failure.problem, failure.fix) == ("UsageError", "wrong", "right")


def test_a_lock_is_waited_for_as_long_as_patience_lasts(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock", "2"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        began = time.monotonic()
        with pytest.raises(UsageError, match="busy"), lock(tmp_path / "lock", "busy"):
            pass
        assert time.monotonic() - began < 1
        with lock(tmp_path / "lock", "busy", patience=60):
            other.wait(timeout=60)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As Lustre answers that is mounted without `flock`, and NFS without its lock service."""

    def refuse(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MidogError, match="keeps no locks") as caught, lock(tmp_path / "lock", "another process"):
        pass
    assert not isinstance(caught.value, UsageError)
    assert str(tmp_path) in caught.value.problem and "flock" in caught.value.fix
