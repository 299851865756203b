"""The files of a run. Each appears whole or not at all, and none of them is a pickle.

checkpoint.safetensors   all that a run resumes from: tensors, and state as JSON in the header
last.safetensors         the newest epoch's weights, best.safetensors those of the best one
metrics.jsonl            one line an epoch
summary.json             written last: the run is finished
"""

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kdpipe._util import tensors as tensor_files
from kdpipe._util.files import FolderLock, fsync
from kdpipe._util.untrusted import load_json
from kdpipe.errors import CheckpointError
from kdpipe.trainer.checkpoint import FORMAT, check_state

PARTIAL = ".partial"
CHECKPOINT, LAST, BEST = "checkpoint.safetensors", "last.safetensors", "best.safetensors"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
_STATE = "kdpipe-checkpoint"
_JSON_BYTES = 2**24
_DO = {
    CHECKPOINT: "Choose another --out, or delete the folder to start again",
    SUMMARY: "Delete it, and repeat the command: it is written again from the checkpoint",
}
# What an interrupted write of one of them leaves behind.
_LEFTOVER = re.compile(
    rf"({'|'.join(map(re.escape, (CHECKPOINT, LAST, BEST, SUMMARY)))})\.[0-9a-f]{{32}}{re.escape(PARTIAL)}"
)


class RunFolder:
    """The --out of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = FolderLock(self.path)
        self._absent = False

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> bool:
        """See what the folder holds; True if there is a checkpoint to resume from. The first write makes it.

        It belongs to this run until `close`; a finished one, which is only read, is open to any.

        Raises:
            CheckpointError: it holds something else, can't be read, or another run is writing to it.
        """
        with self._writing(""):
            self._absent = not self.path.exists()
            if self._absent:
                return False
            if SUMMARY not in self._names():
                self._own()
                for name in filter(_LEFTOVER.fullmatch, self._names()):
                    (self.path / name).unlink()
            there = [name for name in self._names() if not _LEFTOVER.fullmatch(name)]
        if CHECKPOINT in there:
            # One from before the first step keeps nothing: a job whose settings were corrected starts again over it.
            return there != [CHECKPOINT] or self.read_state()["number"] > 0
        if there:
            raise CheckpointError(
                "holds no checkpoint to resume from, but something else",
                where=self.path,
                found=there[0],
                do="Choose another --out",
            )
        return False

    def _own(self) -> None:
        if not self._lock.take():
            raise CheckpointError(
                "another run is writing here", where=self.path, do="Wait for it, or choose another --out"
            )

    def close(self) -> None:
        """Let other runs have the folder."""
        self._lock.release()

    def clear(self) -> None:
        """Delete the run, its checkpoint last: until then it is another job's, to be refused or deleted again."""
        with self._writing(""):
            for name in (SUMMARY, METRICS, LAST, BEST, CHECKPOINT):
                (self.path / name).unlink(missing_ok=True)

    def write_tensors(self, name: str, tensors: dict[str, torch.Tensor], key: str, header: dict[str, Any]) -> None:
        """One safetensors file with `header`, and a digest of all of it, under `key` of its metadata."""
        with self._whole(name) as path:
            tensor_files.write(path, tensors, key, header)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """One JSON file."""
        with self._whole(name) as path:
            path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of ours; None if it is not there.

        Raises:
            CheckpointError: it can't be read, or holds no JSON object.
        """
        if not (self.path / name).is_file():
            return None
        with self._reading(name) as path:
            with path.open("rb") as file:
                found = load_json(file.read(_JSON_BYTES))
            if not isinstance(found, dict):
                raise ValueError(f"a JSON {type(found).__name__} instead of an object")
        return found

    def write_checkpoint(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        self.write_tensors(CHECKPOINT, tensors, _STATE, {"format": FORMAT, **state})

    def read_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What `write_checkpoint` wrote: tensors on the CPU, and the state.

        Raises:
            CheckpointError: damaged, of another format, or no checkpoint of ours.
        """
        with self._reading(CHECKPOINT) as path:
            tensors, header = tensor_files.read(path, _STATE)
        return tensors, check_state(header.content, path)

    def read_state(self) -> dict[str, Any]:
        """The state alone; raises as `read_checkpoint`, except for damaged tensors."""
        with self._reading(CHECKPOINT) as path:
            header = tensor_files.read_header(path, _STATE)
        return check_state(header.content, path)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            yield path
        except (OSError, ValueError) as e:
            raise CheckpointError(
                f"{path.stem} can't be read: {getattr(e, 'strerror', None) or e}", where=path, do=_DO[name]
            ) from e

    def append_metrics(self, line: dict[str, Any]) -> int:
        """Add a line durably; returns the file's length, which the next checkpoint records."""
        with self._writing(METRICS), (self.path / METRICS).open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def cut_metrics(self, length: int) -> None:
        """Forget lines after `length` bytes: their epochs come again."""
        path = self.path / METRICS
        found = path.stat().st_size if path.is_file() else 0
        if found < length:
            raise CheckpointError(
                "metrics are shorter than the checkpoint records",
                where=path,
                found=found,
                allowed=length,
                do="Choose another --out",
            )
        if found > length:
            with self._writing(METRICS):
                os.truncate(path, length)

    def _names(self) -> list[str]:
        return sorted(p.name for p in self.path.iterdir())

    def _make(self) -> None:
        if self.path.is_dir() and not self._absent:
            return
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True)
        except FileExistsError as e:
            raise CheckpointError("another run has started here", where=self.path, do="Choose another --out") from e
        self._absent = False
        self._own()
        for path in new:
            fsync(path.parent)

    @contextmanager
    def _whole(self, name: str) -> Iterator[Path]:
        with self._writing(name):
            self._make()
            temporary = self.path / f"{name}.{uuid.uuid4().hex}{PARTIAL}"
            try:
                yield temporary
                fsync(temporary)
                temporary.replace(self.path / name)
                fsync(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as e:
            raise CheckpointError(
                f"can't be written: {getattr(e, 'strerror', None) or e}",
                where=self.path / name,
                do="Free space or correct the permission, then repeat the command: it resumes from the checkpoint",
            ) from e
