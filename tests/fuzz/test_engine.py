"""The engine's processes: counts, and inputs that end one."""

import os
import time
from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.__main__ import main
from tests.fuzz.target import Target


def test_processes_share_the_inputs_and_the_result_is_written(tmp_path, capsys):
    out, document = tmp_path / "o.json", tmp_path / "d.md"
    words = ["json", "--executions", "300", "--no-atheris", "--json", str(out), "--document", str(document)]
    assert main(words) == 0
    assert "| json | 300 | 0 |" in document.read_text()
    assert '"executions": 300' in out.read_text()
    assert main(["json", "--only", "5"]) == 0
    assert "refused" in (shown := capsys.readouterr().out) or "accepted" in shown


def test_an_input_that_ends_its_process_is_found_and_the_others_are_executed(monkeypatch):
    monkeypatch.setattr(engine, "_spawn", engine.multiprocessing.get_context("fork"))
    monkeypatch.setattr(engine, "make", dying)
    tally = engine.run("dying", 0, 40)
    assert tally.executions == 40
    assert [f["number"] for f in tally.findings.values()] == [13]
    assert "exit code -9" in next(iter(tally.findings))


def test_an_input_without_end_is_ended_from_outside(monkeypatch):
    monkeypatch.setattr(engine, "_spawn", engine.multiprocessing.get_context("fork"))
    monkeypatch.setattr(engine, "make", deaf)
    monkeypatch.setattr(engine, "_PATIENCE", 0.5)
    tally = engine.run("deaf", 0, 10)
    assert tally.executions == 10
    assert [(f["kind"], f["number"]) for f in tally.findings.values()] == [("no end", 3)]


def dying(name: str, folder: Path) -> Target:
    def run(data: bytes) -> None:
        if data == b"13":
            os.kill(os.getpid(), 9)

    return Target(run, [str(i).encode() for i in range(40)], 40)


def deaf(name: str, folder: Path) -> Target:
    def run(data: bytes) -> None:
        while data == b"3":
            try:
                time.sleep(0.01)
            except BaseException:
                continue

    return Target(run, [str(i).encode() for i in range(10)], 10)


def test_a_target_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "no target nonsense" in capsys.readouterr().err
