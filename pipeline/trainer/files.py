"""The files of a run. Each appears whole or not at all, and none of them is a pickle.

checkpoint.safetensors   all there is to go on from: tensors, and state as JSON in the header
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import CheckpointError
from pipeline.files import FolderLock, fsync

FORMAT = 1
PARTIAL = ".partial"
CHECKPOINT, LAST, BEST = "checkpoint.safetensors", "last.safetensors", "best.safetensors"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
_STATE = "kdpipe-checkpoint"
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
        """See what the folder holds; True if there is a checkpoint to go on from. The first write makes it.

        It belongs to this run until `close`; a finished one, which nobody will write to, to anybody.

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
            # One from before the first step keeps nothing: a job whose settings were mended begins anew over it.
            return there != [CHECKPOINT] or self.read_state()["number"] > 0
        if there:
            raise CheckpointError(
                "holds no checkpoint to go on from, but something else",
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
        """One safetensors file; `header` as JSON under one key, because several come in random order."""
        with self._whole(name) as path:
            save_file(tensors, path, {key: json.dumps(header, sort_keys=True, allow_nan=False)})

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """One JSON file."""
        with self._whole(name) as path:
            path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of ours; None if it is not there."""
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else None

    def write_checkpoint(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        self.write_tensors(CHECKPOINT, tensors, _STATE, {"format": FORMAT, **state})

    def read_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What `write_checkpoint` wrote: tensors on the CPU, and the state.

        Raises:
            CheckpointError: damaged, of another format, or no checkpoint of ours.
        """
        with self._checkpoint() as (file, state):
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - no mapping

    def read_state(self) -> dict[str, Any]:
        """The state alone; raises as `read_checkpoint`."""
        with self._checkpoint() as (_, state):
            return state

    @contextmanager
    def _checkpoint(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        path = self.path / CHECKPOINT
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                if state["format"] != FORMAT:
                    raise CheckpointError(
                        "checkpoint of another format",
                        where=path,
                        found=state["format"],
                        allowed=FORMAT,
                        do="Choose another --out",
                    )
                yield file, state
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError) as e:
            raise CheckpointError(
                f"checkpoint can't be read: {e}",
                where=path,
                do="Choose another --out, or delete this one to begin anew",
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
                "metrics are shorter than the checkpoint says",
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
            raise CheckpointError("another run has begun here", where=self.path, do="Choose another --out") from e
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
                do="Free space or mend the permission, then repeat the command: it goes on from the checkpoint",
            ) from e
