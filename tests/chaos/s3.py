"""A faulty object store: commands on an S3 server that refuses, resets, breaks off in the middle, or is slow."""

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos import child
from tests.chaos.scene import TRUST, Files, Scene, differing
from tests.chaos.verdict import Finding, Run
from tests.remote.s3 import S3, Wsgi, serving
from tests.remote.s3 import tree as objects
from tests.tiny import tree

FAULTS = ("503", "reset", "half bodies", "slow")
_SECONDS = 0.3
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Faulty:
    """A WSGI application that disturbs some of its requests, counted from `disturb` on."""

    def __init__(self, app: Wsgi) -> None:
        self._app, self._lock = app, threading.Lock()
        self._fault, self._range, self.count = "", range(0), 0

    def disturb(self, fault: str, requests: range) -> None:
        """From now on: the requests of these numbers (from 0) meet the fault."""
        with self._lock:
            self._fault, self._range, self.count = fault, requests, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            fault = self._fault if self.count in self._range else ""
            self.count += 1
        if fault == "503":
            body = b"" if environ["REQUEST_METHOD"] == "HEAD" else _SLOW_DOWN
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if fault == "reset":
            _reset(environ["werkzeug.socket"])
            raise ConnectionResetError
        if fault == "slow":
            time.sleep(_SECONDS)
        answer = self._app(environ, start_response)
        return _half(answer, environ["werkzeug.socket"]) if fault == "half bodies" else answer


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # `close` would wait for the server's own file objects of it; those find the end of another connection.
    ours, other = socket.socketpair()
    other.close()
    os.dup2(ours.fileno(), connection.fileno())
    ours.close()


def _half(answer: Iterable[bytes], connection: socket.socket) -> Iterator[bytes]:
    """The first half of a body whose length has been announced."""
    whole = b"".join(answer)
    yield whole[: len(whole) // 2]
    if len(whole) > 1:
        connection.shutdown(socket.SHUT_RDWR)


class Bucket:
    """A server with a cache on it, and what the commands leave when nothing disturbs them."""

    def __init__(self, scene: Scene, server: S3, faulty: Faulty) -> None:
        self.scene, self.server, self.faulty = scene, server, faulty
        self.cache = f"{server.bucket()}/cache.zarr"
        self._undisturbed: dict[str, tuple[Files, int]] = {}
        self._run(["cache", "push", scene.cache, self.cache], scene.folder / "notes" / "s3")

    def commands(self) -> dict[str, tuple[Callable[[str, Path], list[object]], Callable[[str, Path], Files]]]:
        """By name: words and what is left, given a URL and a folder of the command's own."""
        scene = self.scene
        leaves = scene.commands["train-student"].leaves
        return {
            "cache-teacher": (lambda url, _: scene.caching(url), lambda url, _: objects(url)),
            "cache push": (lambda url, _: ["cache", "push", scene.cache, url], lambda url, _: objects(url)),
            "cache pull": (lambda _, out: ["cache", "pull", self.cache, out / "c"], lambda _, out: tree(out / "c")),
            "train-student": (lambda _, out: scene.training(out / "run", self.cache), lambda _, out: leaves(out)),
            "verify": (lambda _, out: ["verify", self.cache, *TRUST], lambda _, out: {}),
        }

    def undisturbed(self, name: str) -> tuple[Files, int]:
        """What a command leaves, and how many requests it makes."""
        if name not in self._undisturbed:
            out = self.scene.folder / "undisturbed" / f"s3-{name.replace(' ', '-')}"
            self._undisturbed[name] = self.attempt(name, f"{self.server.bucket()}/c.zarr", out), self.faulty.count
        return self._undisturbed[name]

    def attempt(self, name: str, url: str, out: Path) -> Files:
        """Run a command undisturbed; what it leaves."""
        argv, leaves = self.commands()[name]
        self.faulty.disturb("", range(0))
        self._run(argv(url, out), out / "notes")
        return leaves(url, out)

    @staticmethod
    def _run(argv: list[object], notes: Path) -> None:
        ended = child.run(argv, notes, env=_environment())
        assert ended.code == 0, ended


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@contextmanager
def bucket(scene: Scene) -> Iterator[Bucket]:
    """A server on 127.0.0.1 that can be disturbed."""
    wrapped: list[Faulty] = []

    def wrap(app: Wsgi) -> Wsgi:
        wrapped.append(Faulty(app))
        return wrapped[0]

    with serving(wrap) as server:
        yield Bucket(scene, server, wrapped[0])


def disturbed(where: Bucket, folder: Path, rng: random.Random, fault: str, command: str | None = None) -> Run:
    """Disturb some of a command's requests; repeat it; compare."""
    name = command or rng.choice(list(where.commands()))
    expected, requests = where.undisturbed(name)
    first, count = rng.randrange(requests), rng.choice((1, 2, 5, 20))
    url, out = f"{where.server.bucket()}/c.zarr", folder / "out"
    out.mkdir(parents=True)
    what = f"{name}, requests {first} to {first + count - 1} of {requests}"
    where.faulty.disturb(fault, range(first, first + count))
    ended = child.run(where.commands()[name][0](url, out), folder / "notes", env=_environment())
    if ended.code not in (0, 1, 2) or "Traceback" in ended.err or (ended.code == 2 and not ended.error):
        raise Finding(what, f"exit code {ended.code}: {ended.err[-1500:]}")
    if ended.code == 1 and name == "verify":
        raise Finding(what, f"a sound cache is called damaged: {ended.out[-1000:]}")
    try:
        found = where.attempt(name, url, out)
    except AssertionError as e:
        raise Finding(what, f"repeated: {e}") from e
    # Locks that could not be deleted end by themselves, and go with the next process that is alone.
    found, expected = (
        {path: data for path, data in files.items() if not path.startswith(("notes/", "locks/"))}
        for files in (found, expected)
    )
    different = differing(found, expected)
    if different:
        raise Finding(what, f"differs from an undisturbed run: {different[:5]}")
    return Run(what, f"exit code {ended.code}", ended.error)
