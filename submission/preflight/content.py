"""The layers of an image laid over each other: what a container would see, as far as the upload check asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from midog.archive import MANIFEST_FILE, parse_manifest
from midog.errors import MidogError
from midog.files import sha256_bytes
from submission.preflight.layers import MODEL, PASSWD, Item, Layer

NO_HOMES = ("", "/", "/root", "/nonexistent", "/dev/null")


@dataclass(frozen=True)
class Content:
    """Paths without leading slash. Noted files that a later layer deletes are gone, credentials are not: the layer
    that holds them is part of the archive."""

    items: dict[str, Item] = field(default_factory=dict)
    leftovers: dict[str, int] = field(default_factory=dict)
    repositories: dict[str, int] = field(default_factory=dict)
    bytecode: dict[str, int] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)


def lay_over(layers: Iterable[Layer]) -> Content:
    """Join layers, lowest first: whiteouts hide what lower layers have, later files replace earlier ones."""
    content = Content()
    seen: tuple[dict[str, Any], ...] = (content.items, content.leftovers, content.repositories, content.bytecode)
    for layer in layers:
        for found in seen:
            for path in layer.deleted:
                found.pop(path, None)
            for path in [*layer.deleted, *layer.opaque]:
                _drop_below(found, path)
        for path, item in layer.items.items():
            if item.kind != "folder":
                _drop_below(content.items, path)
            content.items[path] = item
        content.leftovers.update(layer.leftovers)
        content.repositories.update(layer.repositories)
        content.bytecode.update(layer.bytecode)
        content.credentials.update(layer.credentials)
    return content


def _drop_below(found: dict[str, Any], folder: str) -> None:
    start = f"{folder}/" if folder else ""
    for path in [path for path in found if path.startswith(start)]:
        del found[path]


@dataclass(frozen=True)
class User:
    """Who USER is by the image's passwd; `problem` says why it will not do."""

    uid: int | None = None
    gid: int | None = None
    home: str = ""
    problem: str = ""


def find_user(spec: str, content: Content) -> User:
    """Look `spec`, a name or a number and perhaps a group, up in /etc/passwd."""
    item = content.items.get(PASSWD)
    if item is None or item.kind != "file":
        return User(problem="no layer holds /etc/passwd" if item is None else "/etc/passwd is a link")
    name, _, group = spec.partition(":")
    rows = [line.split(":") for line in item.content.decode(errors="replace").splitlines()]
    rows = [row for row in rows if len(row) >= 6 and row[2].isdecimal() and row[3].isdecimal()]
    row = next((row for row in rows if row[0] == name), None)
    if row is None and name.isdecimal():
        row = next((row for row in rows if int(row[2]) == int(name)), None)
    if row is None:
        return User(problem=f"{name} has no entry in /etc/passwd, so HOME stays root's; create it with: useradd -m")
    uid, gid, home = int(row[2]), int(group) if group.isdecimal() else int(row[3]), row[5]
    if uid == 0:
        return User(uid, gid, home, f"{name} is uid 0 by another name")
    if home in NO_HOMES or not home.startswith("/"):
        return User(uid, gid, home, f"{name} has no home of its own ({home or 'none'}); create it with: useradd -m")
    return User(uid, gid, home)


def file_problem(path: str, content: Content, user: User) -> str:
    """Why USER cannot read the regular file `path`, "" where it can."""
    item = content.items.get(path)
    folders = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
    linked = [folder for folder in folders if folder in content.items and content.items[folder].kind == "link"]
    if linked:
        return f"/{linked[0]} is a link, and links are not followed"
    if item is None:
        return f"no layer holds /{path}"
    if item.kind != "file":
        return f"/{path} is a {item.kind}, not a file"
    if user.uid is None:
        return ""
    closed = [f for f in folders if f in content.items and not _may(content.items[f], user, 0o1)]
    if closed:
        return f"/{path} is out of reach of USER: /{closed[0]} has mode {content.items[closed[0]].mode:04o}"
    if not _may(item, user, 0o4):
        return f"/{path} is not readable by USER: uid {item.uid}, mode {item.mode:04o}"
    return ""


def _may(item: Item, user: User, bit: int) -> bool:
    shift = 6 if item.uid == user.uid else 3 if item.gid == user.gid else 0
    return bool(item.mode & bit << shift)


@dataclass(frozen=True)
class Baked:
    """The bundle at /opt/app/model. `digest` is what the container's banner prints; "" where there is none."""

    digest: str = ""
    files: int = 0
    problems: tuple[str, ...] = ()


def find_bundle(content: Content, user: User) -> Baked:
    """Compare the baked bundle's files with its manifest: missing, changed, foreign or unreadable ones are problems."""
    start = f"{MODEL}/"
    there = {path.removeprefix(start): item for path, item in content.items.items() if path.startswith(start)}
    there = {name: item for name, item in there.items() if item.kind != "folder" and not _hidden(name)}
    manifest = there.pop(MANIFEST_FILE, None)
    if manifest is None:
        return Baked(problems=tuple(f"{name} without a {MANIFEST_FILE}" for name in sorted(there)))
    if manifest.kind != "file":
        return Baked(problems=(f"{MANIFEST_FILE} is a link",))
    digest = sha256_bytes(manifest.content)
    try:
        listed = {str(name): str(of["sha256"]) for name, of in parse_manifest(manifest.content, "it")["files"].items()}
    except MidogError as error:
        return Baked(digest, problems=(error.problem,))
    except (KeyError, TypeError, AttributeError) as error:
        return Baked(digest, problems=(f"its manifest is incomplete: {error}",))
    problems = [f"missing: {name}" for name in listed if name not in there]
    problems += [f"foreign: {name}" for name in sorted(there) if name not in listed]
    problems += [f"wrong hash: {name}" for name in listed if name in there and there[name].sha256 != listed[name]]
    unreadable = [
        file_problem(start + name, content, user)
        for name in (MANIFEST_FILE, *listed)
        if name in (*there, MANIFEST_FILE)
    ]
    return Baked(digest, len(listed), (*problems, *filter(None, unreadable)))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def script_problem(entry_point: Any, command: Any) -> str:
    """Why ENTRYPOINT (and CMD) do not start a script by its absolute path, "" where they do."""
    if not entry_point:
        return "no ENTRYPOINT"
    if not isinstance(entry_point, Sequence) or isinstance(entry_point, str):
        return "ENTRYPOINT is no list"
    words = [str(word) for word in entry_point]
    if words[0].rpartition("/")[2] in ("sh", "bash", "dash") and "-c" in words[1:2]:
        return f'shell form: {" ".join(words[2:])}; write ENTRYPOINT ["python", "/opt/app/inference.py"]'
    words += [str(word) for word in command] if isinstance(command, list) else []
    scripts = [word for word in words if word.endswith((".py", ".sh"))]
    relative = [word for word in scripts if not word.startswith("/")]
    if relative:
        return f"{relative[0]} is a relative path, and the working directory is not ours to choose"
    if "-m" in words:
        return "python -m depends on the working directory; name the script by its absolute path"
    if not scripts and not words[0].startswith("/"):
        return f"{' '.join(words)} names no script by its absolute path"
    return ""
