"""Inputs that are one of several files: its name, a zero byte, its content."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.target import Mutate


def join(name: str, content: bytes) -> bytes:
    return name.encode() + b"\0" + content


def split(data: bytes) -> tuple[str, bytes]:
    name, _, content = data.partition(b"\0")
    return name.decode("utf-8", "replace"), content


def of_content(mutate: Callable[[Random, bytes, list[bytes]], bytes] = mutate_bytes) -> Mutate:
    """A mutation of the content that leaves the name."""

    def changed(rng: Random, data: bytes, others: list[bytes]) -> bytes:
        name, content = split(data)
        return join(name, mutate(rng, content, [split(other)[1] for other in others[:8]]))

    return changed


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
