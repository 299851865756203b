"""An S3 server on this machine: moto's, with the environment that s3fs finds it by, here and in child processes."""

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

# No profile, file or instance of the machine's own may be asked for credentials.
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}

Wsgi = Callable[[dict[str, Any], Any], Any]


class Atomic:
    """A WSGI application whose writing requests are one after another, which moto's are not.

    Without this, two puts with If-None-Match could both find nothing there and both succeed.
    """

    def __init__(self, app: Wsgi) -> None:
        self._app, self._lock = app, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start_response)
        with self._lock:
            return self._app(environ, start_response)


class S3:
    """A running server."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def bucket(self) -> str:
        """The URL of a new, empty bucket."""
        name = f"kdpipe-{uuid.uuid4().hex}"
        filesystem().mkdir(name)
        return f"s3://{name}"


def filesystem() -> s3fs.S3FileSystem:
    """The file system that kdpipe uses too."""
    return fsspec.filesystem("s3")


def tree(url: str, ignore: tuple[str, ...] = ("provenance.json",)) -> dict[str, bytes]:
    """Every object below a URL with its bytes, as `tests.tiny.tree` has it of a folder."""
    root = url.removeprefix("s3://")
    fs = filesystem()
    fs.invalidate_cache()
    names = sorted(name for name in fs.find(root) if name.rsplit("/", 1)[-1] not in ignore)
    return {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in names}


@contextmanager
def serving(wrap: Callable[[Wsgi], Wsgi] = lambda app: app) -> Iterator[S3]:
    """Serve S3 on a free port of 127.0.0.1. `wrap` puts a WSGI application around moto's, to disturb it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = wrap(Atomic(DomainDispatcherApplication(create_backend_app)))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with environment(AWS_ENDPOINT_URL=endpoint, **_ENVIRONMENT):
        try:
            yield S3(endpoint)
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set or remove variables; file systems made under others are forgotten at both ends."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for fs in list(s3fs.S3FileSystem._cache.values()):
        if fs._s3 is not None:
            fs.close_session(fs.loop, fs._s3)
    s3fs.S3FileSystem.clear_instance_cache()
