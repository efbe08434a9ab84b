from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from submission import engine

FAKE = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *words]) + "\\n")
if words[0] == "info":
    sys.exit(os.path.basename(sys.argv[0]) in os.environ["FAKE_DEAD"].split())
if words[:2] == ["image", "inspect"] and "--format" in words:
    known = {{"{{{{.Id}}}}": "ab" * 32, "{{{{.Size}}}}": "1000", "{{{{json .Config}}}}": '{{"Labels": {{}}}}'}}
    print(known[words[words.index("--format") + 1]])
if words[0] == "save":
    image = os.environ.get("FAKE_IMAGE")
    sys.stdout.buffer.write(open(image, "rb").read() if image else b"an image" * 1000)
    sys.exit(int(os.environ.get("FAKE_SAVE", "0")))
"""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """docker and podman that answer and write down how they are called; returns a reader of the calls.

    FAKE_IMAGE names a file whose bytes are what they save.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in engine.ENGINES:
        file = folder / name
        file.write_text(FAKE.format(python=os.path.realpath("/proc/self/exe")))
        file.chmod(0o755)
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setenv("FAKE_DEAD", "")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="session")
def real_job() -> Path:
    """The challenge's own 16-page job; skipped where the data are not at hand."""
    data = Path(os.environ.get("MIDOG_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    if not (data / "job" / "inputs.json").is_file():
        pytest.skip(f"no real challenge job in {data}")
    return data / "job"
