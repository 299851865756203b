"""What starting costs, counted in modules rather than in seconds: torch and timm take seconds to import."""

import io
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kdpipe_stages.cli import COMMANDS, Stages
from tests.stages.test_report import report, run

HEAVY = {"torch", "timm", "dask", "distributed", "cv2", "zarr", "sklearn", "torchvision"}
# Runs words as commands in one process, and prints after each what it has imported so far.
RUN = """
import json, sys
from click.testing import CliRunner
from kdpipe_stages.cli import main
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    print(json.dumps([" ".join(words), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported(code: str, *args: str) -> list[str]:
    """Lines that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def first_heavy(commands: list[list[str]]) -> dict[str, list[str]]:
    """The first of these commands, run in one process, by which something heavy is imported, and what."""
    for line in imported(RUN, json.dumps(commands)):
        words, modules = json.loads(line)
        if found := HEAVY & {*modules}:
            return {words: sorted(found)}
    return {}


@pytest.mark.parametrize(
    "modules",
    [
        "kdpipe, kdpipe.cache, kdpipe.cache.manifest, kdpipe.cache.several, kdpipe.targets, kdpipe.views.policy",
        "kdpipe.cache.tools." + ", kdpipe.cache.tools.".join(
            ["copy", "drop_views", "describe", "gc", "ls", "merge", "statistics", "transfer"]
        ),
        "kdpipe.shards, kdpipe.models, kdpipe.teacher, kdpipe.caching, kdpipe.loader, kdpipe.trainer, kdpipe.estimate",
    ],
)  # fmt: skip
def test_these_are_imported_without_what_is_heavy(modules):
    [line] = imported(f"import {modules}, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert sorted({name.partition(".")[0] for name in json.loads(line)} & HEAVY) == []


def test_arrays_are_read_without_torch(cache_path):
    code = """
import sys
from kdpipe.cache import ArrayReader, Cache, Store
cache = Cache(Store(sys.argv[1]))
rows = ArrayReader(cache).read(cache.segments[0], cache.shards[0]["name"], cache.segments[0].views[0], 0, 2)
print(sorted(name for name in rows), sorted({"torch", "timm", "dask", "cv2", "zarr"} & {*sys.modules}))
"""
    assert imported(code, str(cache_path)) == ["['index', 'label_log_prob', 'log_prob'] []"]


def test_help_of_every_command():
    subcommands = [["cache", name] for name in ("ls", "gc", "drop-views", "merge", "pull", "push")]
    helps = [[*words, "--help"] for words in ([], *([name] for name in COMMANDS), *subcommands)]
    assert first_heavy(helps) == {}


def test_commands_that_look(cache_path, tmp_path):
    run(tmp_path, "a-kd", "a", "kd", 0.9)
    run(tmp_path, "a-none", "a", "none", 0.8)
    looks = [
        ["cache", "ls", str(Path(cache_path).parent)],
        ["cache", "ls", cache_path, "--json"],
        ["report", *map(str, report(tmp_path))],
        ["inspect", cache_path],
    ]
    assert first_heavy(looks) == {}


def test_a_terminal_shows_what_is_loaded(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    calls = []
    monkeypatch.setitem(sys.modules, "made_up_stage", command := click.Command("x", callback=lambda: calls.append(1)))
    monkeypatch.setattr(command, "run", command, raising=False)
    monkeypatch.setitem(COMMANDS, "verify", ("made_up_stage:run", ""))
    monkeypatch.setitem(COMMANDS, "report", ("made_up_stage:run", ""))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    shown = {}
    for name in ("verify", "report"):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        Stages(commands={}).main([name], standalone_mode=False)
        shown[name] = terminal.getvalue()
    assert shown == {"verify": "loading torch and timm ...\n", "report": ""}
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    Stages(commands={}).main(["verify"], standalone_mode=False)
    assert log.getvalue() == ""
    assert len(calls) == 3
