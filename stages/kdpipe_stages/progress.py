"""Progress on stderr: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


_SECONDS_A_LINE = 10.0


@contextmanager
def showing(unit: str, label: str) -> Iterator[Callable[..., None]]:
    """A function (done, total, **fields) that shows progress whose total is only known while the work runs."""
    progress: Progress | None = None

    def show(done: int, total: int, **fields: Any) -> None:
        nonlocal progress
        progress = progress or Progress(total, unit, label)
        if done > progress.done:
            progress.advance(done - progress.done, **fields)

    try:
        yield show
    finally:
        if progress is not None:
            progress.close()


class Progress:
    """Counts units of work and shows throughput and the time that is left.

    Args:
        total: units to do.
        unit: what they are called, in the plural.
        label: what is being done.
    """

    def __init__(self, total: int, unit: str, label: str) -> None:
        self.total, self.unit, self.label, self.done = total, unit, label, 0
        self._began = self._logged = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            from rich import progress as rich
            from rich.console import Console

            columns = (
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.TextColumn("{task.fields[text]}", markup=False),
                rich.TimeRemainingColumn(),
            )
            self._bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(label, total=total, text="")
            self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, n: int, **fields: Any) -> None:
        """`n` more units are done; `fields` are shown beside the count, None ones left out."""
        self.done += n
        now = time.monotonic()
        speed = self.done / max(1e-9, now - self._began)
        extra = "".join(f", {name} {_short(value)}" for name, value in fields.items() if value is not None)
        text = f"{self.done}/{self.total} {self.unit}, {speed:.0f}/s{extra}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=text)
        elif now - self._logged >= _SECONDS_A_LINE and self.done < self.total:
            self._logged = now
            left = (self.total - self.done) / speed
            print(f"{self.label}: {text}, {_clock(left)} left", file=sys.stderr, flush=True)

    def log(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
