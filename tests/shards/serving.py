"""HTTP servers for tests, on this machine: one with range requests, and ones with faults."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Server:
    """Serves the files of a folder.

    Attributes:
        url: of its root, without a slash at the end.
        fault: how to fail: None, a status, "whole" (ranges are ignored), "short", "reset", "stall".
        query: what must stand after "?", to the letter; None for anything.
        user: "Authorization" that must be sent; None for none.
        requests: (method, path with query, range) of each request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, []
        self.fault: int | str | None = None
        self.query: str | None = None
        self.user: str | None = None
        self.released = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                owner.answer(self)

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts, wanted = urlsplit(request.path), request.headers.get("Range")
        self.requests.append((request.command, request.path, wanted))
        path = self.folder / parts.path.lstrip("/")
        if self.user is not None and request.headers.get("Authorization") != self.user:
            return self._refuse(request, 401)
        if self.query is not None and parts.query != self.query:
            return self._refuse(request, 403)
        if isinstance(self.fault, int):
            return self._refuse(request, self.fault)
        if path.is_dir():
            names = "".join(f'<a href="{p.name}">{p.name}</a>' for p in sorted(path.iterdir()))
            return self._send(request, 200, names.encode(), {"Content-Type": "text/html"})
        if not path.is_file():
            return self._refuse(request, 404)
        data, status, headers = path.read_bytes(), 200, {"Content-Type": "application/x-tar"}
        if wanted and self.fault != "whole":
            start, stop = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())  # type: ignore[union-attr]
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
            data, status = data[start : stop + 1], 206
        self._send(request, status, data, headers)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int) -> None:
        self._send(request, status, b"", {})

    def _send(self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.fault == "stall":
            self.released.wait(30)
        if self.fault in ("short", "reset", "stall"):
            data = data[: len(data) // 2]
        with contextlib.suppress(OSError):
            request.wfile.write(data)
            request.wfile.flush()
        if self.fault == "reset":  # no orderly end, but RST
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.fault is not None:
            request.close_connection = True


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server for the time of a test."""
    server = Server(folder)
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.server.shutdown()
        server.server.server_close()
        thread.join()
