"""The invoke flavour as the platform drives it: a process of its own, a plain HTTP client, folders linked anew."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
from bundle_fixture import draw_patches

from submission.challenge import TRACK2
from submission.stack import write_job

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "submission" / "inference.py"
PATIENCE = 60.0


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MIDOG_")}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


class Served:
    """A running server with an /input link, an /output folder and what it wrote to its streams."""

    def __init__(self, folder: Path, model: Path, code: str = "", **variables: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.input, self.output, self.lines = folder / "input", folder / "output", SimpleQueue[str]()
        self.output.mkdir()
        self.errors = folder / "stderr"
        command = [sys.executable, *(["-c", code] if code else [str(ENTRY)])]
        command += ["--api", "invoke", "--input", str(self.input), "--output", str(self.output), "--model", str(model)]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=environment(MIDOG_PORT="0", PYTHONPATH=str(ROOT), **variables),
            )
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.line("listening on 0.0.0.0:").rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.decode().strip())

    def line(self, start: str) -> str:
        """The next line of stdout that starts so."""
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, ends - time.monotonic()))
            except Empty:
                raise AssertionError(f"no line {start}; stderr: {self.stderr()}") from None
            if line.startswith(start):
                return line

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def wait(self) -> None:
        self.line("ready")
        assert self.ask("GET", "/health")[0] == 200

    def link(self, job: Path) -> None:
        """What the platform does before each call."""
        self.input.unlink(missing_ok=True)
        self.input.symlink_to(job)
        for entry in self.output.iterdir():
            entry.unlink()

    def answers(self) -> bytes:
        assert [entry.name for entry in self.output.iterdir()] == [TRACK2.output_file]
        return (self.output / TRACK2.output_file).read_bytes()

    def call(self, job: Path) -> bytes:
        self.link(job)
        status, text = self.ask("POST", "/invoke")
        assert status == 201, text
        return self.answers()

    def stderr(self) -> list[str]:
        return [line for line in self.errors.read_text().splitlines() if "GPU" not in line]

    def resident(self) -> int:
        """KiB held now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def files_below(self, folder: Path) -> list[str]:
        links = [*Path(f"/proc/{self.process.pid}/fd").iterdir(), Path(f"/proc/{self.process.pid}/cwd")]
        return [target for link in links if (target := os.readlink(link)).startswith(str(folder))]  # noqa: PTH115

    def end(self, which: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Status and seconds of ending by a signal."""
        started = time.monotonic()
        self.process.send_signal(which)
        return self.process.wait(PATIENCE), time.monotonic() - started


@contextmanager
def served(folder: Path, model: Path, code: str = "", **variables: str) -> Iterator[Served]:
    server = Served(folder, model, code, **variables)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """Four jobs of unequal pages, and one file cut short."""
    folder = tmp_path_factory.mktemp("jobs")
    good = [write_job(folder / f"job{n}", draw_patches(n, seed=n)) for n in (1, 3, 5, 16)]
    bad = write_job(folder / "bad", draw_patches(4))
    (stack,) = (bad / TRACK2.image_folder).iterdir()
    stack.write_bytes(stack.read_bytes()[: stack.stat().st_size // 2])
    return [*good, bad]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Served]:
    """One server, on an archive, for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("running")
    (folder / "scratch").mkdir()
    with served(folder, tiny_bundle, MIDOG_USE="full/1", TMPDIR=str(folder / "scratch")) as server:
        server.wait()
        yield server


def by_exec(job: Path, model: Path, output: Path) -> bytes:
    """What a process of the exec flavour writes for a job."""
    command = [sys.executable, str(ENTRY), "--input", str(job), "--output", str(output), "--model", str(model)]
    subprocess.run(command, env=environment(MIDOG_USE="full/1"), check=True, capture_output=True, timeout=PATIENCE)
    return (output / TRACK2.output_file).read_bytes()


def test_equals_the_exec_flavour_and_itself_whatever_ran_before(running, jobs, tiny_folder, tmp_path):
    """F1 and F2: equal bytes, with /input linked to another job in between."""
    first = [running.call(job) for job in jobs[:4]]
    again = [running.call(job) for job in reversed(jobs[:4])]
    assert first == again[::-1] and len(set(first)) == 4
    assert first[3] == by_exec(jobs[3], tiny_folder, tmp_path)
    assert [len(json.loads(answers)) for answers in first] == [1, 3, 5, 16]
    assert not running.stderr()


def test_holds_nothing_of_a_call(running, jobs):
    running.call(jobs[1])
    assert not running.files_below(jobs[1]) and not running.files_below(running.output)


def test_a_bad_job_is_told_and_the_next_one_answered(running, jobs):
    """F4: 500 with the reason in the body and as stderr's last line."""
    before = running.call(jobs[2])
    running.link(jobs[4])
    status, text = running.ask("POST", "/invoke")
    assert status == 500 and "contract: the pages of stack.tiff cannot be counted" in text and "fix: " in text
    assert running.stderr()[-1].startswith("contract: the pages of stack.tiff cannot be counted")
    assert not list(running.output.iterdir())
    running.input.unlink()
    assert running.ask("POST", "/invoke")[0] == 500
    told = len(running.stderr())
    assert running.call(jobs[2]) == before
    assert len(running.stderr()) == told


def test_other_paths_and_methods(running):
    assert running.ask("GET", "/")[0] == 404
    assert running.ask("POST", "/invoke/x", b"{}")[0] == 404
    assert running.ask("POST", "/health", b"{}")[0] == 405
    assert running.ask("GET", "/invoke")[0] == 405
    assert running.ask("DELETE", "/invoke")[0] == 405
    assert running.ask("HEAD", "/health") == (200, "")
    assert running.ask("GET", "/health?again=1")[0] == 200


def test_bodies_are_thrown_away_and_the_connection_goes_on(running, jobs):
    running.link(jobs[0])
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=PATIENCE)
    for body in (b"x" * 300_000, iter([b"GET /", b"y" * 70_000]), None):  # an iterator is sent in chunks
        connection.request("POST", "/invoke", body, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, response.read()) == (201, b"answered\n")
    connection.close()
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as raw:
        raw.sendall(b"POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as raw:
        raw.sendall(b"POST /invoke HTTP/1.1\r\nHost: x\r\n\r\n")  # and away before the answer
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as raw:
        raw.sendall(b"\x16\x03\x01 no http at all\r\n\r\n")
    running.call(jobs[0])
    assert not any("Traceback" in line for line in running.stderr())


def test_fifty_calls_in_a_row_and_four_at_once_are_right_and_memory_stays(running, jobs):
    expected = [running.call(job) for job in jobs[:4]]
    for number in range(12):
        running.call(jobs[number % 4])
    before = running.resident()
    for number in range(50):
        assert running.call(jobs[number % 4]) == expected[number % 4]
    running.link(jobs[3])
    for _ in range(5):
        replies: list[tuple[int, str]] = []
        callers = [
            threading.Thread(target=lambda: replies.append(running.ask("POST", "/invoke")))  # noqa: B023
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert [status for status, _ in replies] == [201] * 4
        assert running.answers() == expected[3]
    assert running.resident() - before < 8 * 1024


WAITING = """
import sys, time
from pathlib import Path
import submission.inference
def slowly(model, load=submission.inference.load_bundle):
    while Path("hold").exists():
        time.sleep(0.02)
    return load(model)
submission.inference.load_bundle = slowly
sys.exit(submission.inference.main(sys.argv[1:]))
"""


UNPREPARED = """
import sys
import submission.inference
from midog.bundle import open_bundle
submission.inference.load_bundle = open_bundle
sys.exit(submission.inference.main(sys.argv[1:]))
"""
"""The entry point without importing torch ahead of looking at the bundle, which takes most of the time."""


def test_a_bundle_that_cannot_be_loaded_ends_the_process(tmp_path, tiny_folder):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (model / "members/vit/fold_0.safetensors").write_bytes(b"x")
    with served(tmp_path / "run", model, UNPREPARED) as server:
        assert server.process.wait(PATIENCE) == 4
        assert "is not as its manifest says; fix: " in server.stderr()[-1]


def test_a_port_in_use_is_told(tmp_path, tiny_folder, running):
    command = [sys.executable, str(ENTRY), "--api", "invoke", "--model", str(tiny_folder)]
    variables = environment(MIDOG_PORT=str(running.port))
    done = subprocess.run(command, env=variables, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 5
    assert b"Address already in use; fix: " in done.stderr.splitlines()[-1]


def test_a_signal_ends_it_at_once_while_it_loads(tmp_path, tiny_folder):
    (tmp_path / "hold").touch()
    with served(tmp_path, tiny_folder, WAITING) as server:
        status, seconds = server.end(signal.SIGINT)
        assert status == 0 and seconds < 5 and not server.stderr()


def test_health_follows_the_loading_and_a_signal_ends_a_call(tmp_path, tiny_folder, jobs):
    """F3, F6. A named pipe that nobody writes to keeps the main thread in one system call, as a long forward would."""
    job = tmp_path / "job"
    shutil.copytree(jobs[0], job)
    (job / "inputs.json").unlink()
    os.mkfifo(job / "inputs.json")
    (tmp_path / "hold").touch()
    with served(tmp_path, tiny_folder, WAITING, MIDOG_USE="fast") as server:
        server.link(jobs[0])
        assert server.ask("GET", "/health") == (503, "the bundle is being loaded\n")
        assert server.ask("POST", "/invoke")[0] == 503
        assert not list(server.output.iterdir())
        (tmp_path / "hold").unlink()
        server.wait()
        server.call(jobs[0])
        server.link(job)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", "/invoke")
        assert server.ask("GET", "/health")[0] == 200
        status, seconds = server.end(signal.SIGTERM)
        assert status == 0 and seconds < 5 and not server.stderr()
        with pytest.raises(OSError):
            connection.getresponse()
        connection.close()


def test_a_signal_ends_an_idle_one_in_order(running, jobs):
    """The last test of the shared server: its temporary folder goes with it."""
    running.call(jobs[0])
    assert list((running.output.parent / "scratch").iterdir())
    status, seconds = running.end()
    assert status == 0 and seconds < 2.5
    assert not list((running.output.parent / "scratch").iterdir())
