"""A run of each kind of fault, and a failing disk under every command; `make chaos` has as many as one likes."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import children, reliability
from tests.chaos import alone, disk, page, s3
from tests.chaos.__main__ import one
from tests.chaos.kinds import ALONE, OF_A_WORKER, Kind, kinds
from tests.chaos.scene import Scene
from tests.chaos.verdict import Finding

# dask and the S3 server leave sockets to the garbage collector.
slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
KINDS = (
    *(f"any command: {fault}" for fault in ALONE),
    *(f"dask worker: {fault}" for fault in OF_A_WORKER),
    *(f"S3: {fault}" for fault in s3.FAULTS),
    *("two clients at one cache", "a cache grows while a student reads", "dask scheduler: SIGKILL"),
    *("dask client: SIGKILL", "--workers 2: SIGKILL or SIGSTOP", "any command: standard output on a full disk"),
)
COMMANDS = (
    *("index", "prepare", "cache-teacher", "cache-teacher, features", "train-student", "cache pull", "cache push"),
    *("cache merge", "cache gc", "cache drop-views", "view", "erf", "report"),
)
PRINTING = ("evaluate", "inspect", "verify", "cache ls", "losses")


class TestEveryKind:
    pytestmark = slow

    @pytest.fixture(scope="class")
    def found(self, tmp_path_factory) -> Iterator[dict[str, Kind]]:
        with kinds(tmp_path_factory.mktemp("world")) as all_kinds:
            yield all_kinds

    def test_these_are_all(self, found):
        assert sorted(found) == sorted(KINDS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_ends_with_the_undisturbed_bytes(self, found, tmp_path, kind):
        row = one(kind, found[kind], 1, tmp_path)
        if row["outcome"] == "not available":
            pytest.skip(row["what"])
        assert row["outcome"] == "same bytes", row["what"]


class TestEveryCommand:
    pytestmark = slow

    @pytest.fixture(scope="class")
    def scene(self, tmp_path_factory) -> Scene:
        return Scene(tmp_path_factory.mktemp("world"))

    def test_these_are_all(self, scene):
        assert (tuple(scene.commands), tuple(scene.printing)) == (COMMANDS, PRINTING)

    @pytest.mark.skipif(not disk.available(), reason="this system has no seccomp filters")
    @pytest.mark.parametrize("command", COMMANDS)
    def test_refuses_a_disk_that_fails_in_a_line(self, scene, tmp_path, command):
        for number, fault in enumerate(("disk full", "I/O error", "file too large")):
            alone.disturbed(scene, tmp_path / str(number), random.Random(number), fault, command)

    @pytest.mark.parametrize("command", PRINTING)
    def test_refuses_a_full_standard_output_in_a_line(self, scene, tmp_path, command):
        assert "standard output" in alone.full_output(scene, tmp_path, random.Random(0), command).error

    def test_a_difference_is_found(self, scene, tmp_path):
        files, moments = scene.undisturbed("report")
        scene._undisturbed["report"] = {**files, "report.md": b"another"}, moments
        with pytest.raises(Finding, match=r"differs from an undisturbed run: \['report.md'\]"):
            alone.disturbed(scene, tmp_path, random.Random(0), "nothing", "report")
        del scene._undisturbed["report"]


@pytest.mark.skipif(not disk.available(), reason="this system has no seccomp filters")
@pytest.mark.parametrize(("error", "sync"), [(errno.ENOSPC, False), (errno.EIO, True)])
def test_a_disk_fails_for_good_and_only_in_writing(tmp_path, error, sync):
    (tmp_path / "old").write_bytes(b"old")
    assert children.run(failing, str(tmp_path), error, sync) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "renamed"]
    assert (tmp_path / "new").read_bytes() == b""


def failing(folder: str, error: int, sync: bool) -> None:
    place = Path(folder)
    pipe = os.pipe()
    with (place / "old").open("r+b") as file:
        disk.fail(error, sync=sync)
        attempts = [lambda: os.write(file.fileno(), b"x"), lambda: file.truncate(1), (place / "d").mkdir]
        attempts += [lambda: (place / "new").write_bytes(b"x")] + ([lambda: os.fsync(file.fileno())] if sync else [])
        for attempt in attempts:
            with pytest.raises(OSError, match=os.strerror(error)):
                attempt()
    assert (place / "old").read_bytes() == b"old"
    assert os.write(pipe[1], b"x") == 1
    (place / "old").rename(place / "renamed")


def test_the_report_counts_what_was_found(tmp_path):
    rows = [
        {"seed": 0, "kind": "a", "outcome": "same bytes", "what": "x, moment 1", "ended": "exit code 0"},
        {"seed": 1, "kind": "a", "outcome": "same bytes", "what": "x, moment 2", "ended": "killed"},
        {"seed": 2, "kind": "b", "outcome": "finding", "what": "y: differs", "ended": ""},
        {"seed": 3, "kind": "c", "outcome": "not available", "what": "no seccomp", "ended": ""},
    ]
    report = page.report(rows, "make chaos SEEDS=4")
    assert report["rows"] == [["a", 2, 2, 1, 1, "0, 1"], ["b", 1, 0, 0, 0, "2"], ["c", 1, 0, 0, 0, "3"]]
    assert "4 runs: 2 ended with the undisturbed bytes, 1 did not; 1 faults" in report["text"][-1]
    assert report["findings"] == ["seed 2, b: y: differs"]
    reliability.keep("chaos", report, tmp_path / "r.md")
    assert "- seed 2, b: y: differs" in (tmp_path / "r.md").read_text()
