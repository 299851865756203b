"""Documents of figures: tables between markers, the text around them unchanged, and mistakes found first."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import report, run_all
from benchmarks.benches import BENCHES, draw
from benchmarks.cli import bench
from tests.benchmarks.running import benchmark, refused

DOCS = Path(__file__).parents[2] / "docs"
HERE = {"date": "2026-03-02", "machine": "Abacus, 7 beads", "versions": {"python": "3.11.7", "torch": "2.15.0"}}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 0.25, "max": median + 0.5}


def step(ratio: float, **changes: object) -> dict:
    figures = {"ratio_spread": spread(ratio), "core_ms_with_cache": spread(21), "core_ms_alone": spread(20)}
    details = {"student": "resnet18", "size": 64, "batch": 8, "classes": 10, "steps": 5}
    return {**figures, **details, "command": "python -m benchmarks step --steps 5", **HERE, **changes}


def drawn(name: str, figures: dict) -> str:
    return "\n\n".join(draw(name, figures))


def section(text: str, name: str) -> str:
    return text.partition(f"<!-- figures: {name} -->")[2].partition("<!-- end -->")[0]


def test_a_table():
    text = drawn("step", step(1.04))
    assert "|  | ours | reference | ours / reference | bound |  |" in text
    assert "| core-ms a step | 21 (21–22) | 20 (20–20) | 1.04 (0.79–1.54) | ratio ≤ 1.05 | met |" in text
    assert "| student | resnet18 |\n| size | 64 |" in text


@pytest.mark.parametrize(("ratio", "verdict"), [(1.05, "met"), (1.0501, "**not met**"), (3, "**not met**")])
def test_a_bound_is_met_or_not(ratio, verdict):
    # 1.0501 is written as 1.05: the verdict is on the figure, not on its writing.
    assert f"| ratio ≤ 1.05 | {verdict} |" in drawn("step", step(ratio))


def test_bounds_from_below_and_on_our_own_figure():
    views = drawn("views", {"speedup": 1.79, "speedup_ten_views": 4.0})
    opened = drawn("index-open", {"seconds": 2.0, "added_mb": 599})
    lines = (views + opened).splitlines()
    verdicts = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in lines if "|" in line}
    assert verdicts["one view a decode, timm float"] == "**not met**"
    assert verdicts["ten views a decode, timm float"] == "met"
    assert verdicts["opening, seconds"] == "**not met**"
    assert verdicts["private memory added, MB"] == "met"


def test_what_is_missing_is_a_dash():
    figures = step(1.0)
    del figures["core_ms_alone"], figures["ratio_spread"], figures["steps"]
    assert "| core-ms a step | 21 (21–22) | – | – | ratio ≤ 1.05 | – |" in drawn("step", figures)
    assert "| steps | – |" in drawn("step", figures)
    assert all(drawn(each.name, {}) for each in BENCHES)


def test_operations_of_views():
    text = drawn("views", {"operations": {"Rotate": {"ms": 0.5, "pil_ms": 2.0}, "Invert": {"ms": 0.1}}})
    assert "| Rotate | 0.500 | 2.000 | 4.0 |\n| Invert | 0.100 | – | – |" in text


def test_text_around_the_tables_is_kept(tmp_path):
    out = tmp_path / "figures.md"
    out.write_text("# By hand\n\nBefore.\n\n<!-- figures: step -->\nold\n<!-- end -->\n\nAfter.\n")
    reports = {"step": step(0.5), "targets": {"ratio": 1.25, **HERE}}
    report.write(str(out), reports, draw)
    text = out.read_text()
    assert text.startswith(
        "# By hand\n\nBefore.\n\n<!-- figures: step -->\n\n    python -m benchmarks step --steps 5\n\n"
    )
    assert "Measured on 2026-03-02, Abacus, 7 beads.\nVersions: python 3.11.7, torch 2.15.0." in section(text, "step")
    assert "old" not in text
    assert "<!-- end -->\n\nAfter.\n\n## targets\n\n<!-- figures: targets -->\n" in text
    report.write(str(out), reports, draw)
    assert out.read_text() == text
    assert report.read(str(out)) == reports


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """A document, and benches that take no time: step works, targets fails."""
    reports = {"step": step(0.5, command="python -m benchmarks step"), "views": {"command": "?", **HERE}}
    monkeypatch.setattr(run_all, "run_bench", lambda words: reports.get(words[0]))
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs" / "figures.md"


def test_a_bench_that_fails_or_is_left_out_keeps_its_tables(out):
    reports = {"parity": {"max_loss_difference": 2.0, **HERE}, "targets": {"ratio": 1.25, **HERE}}
    report.write(str(out), reports, draw)
    before = out.read_text()
    result = benchmark("all", "--only", "step", "--only", "targets", "--out", out)
    assert result.code == 1
    assert result.err.splitlines()[0] == "[1/2] python -m benchmarks targets"
    assert result.err.splitlines()[-1] == f"{out}: failed: targets"
    after = out.read_text()
    for name in reports:
        assert section(after, name) == section(before, name) != ""
    assert "0.50 (0.25–1.00) | ratio ≤ 1.05 | met" in section(after, "step")
    assert json.loads(out.with_suffix(".json").read_text()).keys() == {"parity", "targets", "step"}
    assert sorted(p.name for p in out.parent.iterdir()) == ["figures.json", "figures.md"]


def test_an_index_is_for_those_that_need_it_and_is_not_published(out, world):
    result = benchmark("all", "--only", "step", "--only", "views", "--index", world.index_path, "--out", out)
    assert (result.code, result.out) == (0, f"{out}\n")
    ran = [line for line in result.err.splitlines() if line.startswith("[")]
    assert world.index_path in ran[0]
    assert ran[1] == "[2/2] python -m benchmarks step"
    text = out.read_text()
    assert "\n    python -m benchmarks views --limit 120 --repeats 5 --index PHOTOS\n" in text
    assert world.index_path not in text + out.with_suffix(".json").read_text()


def test_mistakes_are_found_before_anything_runs(out, tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "run_bench", None)
    assert "NAME.md" in refused("all", "--out", tmp_path / "figures.json")
    refused("all", "--index", tmp_path / "none", "--out", out)
    assert not out.exists()
    (tmp_path / "file").touch()
    assert "can't be" in refused("all", "--out", tmp_path / "file" / "figures.md")
    for text in ("{", "[]", '{"step": 1}'):
        (tmp_path / "figures.json").write_text(text)
        assert "figures.json" in refused("all", "--out", tmp_path / "figures.md")
    assert not (tmp_path / "figures.md").exists()


def test_a_bench_that_stops_is_no_report(capfd):
    assert run_all.run_bench(["views", "--limit", "0"]) is None
    assert "--limit" in capfd.readouterr().err


@pytest.mark.parametrize("each", BENCHES, ids=lambda each: each.name)
def test_the_commands_of_the_benches_exist(each):
    command = bench.commands[each.arguments[0]]
    command.make_context("kdpipe", [*each.arguments[1:], *(["--index", "PHOTOS"] if each.photographs else [])])


def test_all_commands_have_a_table():
    elsewhere = {"losses", "fidelity"}  # which have documents of their own
    assert {each.arguments[0] for each in BENCHES} == bench.commands.keys() - {"all"} - elsewhere


def test_the_document_has_the_tables_of_its_reports(tmp_path):
    """Nobody edits a figure by hand: `python -m benchmarks all --only NAME --out docs/benchmarks.md` measures it."""
    for suffix in ("md", "json"):
        shutil.copy(DOCS / f"benchmarks.{suffix}", tmp_path)
    report.write(str(tmp_path / "benchmarks.md"), report.read(str(DOCS / "benchmarks.md")), draw)
    for suffix in ("md", "json"):
        assert (tmp_path / f"benchmarks.{suffix}").read_text() == (DOCS / f"benchmarks.{suffix}").read_text()


def test_all_sections_have_a_marker_in_the_document():
    text = (DOCS / "benchmarks.md").read_text()
    assert [each.name for each in BENCHES if f"<!-- figures: {each.name} -->\n" not in text] == []
