"""Ctrl-C, SIGTERM and SIGUSR1, as people and schedulers send them: stop in order, and print how to resume."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kdpipe._util.redact import redact

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal that ends the command. No Exception, so that no handler of errors on the way catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """Exit code, as shells have it."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}. Finished work is kept; resume with: {resume()}"


@contextmanager
def stopping() -> Iterator[None]:
    """Raise Stopped where the main thread is when a signal comes."""

    def stop(number: int, frame: FrameType | None) -> None:
        # The one that follows at once (a scheduler's second, an impatient Ctrl-C) must not disturb the cleaning up.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    with _handled(stop):
        yield


class StopRequest:
    """Whether a signal has come, for work that stops by itself between two steps."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self) -> bool:
        """Whether one has come."""
        return self._number > 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second one stops the work at once."""
        if self._number:
            raise Stopped(number)
        self._number = number

    def stopped(self) -> Stopped:
        """What to raise when the work has stopped."""
        return Stopped(self._number or signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals instead of raising."""
    found = StopRequest()
    with _handled(found.note):
        yield found


def resume() -> str:
    """The command that is running, to be repeated; secrets of URLs are left out."""
    return shlex.join(["kdpipe", *map(redact, sys.argv[1:])])


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
