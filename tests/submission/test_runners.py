"""The plain process: what it shows the algorithm, and that what it claims to take away is gone."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from submission.trial.enclosure import own_in_tmp
from submission.trial.runners import GIB, Conditions, ProcessRunner

SEE = """
import json, os, resource, sys
def tried(path):
    try:
        with open(path, "x") as file:
            file.write("x")
        return True
    except OSError:
        return False
print(json.dumps({
    "argv": sys.argv[1:], "uid": os.getuid(), "cwd": os.getcwd(), "home": os.environ["HOME"],
    "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
    "input": sorted(os.listdir("/input")), "link": os.path.islink("/input"), "tmp": os.listdir("/tmp"),
    "model": os.listdir("/opt/ml/model"), "extra": os.environ.get("EXTRA"),
    "written": [p for p in ("/x", "/usr/x", "/input/x", "/opt/ml/model/x", "/opt/app/x", "/home/user/x") if tried(p)],
    "may": [p for p in ("/tmp/x", "/output/x", "/dev/shm/x") if tried(p)],
}))
print("imports 1.0 s; peak memory 77 MB;")
"""


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


def enclosed(path):
    runner = ProcessRunner(path)
    if runner.enclosure is None:
        pytest.skip("needs root, or user namespaces")
    return runner


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "inputs.json").write_text("[]")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    return tmp_path / "job", tmp_path / "out", tmp_path / "model"


def tmp(found):
    return [name for name in found["tmp"] if name not in own_in_tmp()]


def test_the_process_sees_what_the_platform_shows(script, folders):
    job, out, model = folders
    conditions = Conditions(model=model, environment={"EXTRA": "1"}, workdir="/usr", data_limit=3 * GIB)
    outcome = enclosed(script(SEE)).run(job, out, conditions)
    assert outcome.status == 0, outcome.stderr
    found = json.loads(outcome.stdout.splitlines()[0])
    assert found["argv"] == [] and found["cwd"] == "/usr" and found["extra"] == "1"
    assert found["input"] == ["inputs.json"] and found["model"] == ["manifest.json"] and tmp(found) == []
    assert found["written"] == [] and found["may"] == ["/tmp/x", "/output/x", "/dev/shm/x"]
    assert found["data"] == 3 * GIB and not found["link"]
    assert found["uid"] != os.getuid() or os.getuid() != 0
    assert outcome.peak_megabytes == 77
    assert [path.name for path in out.iterdir()] == ["x"]


def test_a_linked_job_is_shown_as_a_link_and_tmp_can_be_dirty(script, folders, tmp_path):
    _, out, _ = folders
    (tmp_path / "link").symlink_to("job")
    dirty = tmp_path / "dirty"
    dirty.mkdir()
    (dirty / "left").touch()
    outcome = enclosed(script(SEE)).run(tmp_path / "link", out, Conditions(tmp=dirty, output_read_only=True))
    found = json.loads(outcome.stdout.splitlines()[0])
    assert found["link"] and found["input"] == ["inputs.json"]
    assert tmp(found) == ["left"] and found["model"] == [] and "/output/x" not in found["may"]


def test_the_network_is_gone_and_the_control_proves_it(script):
    runner = enclosed(script(""))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).close()"
        accepted = threading.Thread(target=server.accept, daemon=True)
        accepted.start()
        inside = runner.ask(code, Conditions())
        assert accepted.is_alive() and inside.status == 1
        runner.enclosure = None  # the same question in a process that keeps its network
        outside = runner.ask(code, Conditions())
        accepted.join(5)
    assert outside.status == 0 and not accepted.is_alive()


def test_memory_beyond_the_limit_is_refused(script, folders):
    job, out, _ = folders
    text = "x = bytearray(1 << 30); print(len(x))"
    for runner in (ProcessRunner(script(text)), ProcessRunner(script(text), enclosed=False)):
        assert runner.run(job, out, Conditions(data_limit=4 * GIB)).status == 0
        refused = runner.run(job, out, Conditions(data_limit=GIB // 2))
        assert refused.status == 1 and refused.last_line == "MemoryError"


def test_what_does_not_end_is_ended_as_on_the_platform(script, folders):
    job, out, _ = folders
    text = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit('told to end'))\ntime.sleep(60)"
    outcome = ProcessRunner(script(text)).run(job, out, Conditions(time_limit=2))
    assert outcome.timed_out and outcome.last_line == "told to end" and outcome.seconds < 7


def test_without_rights_the_plain_process_says_what_it_cannot_show(script, folders):
    job, out, model = folders
    runner = ProcessRunner(script("import sys; print(sys.argv[1:])"), enclosed=False)
    outcome = runner.run(job, out, Conditions(model=model))
    assert outcome.status == 0
    assert eval(outcome.stdout) == ["--input", str(job), "--output", str(out), "--model", str(model)]
    assert {"D1", "D4"} <= set(runner.skips())
