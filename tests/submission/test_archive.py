from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from midog.archive import manifest_bytes
from midog.bundle import open_bundle, pack
from midog.cli import run
from midog.errors import DataError, WeightsError
from midog.files import read_json, write_json
from submission.archive import Preflight, judge, preflight
from submission.ledger import Entry, append, mark_sent, read_ledger
from submission.preflight.layers import scan_archive

USER = 1000
PASSWD = (
    b"root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/home/toor:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n"
)
OURS = b"midog:x:1000:1000::/home/midog:/bin/bash\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"
SCRIPT = "opt/app/inference.py"
ALL = {f"A{n}" for n in range(1, 19)}


def info(name: str, size: int = 0, **others: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    for key, value in others.items():
        setattr(entry, key, value)
    return entry


def folder(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    return info(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    return info(name, type=kind, linkname=target)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Maker:
    """A good docker archive around a bundle; tests break one thing of it. Layers: path → bytes, or entries."""

    layers: list[dict[str, Any]]
    config: dict[str, Any]
    images: int = 1
    config_name: str = "{}.json"
    config_bytes: Callable[[bytes], bytes] = bytes
    layer_bytes: Callable[[bytes], bytes] = bytes
    edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]] = list
    layer_names: dict[int, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        return self.config["config"]

    def members(self) -> list[tuple[tarfile.TarInfo, bytes]]:
        tars = [make_layer(layer) for layer in self.layers]
        self.config["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{digest_of(tar)}" for tar in tars]}
        config = json.dumps(self.config).encode()
        name = self.config_name.format(digest_of(config))
        stored = [self.layer_bytes(tar) for tar in tars]
        names = [self.layer_names.get(n, f"{digest_of(tar)}.tar") for n, tar in enumerate(tars)]
        manifest = [{"Config": name, "RepoTags": ["midog:1"], "Layers": names}] * self.images
        content = json.dumps(manifest).encode()
        members = [(info(n, len(tar)), tar) for n, tar in zip(names, stored, strict=True)]
        config = self.config_bytes(config)
        return self.edit([*members, (info(name, len(config)), config), (info("manifest.json", len(content)), content)])

    def tar(self) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for entry, content in self.members():
                archive.addfile(entry, io.BytesIO(content))
        return raw.getvalue()

    def write(self, path: Path) -> Path:
        content = self.tar()
        if path.suffix == ".gz":
            content = gzip.compress(content, 1)
        elif path.suffix == ".xz":
            content = lzma.compress(content, preset=0)
        path.write_bytes(content)
        return path


def make_layer(layer: dict[str, Any]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path, content in layer.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                entry, content = content if isinstance(content, tuple) else (info(path, len(content)), content)
                archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


@pytest.fixture
def good(small_folder: Path) -> Maker:
    """A good archive around a bundle of a few bytes, as quick to write as to read."""
    return make(small_folder)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as far as its files and its manifest go."""
    folder = tmp_path_factory.mktemp("small")
    files = {"blend.json": b"{}", "a/0.safetensors": b"weights" * 10_000, "a/1.safetensors": b"others" * 10_000}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    listed = {name: {"bytes": len(content), "sha256": digest_of(content)} for name, content in files.items()}
    (folder / "manifest.json").write_bytes(manifest_bytes({"midog": "0.1.0", "files": listed}))
    return folder


def make(bundle: Path) -> Maker:
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    model = {f"opt/app/model/{file.relative_to(bundle)}": file.read_bytes() for file in files}
    base = {
        "etc": folder("etc"),
        "./etc/passwd": PASSWD,
        "etc/ssl/certs/ca.pem": b"-----BEGIN CERTIFICATE-----\n",
        "usr/lib/python3/__pycache__/x.pyc": b"1",
        "tmp": folder("tmp", 0o1777),
        "tmp/old": b"of the base image",
        "tmp/older": b"of the base image",
    }
    code = {
        "etc/passwd": PASSWD + OURS,
        "opt": folder("opt"),
        "opt/app": folder("opt/app"),
        "opt/app/inference.py": b"print('hello')\n",
        "opt/app/__pycache__/inference.pyc": b"1",
        "opt/venv/lib/python3.11/site-packages/certifi/cacert.pem": b"-----BEGIN CERTIFICATE-----\n",
        "tmp/.wh.old": b"",
        ".wh.tmp/older": b"",
        "tmp/.wh.older": b"",
    }
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": "midog",
            "Entrypoint": ["python", "/opt/app/inference.py"],
            "Cmd": None,
            "Env": ["PATH=/usr/bin", "GPG_KEY=7169"],
            "Labels": {"org.grand-challenge.api-method": "exec", "org.midog.submission": "r7"},
        },
        "history": [
            {"created_by": "base"},
            {"created_by": "ENV", "empty_layer": True},
            {"created_by": "COPY code"},
            {"created_by": "COPY model"},
        ],
    }
    return Maker([base, code, model], config)


def failing(checked: Preflight) -> dict[str, str]:
    return {verdict.line: verdict.detail for verdict in checked.verdicts if verdict.status == "fail"}


def status(checked: Preflight, line: str) -> set[str]:
    return {verdict.status for verdict in checked.verdicts if verdict.line == line}


def test_a_good_archive_passes_every_line(tiny_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    good = make(tiny_folder)
    path = good.write(tmp_path / "image.tar.gz")
    checked = preflight(path, bundle=tiny_bundle, ledger=tmp_path / "none.jsonl")
    assert {v.line: v.detail for v in checked.verdicts if v.status not in ("pass", "info")} == {}
    assert {v.line for v in checked.verdicts} == ALL
    assert checked.good
    assert checked.sha256 == digest_of(path.read_bytes())
    assert checked.bundle_digest == open_bundle(tiny_bundle).digest
    config = json.dumps(good.config).encode()
    assert checked.image_digest == f"sha256:{digest_of(config)}"
    sizes = checked.sizes
    assert sizes.compressed == path.stat().st_size
    assert [layer.made_by for layer in sizes.layers] == ["base", "COPY code", "COPY model"]
    assert sizes.unpacked == sum(layer.unpacked for layer in sizes.layers)
    assert len(sizes.largest) == 10
    assert sizes.largest[0][1] == max(len(content) for content in good.layers[2].values())
    text = checked.text()
    assert checked.bundle_digest in text and checked.sha256 in text and "COPY model" in text
    assert "org.midog.submission: r7" in text
    assert json.loads(json.dumps(checked.plain()))["image_digest"] == checked.image_digest


def test_the_tested_bundle_may_be_a_folder(good: Maker, small_folder: Path, tmp_path: Path) -> None:
    assert status(preflight(good.write(tmp_path / "image.tar"), bundle=small_folder), "A15") == {"pass"}


def test_without_bundle_and_ledger_two_lines_are_skipped(good: Maker, tmp_path: Path) -> None:
    checked = preflight(good.write(tmp_path / "image.tar"))
    assert {v.line for v in checked.verdicts if v.status == "skip"} == {"A15", "A16"}


def without(maker: Maker, n: int, *paths: str) -> None:
    for path in paths:
        del maker.layers[n][path]


def named(*names: str) -> Callable[[Any], Any]:
    return lambda members: [(e, c) for e, c in members if e.name not in names]


def config_link(members: Any) -> Any:
    return [
        (link(e.name, "elsewhere.json"), b"") if e.name.endswith(".json") and len(e.name) == 69 else (e, c)
        for e, c in members
    ]


def corrupt_layer(members: Any) -> Any:
    (entry, content), *rest = members
    at = content.index(b"of the base image")
    return [(entry, content[:at] + b"xx" + content[at + 2 :]), *rest]


def headless_layer(members: Any) -> Any:
    (entry, content), *rest = members
    return [(entry, content[:512] + b"\xff" * 512 + content[1024:]), *rest]


def user(text: Any) -> Callable[[Maker], None]:
    return lambda m: m.settings.update(User=text)


def entry_point(value: Any, command: Any = None) -> Callable[[Maker], None]:
    return lambda m: m.settings.update(Entrypoint=value, Cmd=command)


def api(value: str, key: str = "org.grand-challenge.api-method") -> Callable[[Maker], None]:
    return lambda m: m.settings.update(Labels={key: value})


def add(path: str, content: Any, n: int = 1) -> Callable[[Maker], None]:
    return lambda m: m.layers[n].update({path: content})


def first_member(m: Maker) -> str:
    return next(path for path in m.layers[2] if path.endswith(".safetensors"))


ROOTS = ("", None, "root", "Root", "0", "0:0", "ROOT:1000", "0:users")
BROKEN: list[tuple[str, str, Callable[[Maker], Any], str]] = [
    ("no manifest", "A2", lambda m: setattr(m, "edit", named("manifest.json")), "Could not find manifest.json"),
    ("two images", "A3", lambda m: setattr(m, "images", 2), "should only have 1 image. This file contains 2"),
    ("no image", "A3", lambda m: setattr(m, "images", 0), "This file contains 0"),
    ("config is a link", "A4", lambda m: setattr(m, "edit", config_link), "Could not find the config file"),
    ("config is not JSON", "A4", lambda m: setattr(m, "config_bytes", lambda c: b"{" + c), "is not JSON"),
    ("config is a list", "A4", lambda m: setattr(m, "config_bytes", lambda c: b"[]"), "holds no JSON object"),
    ("config is huge", "A4", lambda m: m.config.update(x="y" * 2_000_000), "larger than 1048576"),
    ("bad digest name", "A5", lambda m: setattr(m, "config_name", "config.json"), "valid sha256 hash"),
    ("short digest name", "A5", lambda m: setattr(m, "config_name", "{:.63}.json"), "valid sha256 hash"),
    ("changed config", "A5", lambda m: setattr(m, "config_bytes", lambda c: c + b" "), "was changed"),
    *((f"user {u!r}", "A6", user(u), "The container runs as root.") for u in ROOTS),
    ("arm64", "A7", lambda m: m.config.update(architecture="arm64"), "Architecture type 'arm64' is not supported"),
    ("no architecture", "A7", lambda m: m.config.pop("architecture"), "Architecture type None"),
    ("windows", "A7", lambda m: m.config.update(os="windows"), "not linux"),
    ("api", "A9", api("serve"), "must be one of ['exec', 'invoke'], instead we found 'serve'"),
    ("api, odd key", "A9", api("", " Org.Grand-Challenge.API-method "), "must be one of"),
    ("layer missing", "A11", lambda m: (setattr(m, "edit", lambda x: x[1:]), m.layers.insert(0, {})), "is missing"),
    ("layer changed", "A11", lambda m: setattr(m, "edit", corrupt_layer), "the config says"),
    ("layer of zstd", "A11", lambda m: m.layers.insert(0, {"x": b"1"}) or setattr(m, "edit", zstd_first), "zstd"),
    ("uid without passwd", "A13", user("1234"), "1234 has no entry in /etc/passwd"),
    ("name without passwd", "A13", user("ghost:users"), "ghost has no entry"),
    ("no passwd", "A13", lambda m: (without(m, 0, "./etc/passwd"), without(m, 1, "etc/passwd")), "no layer holds"),
    ("passwd deleted", "A13", add("etc/.wh.passwd", b"", 2), "no layer holds /etc/passwd"),
    ("passwd is a link", "A13", add("etc/passwd", link("etc/passwd", "/x"), 2), "is a link"),
    ("another root", "A13", user("toor"), "uid 0 by another name"),
    ("zeros", "A13", user("00"), "uid 0 by another name"),
    ("no home", "A13", user("nobody"), "no home of its own"),
    ("only the base's passwd", "A13", lambda m: without(m, 1, "etc/passwd"), "midog has no entry"),
    ("no entry point", "A14", entry_point(None), "no ENTRYPOINT"),
    ("only CMD", "A14", entry_point([], ["python", "/opt/app/inference.py"]), "no ENTRYPOINT"),
    ("text", "A14", entry_point("python /opt/app/inference.py"), "no list"),
    ("shell form", "A14", entry_point(["/bin/sh", "-c", "python /opt/app/inference.py"]), "shell form"),
    ("relative", "A14", entry_point(["python", "inference.py"]), "relative path"),
    ("relative in CMD", "A14", entry_point(["python"], ["inference.py"]), "relative path"),
    ("module", "A14", entry_point(["python", "-m", "submission.inference"]), "working directory"),
    ("no script", "A14", entry_point(["python"]), "names no script"),
    ("no inference.py", "A14", lambda m: without(m, 1, "opt/app/inference.py"), "no layer holds /opt/app/inference.py"),
    ("unreadable script", "A14", add(SCRIPT, (info(SCRIPT, 1, mode=0o600), b"1")), "not readable by USER"),
    ("closed folder", "A14", add("opt/app", folder("opt/app", 0o700)), "out of reach of USER"),
    ("linked script", "A14", add(SCRIPT, link(SCRIPT, "x")), "is a link, not a file"),
    ("linked folder", "A14", add("opt/app", link("opt/app", "/srv"), 1), "/opt/app is a link"),
    ("script deleted", "A14", add("opt/app/.wh.inference.py", b"", 2), "no layer holds /opt/app/inference.py"),
    ("member missing", "A14", lambda m: without(m, 2, first_member(m)), "missing: "),
    ("member changed", "A14", lambda m: m.layers[2].update({first_member(m): b"x"}), "wrong hash: "),
    ("foreign member", "A14", add("opt/app/model/extra.bin", b"1", 2), "foreign: extra.bin"),
    ("manifest missing", "A14", lambda m: without(m, 2, "opt/app/model/manifest.json"), "without a manifest.json"),
    ("not a bundle", "A14", add("opt/app/model/manifest.json", b"{}", 2), "no bundle"),
    ("in /tmp", "A17", add("tmp/cache/x", b"1"), "/tmp/cache/x"),
    ("in /input", "A17", add("input/stack.tiff", b"1"), "/input/stack.tiff"),
    ("in /output", "A17", add("output/old.json", b"1"), "/output/old.json"),
    (".git", "A17", add("opt/app/.git/HEAD", b"ref"), "/opt/app/.git"),
    (".env", "A18", add("opt/app/.env", b"TOKEN=1"), "/opt/app/.env"),
    (".netrc", "A18", add("home/midog/.netrc", b"machine"), ".netrc"),
    ("id_rsa", "A18", add("home/midog/.ssh/id_rsa", KEY), "id_rsa"),
    ("pem", "A18", add("opt/app/key.pem", KEY), "key.pem: a private key"),
    ("pip.conf", "A18", add("etc/pip.conf", b"index-url = https://me:secret@pypi.example/simple\n"), "pip.conf"),
    ("deleted key", "A18", lambda m: [add("id_rsa", KEY)(m), add(".wh.id_rsa", b"", 2)(m)], "still part of the arch"),
    ("history", "A18", lambda m: m.config["history"].append({"created_by": "RUN pip -i https://a:b@c"}), "history"),
]  # fmt: skip


def zstd_first(members: Any) -> Any:
    (entry, _), *rest = members
    content = b"\x28\xb5\x2f\xfd" + bytes(1000)
    return [(info(entry.name, len(content)), content), *rest]


@pytest.mark.parametrize(("line", "breaks", "said"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_each_broken_rule_fails_its_own_line(
    good: Maker, tmp_path: Path, line: str, breaks: Callable[[Maker], Any], said: str
) -> None:
    breaks(good)
    checked = preflight(good.write(tmp_path / "image.tar"))
    details = failing(checked)
    assert set(details) == {line}
    assert said in details[line]
    assert not checked.good
    assert details[line].isascii()


PASSING: list[tuple[str, Callable[[Maker], Any]]] = [
    ("numeric user", user("1000")),
    ("user and group", user("midog:100")),
    ("invoke", api('"Invoke" ')),
    ("no labels", lambda m: m.settings.update(Labels=None)),
    ("docker 25", lambda m: setattr(m, "config_name", "blobs/sha256/{}")),
    ("crane", lambda m: setattr(m, "config_name", "sha256:{}")),
    ("gzipped layers", lambda m: setattr(m, "layer_bytes", lambda tar: gzip.compress(tar, 1))),
    ("an empty layer", lambda m: m.layers.append({})),
    ("manifest first", lambda m: setattr(m, "edit", lambda members: members[::-1])),
    ("owner may read", add(SCRIPT, (info(SCRIPT, 1, mode=0o400, uid=USER), b"1"))),
    ("group may read", add(SCRIPT, (info(SCRIPT, 1, mode=0o440, gid=1000), b"1"))),
    ("hidden file in the model", add("opt/app/model/.DS_Store", b"1", 2)),
    ("wrapper", entry_point(["/usr/bin/tini", "--", "python", "/opt/app/inference.py"])),
    ("script in CMD", entry_point(["python"], ["/opt/app/inference.py"])),
    ("empty files in /output", add("output/.keep", b"")),
    ("opaque", lambda m: (add("tmp/x", b"1", 0)(m), add("tmp/.wh..wh..opq", b"", 2)(m))),
    ("deleted folder", lambda m: (add("tmp/d/x", b"1", 0)(m), add("tmp/.wh.d", b"", 1)(m))),
    ("keys of Python's tests", add("usr/lib/python3.11/test/keycert.pem", KEY)),
    ("pip.conf without password", add("etc/pip.conf", b"index-url = https://pypi.example/simple\n")),
]


@pytest.mark.parametrize("changes", [p[1] for p in PASSING], ids=[p[0] for p in PASSING])
def test_unusual_but_good_archives_pass(
    good: Maker, small_folder: Path, tmp_path: Path, changes: Callable[[Maker], Any]
) -> None:
    changes(good)
    checked = preflight(good.write(tmp_path / "image.tar"), bundle=small_folder, ledger=tmp_path / "ledger")
    assert {v.line: v.detail for v in checked.verdicts if v.status not in ("pass", "info")} == {}


WARNED: list[tuple[str, str, Callable[[Maker], Any], str]] = [
    ("no bundle", "A14", lambda m: m.layers.pop(), "weights must come as a model tarball"),
    ("other script", "A14", entry_point(["python", "/srv/run.py"]), "does not run /opt/app/inference.py"),
    ("bytecode", "A17", add("srv/tool/__pycache__/x.pyc", b"1"), "/srv/tool/__pycache__"),
    ("another repository", "A17", add("usr/src/tool/.git/HEAD", b"1"), "/usr/src/tool/.git"),
    ("variable", "A18", lambda m: m.settings.update(Env=["HF_TOKEN=hf_x"]), "HF_TOKEN"),
]


@pytest.mark.parametrize(("line", "changes", "said"), [w[1:] for w in WARNED], ids=[w[0] for w in WARNED])
def test_what_need_not_fail_is_warned_about(
    good: Maker, tmp_path: Path, line: str, changes: Callable[[Maker], Any], said: str
) -> None:
    changes(good)
    checked = preflight(good.write(tmp_path / "image.tar"))
    assert checked.good
    assert [(v.line, said in v.detail) for v in checked.verdicts if v.status == "warn"] == [(line, True)]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_every_allowed_name_is_read(good: Maker, tmp_path: Path, suffix: str) -> None:
    assert preflight(good.write(tmp_path / f"image{suffix}")).good


def test_another_name_fails_a1_alone(good: Maker, tmp_path: Path) -> None:
    path = good.write(tmp_path / "image.tar.gz").rename(tmp_path / "image.tgz")
    checked = preflight(path)
    assert set(failing(checked)) == {"A1"}
    assert status(checked, "A6") == {"pass"}


def test_a_name_of_another_compression_is_a_warning(good: Maker, tmp_path: Path) -> None:
    checked = preflight(good.write(tmp_path / "image.tar.xz").rename(tmp_path / "image.tar.gz"))
    assert checked.good and status(checked, "A11") == {"warn"}


def test_podmans_links_are_ignored(good: Maker, tmp_path: Path) -> None:
    def linked(members: Any) -> Any:
        links = [(link(f"{n}/layer.tar", f"../{entry.name}"), b"") for n, (entry, _) in enumerate(members[:3])]
        return [*members[:-1], *links, (info("repositories", 2), b"{}"), members[-1]]

    good.edit = linked
    assert failing(preflight(good.write(tmp_path / "image.tar"))) == {}


def test_a_layer_that_is_a_link_to_an_equal_one_is_found_by_its_content(good: Maker, tmp_path: Path) -> None:
    good.layers.append({})
    good.layers.append({})
    good.layer_names = {3: "a/layer.tar", 4: "b/layer.tar"}
    good.edit = lambda members: [
        (link("b/layer.tar", "../a/layer.tar"), b"") if e.name == "b/layer.tar" else (e, c) for e, c in members
    ]
    assert failing(preflight(good.write(tmp_path / "image.tar"))) == {}


def test_an_oci_archive_is_told_what_it_is(good: Maker, tmp_path: Path) -> None:
    good.edit = lambda members: [
        (info("oci-layout", 2), b"{}"),
        (info("index.json", 2), b"{}"),
        *((info(f"blobs/sha256/{digest_of(c)}", len(c)), c) for _, c in members[:-1]),
    ]
    details = failing(preflight(good.write(tmp_path / "image.tar")))
    assert set(details) == {"A2"} and "--format docker-archive" in details["A2"]


CONTENT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda tar: b"",
    "text": lambda tar: b"this is no archive\n" * 1000,
    "a gzip of text": lambda tar: gzip.compress(b"this is no archive\n" * 1000),
    "bzip2": lambda tar: __import__("bz2").compress(tar[:100_000]),
    "zstd": lambda tar: b"\x28\xb5\x2f\xfd" + tar[:10_000],
    "cut header of gzip": lambda tar: gzip.compress(tar)[:8],
}


@pytest.mark.parametrize("make", CONTENT.values(), ids=CONTENT)
def test_what_is_no_archive_fails_a1_and_skips_the_rest(
    good: Maker, tmp_path: Path, make: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "image.tar.gz"
    path.write_bytes(make(good.tar()))
    checked = preflight(path)
    assert set(failing(checked)) == {"A1"}
    assert failing(checked)["A1"].startswith("Could not decompress the container image file.")
    assert {v.status for v in checked.verdicts if v.line not in ("A1", "A12")} == {"skip"}
    assert checked.sha256 == digest_of(path.read_bytes())


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.97])
def test_an_archive_cut_short_fails(good: Maker, tmp_path: Path, kind: str, share: float) -> None:
    path = good.write(tmp_path / f"image{kind}")
    whole = path.read_bytes()
    size = len(whole) if kind != ".tar" else good.tar().rstrip(b"\0").__len__()
    path.write_bytes(whole[: int(size * share)])
    checked = preflight(path)
    assert set(failing(checked)) <= {"A1", "A11"} and "A1" in failing(checked)
    assert status(checked, "A6") == {"skip"}


def test_a_tar_cut_between_two_members_fails_a11(good: Maker, tmp_path: Path) -> None:
    path = good.write(tmp_path / "image.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(whole[: last.offset_data + 512 * -(-last.size // 512)])
    details = failing(preflight(path))
    assert set(details) == {"A11"} and "end mark" in details["A11"]


@pytest.mark.parametrize("at", [-8, -4])
def test_a_wrong_checksum_or_length_at_the_end_of_gzip_fails(good: Maker, tmp_path: Path, at: int) -> None:
    path = good.write(tmp_path / "image.tar.gz")
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert "A1" in failing(preflight(path))


def test_a_damaged_header_in_a_layer_fails_a11(good: Maker, tmp_path: Path) -> None:
    good.edit = headless_layer
    details = failing(preflight(good.write(tmp_path / "image.tar")))
    assert "is damaged" in details["A11"]


def test_a_damaged_header_in_the_archive_is_not_taken_for_its_end(good: Maker, tmp_path: Path) -> None:
    path = good.write(tmp_path / "image.tar")
    with tarfile.open(path) as archive:
        at = archive.getmembers()[1].offset
    content = bytearray(path.read_bytes())
    content[at : at + 512] = b"\xff" * 512
    path.write_bytes(content)
    assert set(failing(preflight(path))) == {"A1", "A11"}


def test_several_gzip_parts_are_one_stream(good: Maker, tmp_path: Path) -> None:
    tar = good.tar()
    (tmp_path / "image.tar.gz").write_bytes(gzip.compress(tar[:5000]) + gzip.compress(tar[5000:]))
    assert preflight(tmp_path / "image.tar.gz").good


def test_the_size_limit(good: Maker, tmp_path: Path) -> None:
    scan = scan_archive(good.write(tmp_path / "image.tar"))
    unpacked = judge(scan, None, None).sizes.unpacked
    too_large = judge(scan, None, None, limit=unpacked)
    assert set(failing(too_large)) == {"A10"} and "too large" in failing(too_large)["A10"]
    assert status(judge(scan, None, None, limit=unpacked + 1), "A10") == {"warn"}
    assert status(judge(scan, None, None, limit=2 * unpacked), "A10") == {"pass"}


def test_another_tested_bundle_fails_a15(good: Maker, small_folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((small_folder / "manifest.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps({**manifest, "note": "another"}))
    assert set(failing(preflight(good.write(tmp_path / "image.tar"), bundle=tmp_path / "other"))) == {"A15"}


def test_a_tested_bundle_that_is_none_is_an_error(good: Maker, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        preflight(good.write(tmp_path / "image.tar"), bundle=tmp_path / "nothing")


def test_an_image_that_was_sent_is_refused_and_one_that_was_only_saved_is_not(good: Maker, tmp_path: Path) -> None:
    path, ledger = good.write(tmp_path / "image.tar.gz"), tmp_path / "submissions.jsonl"
    checked = preflight(path, ledger=ledger)
    append(ledger, Entry("saved", checked.image_digest, archive=checked.sha256, submission="r7"))
    assert status(preflight(path, ledger=ledger), "A16") == {"pass"}
    mark_sent(ledger, "r7")
    details = failing(preflight(path, ledger=ledger))
    assert set(details) == {"A16"} and "has already been uploaded" in details["A16"]


@pytest.mark.parametrize("name", ["missing.tar.gz", "."])
def test_no_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        preflight(tmp_path / name)


def test_odd_json_never_raises(good: Maker, tmp_path: Path) -> None:
    for content in (b"{}", b"[{}]", b"[3]", b"3", b"[" * 100_000, b'[{"Config": 3, "Layers": "x"}]', b"\xff\xfe"):
        good.edit = lambda members, c=content: [*members[:-1], (info("manifest.json", len(c)), c)]  # type: ignore[misc]
        assert not preflight(good.write(tmp_path / "image.tar")).good
    good.edit = list
    for odd in ("x", 3, [], None, {"User": 3, "Entrypoint": 3, "Labels": [], "Env": "x", "Cmd": 3}):
        good.config |= {"config": odd, "history": odd}
        assert not preflight(good.write(tmp_path / "image.tar")).good


def test_memory_stays_small_whatever_a_layer_holds(good: Maker, tmp_path: Path) -> None:
    size = 200_000_000
    config = json.dumps(good.config).encode()

    class Zeros(io.RawIOBase):
        def read(self, n: int = -1) -> bytes:
            return bytes(n)

    path = tmp_path / "image.tar"
    length = 512 + -(-size // 512) * 512 + 1024
    manifest = json.dumps([{"Config": f"{digest_of(config)}.json", "Layers": ["layer.tar"]}]).encode()
    with path.open("wb") as raw, tarfile.open(fileobj=raw, mode="w|", bufsize=1 << 20) as archive:
        archive.addfile(info("layer.tar", length), Layered(info("opt/app/model/big.bin", size).tobuf(), Zeros()))
        for name, content in ((f"{digest_of(config)}.json", config), ("manifest.json", manifest)):
            archive.addfile(info(name, len(content)), io.BytesIO(content))
    tracemalloc.start()
    checked = preflight(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert checked.sizes.largest == (("opt/app/model/big.bin", size),)
    assert status(checked, "A11") == {"pass"}
    assert peak < 20_000_000


class Layered(io.RawIOBase):
    """`head`, then zeros."""

    def __init__(self, head: bytes, zeros: io.RawIOBase) -> None:
        self.head, self.zeros = head, zeros

    def read(self, n: int = -1) -> bytes:
        part, self.head = self.head[:n], self.head[n:]
        return part + bytes(n - len(part))


# ── midog container save ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def blended(tiny_blend: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with what `midog blend` notes beside its points, model.tar.gz."""
    folder = tmp_path_factory.mktemp("blended")
    about = {"settings": {"kind": "mean"}, "scores": [], "data_hash": "d" * 64, "folds_hash": "f" * 64}
    write_json(folder / "blend.json", {**read_json(tiny_blend / "blend.json"), **about})
    return pack(folder, folder / "model.tar.gz")


@pytest.fixture
def saved(
    engines: Any, blended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Path]]:
    """`midog container save` of an image with or without the bundle; returns its status and the ledger."""

    def save(bundle: Path, *words: str, baked: bool) -> tuple[int, Path]:
        opened = open_bundle(blended)
        image = make(opened.folder)
        if not baked:
            image.layers.pop()
        monkeypatch.setenv("FAKE_IMAGE", str(image.write(tmp_path / "fake.tar")))
        ledger = tmp_path / "ledger.jsonl"
        options = ["-o", str(tmp_path / "image.tar.gz"), "--ledger", str(ledger), *words]
        return run(["container", "save", str(bundle), *options]), ledger

    return save


def test_an_image_without_weights_is_not_saved_as_baked(
    saved: Any, blended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, ledger = saved(blended, baked=False)
    said = capsys.readouterr()
    assert status == 1 and not ledger.exists()
    assert "no weights at all; bake them in: midog container build" in said.out
    assert "the weights are in the image" not in said.out and "not fit to be uploaded" in said.err
    status, ledger = saved(blended, baked=True)
    assert status == 0 and [entry.tarball for entry in read_ledger(ledger)] == [""], "no tarball is uploaded"
    assert "no model tarball: the weights are in the image" in capsys.readouterr().out


@pytest.mark.parametrize("baked", [False, True])
def test_a_tarball_goes_before_what_the_image_holds(
    saved: Any, blended: Path, capsys: pytest.CaptureFixture[str], baked: bool
) -> None:
    status, ledger = saved(blended, "--weights", "none", baked=baked)
    said = capsys.readouterr().out
    assert status == 0 and f"Models, upload: {blended}" in said
    assert ("the uploaded tarball goes before it" in said) == baked
    assert [entry.tarball for entry in read_ledger(ledger)] == [digest_of(blended.read_bytes())]


def test_a_tarball_is_uploaded_once(
    saved: Any, blended: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = append(tmp_path / "ledger.jsonl", Entry("saved", "sha256:" + "a" * 64, submission="r1"))
    assert saved(blended, "--weights", "none", baked=False)[0] == 0
    assert saved(blended, "--weights", "none", baked=False)[0] == 0, "saved alone is not uploaded"
    mark_sent(ledger, digest_of(blended.read_bytes()))
    before = ledger.read_bytes()
    capsys.readouterr()
    assert saved(blended, "--weights", "none", baked=False)[0] == 2 and ledger.read_bytes() == before
    said = capsys.readouterr().err
    assert "has already been uploaded (sent on " in said and f"midog container build {blended}" in said
    assert saved(tiny_folder, "--weights", "none", baked=False)[0] == 2
    assert "is a folder" in capsys.readouterr().err
    assert saved(blended, "--weights", "bakd", baked=True)[0] == 2
    assert "--weights baked or none" in capsys.readouterr().err
