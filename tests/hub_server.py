"""A hub on loopback: what huggingface_hub asks one for when it looks for a file and fetches it.

As on the real one, a HEAD of `/<repo>/resolve/<revision>/<file>` states commit, sha256 and size, and the bytes come
from another host (`localhost` beside `127.0.0.1`), which must not see the token.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` by "repo/file". `gated` repositories need `token`. `stall_at`: bytes after which a transfer hangs.

    `sha256` and `size` replace what is announced; `status` is what every request is answered with; `body_status` the
    answer to the next transfers, one each. `gets` are the ranges asked for ("" whole), `leaked` the tokens that the
    bytes' host saw.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_good"
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    sha256: str = ""
    size: int = 0
    status: int = 0
    body_status: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    stall_at: int = 0
    gets: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    leaked: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        hub.paths.append(self.path)
        hub.agents.add(self.headers.get("User-Agent", ""))
        if self.path.startswith("/cdn/"):
            self._body(hub.files[self.path.removeprefix("/cdn/")])
        elif hub.status:
            self._refuse(hub.status, "")
        else:
            self._resolve()

    def _resolve(self) -> None:
        hub = self.hub
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        authorization = self.headers.get("Authorization", "")
        if authorization and authorization != f"Bearer {hub.token}" and not authorization.endswith("stranger"):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo in hub.gated and authorization != f"Bearer {hub.token}":
            self._refuse(403 if authorization else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        elif not any(key.startswith(f"{repo}/") for key in hub.files):
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in hub.revisions:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif f"{repo}/{name}" not in hub.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = hub.files[f"{repo}/{name}"]
            self.send_response(302)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{hub.sha256 or hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(hub.size or len(content)))
            self.send_header("Location", f"http://localhost:{hub.port}/cdn/{repo}/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self, content: bytes) -> None:
        hub = self.hub
        hub.gets.append(self.headers.get("Range", ""))
        hub.leaked += [value for key, value in self.headers.items() if key.lower() == "authorization"]
        if hub.body_status:
            self._refuse(hub.body_status.pop(0), "")
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if hub.stall_at:
            self.wfile.write(content[start : hub.stall_at])
            self.wfile.flush()
            hub.released.wait(240)
            return
        self.wfile.write(content[start : hub.cuts.pop(0) if hub.cuts else None])


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub; what it has and how it behaves can be changed while it runs."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
