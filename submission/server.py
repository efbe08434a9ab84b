"""The invoke flavour: a server that loads the bundle once and answers one job per `POST /invoke`.

    GET /health   503 until the bundle is loaded, then 200
    POST /invoke  201 once the answer is written, 500 with the reason for a bad job, 503 before the bundle is loaded

Calls are answered one after another by the main thread, as a process of the exec flavour would: torch gives each thread
that computes a pool of workers of its own, and its memory with it. Other threads only talk HTTP.

The standard library is enough, and nothing starts faster. Measured import, alone and on top of torch, which shares most
of it: http.server 22 and 4 ms, waitress 15 and 4, uvicorn 50 and 15, aiohttp 135 and 210.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import SimpleQueue
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any

from midog.errors import ContractError, MidogError
from submission.challenge import TRACK2
from submission.inference import answer, explain, say

if TYPE_CHECKING:
    from midog.bundle import Bundle

HEALTH, INVOKE = "/health", "/invoke"
METHODS = {HEALTH: ("GET", "HEAD"), INVOKE: ("POST",)}
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 3.0
"""Seconds a running call may still take after SIGTERM: the platform kills after 5."""
WARM_UP = 60.0
"""Seconds after which warming up is broken off: health is expected within 300."""
IDLE = 60.0
"""Seconds after which a silent connection is closed."""
LARGEST_BODY = 1 << 20
"""Bytes of a request's body that are read and thrown away: a call carries nothing."""

Reply = tuple[int, str]
Call = Future[Reply]


def serve(
    input_dir: Path,
    output_dir: Path,
    load: Callable[[], Bundle],
    budget: float | None = None,
    host: str = "0.0.0.0",
    port: int | None = None,
) -> int:
    """Listen at once, load the bundle, answer calls until SIGTERM or SIGINT; returns status 0.

    Both folders are looked up anew for each call, because the platform links and empties them in between.

    Args:
        input_dir: the job's folder, read at each call.
        output_dir: where each call's answer is written.
        load: gives the bundle.
        budget: seconds for a call; see `answer`.
        host: address to listen on.
        port: None is `MIDOG_PORT`, else the platform's.

    Raises: MidogError when the port is taken or the bundle cannot be used.
    """
    signals = _catch_signals()
    server = _listen(host, os.environ.get(TRACK2.port_variable) or TRACK2.port if port is None else port)
    for work in (server.serve_forever, lambda: _end_at_signal(server, signals)):
        threading.Thread(target=work, daemon=True).start()
    say(f"listening on {host}:{server.server_address[1]}")

    bundle = load()
    _warm_up(bundle)
    server.ready.set()
    say("ready")
    while (call := server.calls.get()) is not None:
        call.set_result(_answer(input_dir, output_dir, bundle, budget))
    return 0


def _answer(input_dir: Path, output_dir: Path, bundle: Bundle, budget: float | None) -> Reply:
    try:
        answer(input_dir, output_dir, lambda: bundle, budget)
    except Exception as error:  # whatever it was, the next call may be fine
        explain(error)
        return 500, str(error) if isinstance(error, MidogError) else f"{type(error).__name__}: {error}"
    return 201, "answered"


def _warm_up(bundle: Bundle) -> None:
    """Answer a page of noise, so that the first call takes no longer than the others. Raises: as Bundle.predict."""
    import numpy as np

    from midog.bundle import OutOfTime
    from submission.stack import read_job, write_job

    page = np.random.default_rng(0).integers(0, 256, (TRACK2.page_size, TRACK2.page_size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="midog-warm-up-") as folder:
        pages = read_job(write_job(folder, [page])).pages
    try:
        bundle.predict(pages, mpp=None, deadline=time.monotonic() + WARM_UP)
    except OutOfTime:
        say("warming up was broken off")


def _catch_signals() -> int:
    """A file descriptor that can be read once a signal has come, whichever thread it met and whatever that was doing.

    Python's own handlers run in the main thread between two of its instructions: too late while torch computes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)
    return reader


def _end_at_signal(server: Server, signals: int) -> None:
    """End the process at a signal: a call that runs gets GRACE to end, loading gets nothing."""
    os.read(signals, 1)
    if server.ready.is_set():
        server.calls.put(None)
        time.sleep(GRACE)
    os._exit(0)


class Server(ThreadingTCPServer):
    """Hands calls to the main thread.

    No HTTPServer, which looks up the host's name when it starts: without a network that can take seconds.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int]) -> None:
        self.ready = threading.Event()
        self.calls: SimpleQueue[Call | None] = SimpleQueue()
        super().__init__(address, Handler)

    def invoke(self) -> Reply:
        """Have the main thread answer a call, and wait for it."""
        call: Call = Future()
        self.calls.put(call)
        return call.result()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent about clients that went away: a line on stderr would mark the job."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _listen(host: str, port: int | str) -> Server:
    try:
        return Server((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        problem = f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"
        raise ContractError(problem, f"end the other server, or set {TRACK2.port_variable}") from error


class Handler(BaseHTTPRequestHandler):
    """One connection, any number of requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "midog", ""
    timeout = IDLE

    def do_GET(self) -> None:
        """Answer a request of any method; the name is what the base class looks for."""
        path = self.path.partition("?")[0]
        if not self._drain():
            self.close_connection = True
            self._reply(413, f"a request's body is at most {LARGEST_BODY} bytes, and a call needs none")
        elif path not in METHODS:
            self._reply(404, f"no such path; there are {' and '.join(METHODS)}")
        elif self.command not in METHODS[path]:
            self._reply(405, f"{path} takes {' or '.join(METHODS[path])}", {"Allow": ", ".join(METHODS[path])})
        elif not self.server.ready.is_set():
            self._reply(503, "the bundle is being loaded")
        elif path == HEALTH:
            self._reply(200, "ready")
        else:
            self._reply(*self.server.invoke())

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """No access log: stderr is for what deserves a participant's attention."""

    def _reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = (text + "\n").encode("utf-8", "backslashreplace")
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drain(self) -> bool:
        """Read the body, or the next request on this connection would start inside it. False when it is too long."""
        left = LARGEST_BODY
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := _number(self.rfile.readline(32).partition(b";")[0], 16):
                left -= size
                if left < 0:
                    return False
                self.rfile.read(size + 2)  # and the line end after it
            while self.rfile.readline(1024).strip():
                pass  # trailers, up to the empty line
            return True
        size = _number(self.headers.get("Content-Length", "0").encode("ascii", "replace"), 10)
        return size <= LARGEST_BODY and len(self.rfile.read(size)) == size


def _number(text: bytes, base: int) -> int:
    """A size as HTTP writes it; more than LARGEST_BODY where it is none."""
    try:
        size = int(text, base)
    except ValueError:
        return LARGEST_BODY + 1
    return size if size >= 0 else LARGEST_BODY + 1
