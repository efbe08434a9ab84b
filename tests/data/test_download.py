from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from midog.data.download import SOURCES, download
from midog.data.readers import read_layout
from midog.errors import DataError, UsageError
from midog.files import read_json, sha256_bytes

from .conftest import save

CSV = (
    ",slide,dataset,uid,x,y,expert1_label,expert2_label,expert1_atypical,expert2_atypical,expert3_atypical,majority_atypical\n"
    "0,002.tiff,MIDOG21,6,4,2,a,b,True,True,,True\n"
)


def archive(folder: Path, extra: dict[str, bytes] | None = None, csv: bool = True) -> bytes:
    image = save(folder / "source.png", 3).read_bytes()
    entries = {"AMi-Br-main/patches/atypical/MIDOG21_6.png": image, "AMi-Br-main/other/big.txt": b"x" * 99_000}
    if csv:
        entries["AMi-Br-main/AMI-BR.csv"] = CSV.encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, content in {**entries, **(extra or {})}.items():
            zipped.writestr(name, content)
    return packed.getvalue()


class Server:
    """Serves `content` for every path. `cuts`: after how many bytes to break the next transfers off."""

    def __init__(self) -> None:
        self.content, self.tag, self.ranges, self.length, self.status = b"", '"v1"', True, True, 0
        self.cuts: list[int] = []
        self.asked: list[str | None] = []
        self.sent = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked.append(self.headers.get("Range"))
                if outer.status:
                    self.send_error(outer.status)
                    return
                asked = self.headers.get("Range")
                fits = asked and outer.ranges and self.headers.get("If-Range") == outer.tag
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fits else 0
                body = outer.content[start:]
                self.send_response(206 if fits else 200)
                if outer.tag:
                    self.send_header("ETag", outer.tag)
                if outer.length:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if outer.cuts:
                    body = body[: outer.cuts.pop(0)]
                outer.sent += len(body)
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


def test_a_data_set_arrives_and_is_read(server: Server, tmp_path: Path) -> None:
    server.content = archive(tmp_path)
    folder = download("amibr", tmp_path / "data", server.url)
    assert folder == tmp_path / "data" / "amibr"
    table = read_layout([folder])
    assert table.ids == ("AMi-Br/MIDOG21_6",) and table.file(table.patches[0]).is_file()
    assert not (folder / "other").exists()
    facts = read_json(folder / "source.json")
    assert facts["sha256"] == sha256_bytes(server.content) and "Bertram" in facts["cite"]
    assert {p.name for p in folder.parent.iterdir()} == {"amibr", ".amibr.lock"}
    download("amibr", tmp_path / "data", server.url)
    assert len(server.asked) == 1  # complete: nothing asked again


def test_a_broken_transfer_continues_in_the_same_call(server: Server, tmp_path: Path) -> None:
    server.content = archive(tmp_path)
    server.cuts = [40_000, 30_000]
    download("amibr", tmp_path / "data", server.url)
    assert server.asked == [None, "bytes=40000-", "bytes=70000-"] and server.sent == len(server.content)


def test_a_broken_transfer_continues_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.content = archive(tmp_path)
    server.cuts = [10_000, 5_000, 1, 1]
    with pytest.raises(DataError, match=r"broke off \(0.0 MB are here\)\n.*continues where it stopped"):
        download("amibr", tmp_path / "data", server.url)
    assert not (tmp_path / "data" / "amibr").exists()
    download("amibr", tmp_path / "data", server.url)
    assert server.asked[-1] == "bytes=15002-" and server.sent == len(server.content)


def test_another_file_on_the_server_is_not_glued_to_the_old_half(server: Server, tmp_path: Path) -> None:
    server.content = b"old" * 40_000
    server.cuts = [10_000, 0, 0, 0]
    with pytest.raises(DataError, match="broke off"):
        download("amibr", tmp_path / "data", server.url)
    server.content, server.tag = archive(tmp_path), '"v2"'
    assert len(read_layout([download("amibr", tmp_path / "data", server.url)])) == 1


@pytest.mark.parametrize(
    "tag, ranges, length", [("", True, True), ('W/"weak"', True, True), ('"v1"', False, True), ("", False, False)]
)
def test_servers_that_cannot_resume_start_anew(
    server: Server, tmp_path: Path, tag: str, ranges: bool, length: bool
) -> None:
    server.content, server.tag, server.ranges, server.length = archive(tmp_path), tag, ranges, length
    server.cuts = [9_000] if length else []
    assert len(read_layout([download("amibr", tmp_path / "data", server.url)])) == 1


@pytest.mark.parametrize("spoil", ["cut", "flip", "html"])
def test_damage_is_found_and_the_next_call_fetches_anew(server: Server, tmp_path: Path, spoil: str) -> None:
    good = archive(tmp_path)
    flipped = bytearray(good)
    flipped[good.index(b"PNG") + 500] ^= 1
    server.content = {"cut": good[:-3000], "flip": bytes(flipped), "html": b"<html>"}[spoil]
    with pytest.raises(DataError, match="damaged"):
        download("amibr", tmp_path / "data", server.url)
    assert not (tmp_path / "data" / "amibr").exists()
    server.content = good
    assert len(read_layout([download("amibr", tmp_path / "data", server.url)])) == 1


@pytest.mark.parametrize(
    "name", ["../evil.txt", "AMi-Br-main/patches/../../evil", "/etc/evil", "C:/evil", "AMi-Br-main/patches\\..\\..\\e"]
)
def test_paths_that_escape_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    server.content = archive(tmp_path, {name: b"evil"})
    with pytest.raises(DataError, match="outside its folder"):
        download("amibr", tmp_path / "data", server.url)
    assert not list(tmp_path.rglob("evil*")) and not (tmp_path / "data" / "amibr").exists()


def test_links_and_foreign_archives_are_refused(server: Server, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("AMi-Br-main/patches/link")
    link.external_attr = 0o120777 << 16
    packed = io.BytesIO(archive(tmp_path))
    with zipfile.ZipFile(packed, "a") as zipped:
        zipped.writestr(link, "/etc/passwd")
    server.content = packed.getvalue()
    with pytest.raises(DataError, match="holds a link"):
        download("amibr", tmp_path / "data", server.url)
    server.content = archive(tmp_path, csv=False)
    with pytest.raises(DataError, match=r"does not hold AMI-BR\.csv"):
        download("amibr", tmp_path / "data", server.url)


def test_a_server_that_says_no(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match="answers 404"):
        download("amibr", tmp_path / "data", server.url)
    with pytest.raises(DataError, match="could not be fetched"):
        download("atnorm", tmp_path / "data", "http://127.0.0.1:9")


def test_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean amibr"):
        download("amibrr", tmp_path)
    (tmp_path / "amibr").mkdir()
    with pytest.raises(UsageError, match="was not made by this command"):
        download("amibr", tmp_path)
    assert set(SOURCES) == {"amibr", "atnorm"}
