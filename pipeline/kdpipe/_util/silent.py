"""dask servers that open no HTTP port. Apart, because a scheduler's process should import nothing else of ours."""

from typing import Any

from distributed import Scheduler, Worker


class SilentScheduler(Scheduler):
    """A scheduler without the HTTP server, which dask can't turn off and which has no authentication."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Start none."""


class SilentWorker(Worker):
    """A worker without the HTTP server."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Start none."""
