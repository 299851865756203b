"""docs/benchmarks.md is drawn from reports, and says what is old, missing or not met."""

import json
from pathlib import Path

import pytest
from benchmarks.sections import SECTIONS

from benchmarks import book, every, page
from benchmarks.cli import bench
from tests.benchmarks.running import benchmark, refused

ROOT = Path(__file__).parents[2]
HERE = {"date": "2026-03-02", "machine": "Abacus, 7 beads", "versions": {"python": "3.11.7", "torch": "2.15.0"}}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 0.25, "max": median + 0.5}


def step(ratio: float, **changes: object) -> dict:
    figures = {"ratio_spread": spread(ratio), "core_ms_with_cache": spread(21), "core_ms_alone": spread(20)}
    details = {"student": "resnet18", "size": 64, "batch": 8, "classes": 10, "steps": 5}
    return {**figures, **details, "command": "python -m benchmarks step --steps 5", **HERE, **changes}


def draw(**reports: dict) -> str:
    return page.draw(reports, "benchmarks.json")


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_a_section():
    text = draw(step=step(1.04))
    assert "Measured on 2026-03-02, Abacus, 7 beads; python 3.11.7, torch 2.15.0, unless" in text
    drawn = section(text, "A student's step from the cache")
    assert "resnet18 at 64 pixels, batches of 8, loading included, 5 steps" in drawn
    assert "\n    python -m benchmarks step --steps 5\n" in drawn
    assert "|  | ours | peer | ours / peer | bound |  |" in drawn
    assert "| core-ms a step | 21 (21–22) | 20 (20–20) | 1.04 (0.79–1.54) | ratio ≤ 1.05 | met |" in drawn
    assert "2026" not in drawn


@pytest.mark.parametrize(("ratio", "verdict"), [(1.05, "met"), (1.0501, "**not met**"), (3, "**not met**")])
def test_a_bound_is_met_or_not(ratio, verdict):
    # 1.0501 is written as 1.05: the verdict is on the figure, not on its writing.
    assert f"| ratio ≤ 1.05 | {verdict} |" in draw(step=step(ratio))


def test_bounds_from_below_and_on_our_own_figure():
    lines = draw(
        views={"speedup": 1.79, "speedup_ten_views": 4.0, **HERE}, opening={"seconds": 2.0, "added_mb": 599, **HERE}
    ).splitlines()
    verdicts = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in lines if "|" in line}
    assert verdicts["one view a decode, timm float"] == "**not met**"
    assert verdicts["ten views a decode, timm float"] == "met"
    assert verdicts["opening, seconds"] == "**not met**"
    assert verdicts["private memory added, MB"] == "met"


def test_other_circumstances_are_said():
    versions = {"python": "3.11.7", "torch": "2.14.0", "zarr": "3.1.6"}
    text = draw(step=step(1.0, date="2026-02-01", machine="Slate", versions=versions), targets={"rows": 5, **HERE})
    assert "Measured on 2026-03-02, Abacus" in text
    # zarr is no difference: the newest report doesn't say which it had.
    assert "\nMeasured on 2026-02-01, Slate, with torch 2.14.0.\n" in section(text, "A student's step from the cache")
    assert "Measured" not in section(text, "Targets: size, and reading them in epoch order")


def test_what_is_missing_is_a_dash():
    report = step(1.0)
    del report["core_ms_alone"], report["ratio_spread"], report["steps"]
    drawn = section(draw(step=report), "A student's step from the cache")
    assert "| core-ms a step | 21 (21–22) | – | – | ratio ≤ 1.05 | – |" in drawn
    assert "loading included, – steps" in drawn
    assert draw(**{s.name: {} for s in SECTIONS}).count("## ") == len(SECTIONS)
    assert "Not measured yet." in section(draw(), "A student's step from the cache")


def test_views_on_the_digits_and_their_operations():
    photographs = {"command": "python -m benchmarks views --index PHOTOS", "image_kb": 110.2, **HERE}
    operations = {"Rotate": {"ms": 0.5, "pil_ms": 2.0}, "Invert": {"ms": 0.1}}
    caching = {"command": "python -m benchmarks caching", **HERE}
    text = draw(views={**photographs, "operations": operations}, caching=caching)
    drawn = section(text, "Views: the papers' recipe beside timm's transform")
    assert "110 kB in the mean" in drawn
    assert "digits" not in drawn
    assert "| Rotate | 0.500 | 2.000 | 4.0 |\n| Invert | 0.100 | – | – |" in drawn
    assert "digits for want of photographs" in section(text, "What `cache-teacher` adds to the teacher's forward")


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """A document, and benches that take no time: step works, targets fails."""
    reports = {"step": step(0.5, command="python -m benchmarks step"), "views": {"command": "?", **HERE}}
    monkeypatch.setattr(every, "run_bench", lambda words: reports.get(words[0]))
    return tmp_path / "docs" / "figures.md"


def test_a_bench_that_fails_or_is_left_out_keeps_its_section(out):
    book.write(str(out), {"targets": {"ratio": 1.25, **HERE}, "parity": {"max_loss_difference": 2.0, **HERE}})
    before = out.read_text()
    result = benchmark("all", "--only", "step", "--only", "targets", "--out", out)
    assert result.code == 1
    assert result.err.splitlines()[0] == "[1/2] python -m benchmarks targets"
    assert result.err.splitlines()[-1] == f"{out}: failed: targets"
    after = out.read_text()
    for title in ("Targets: size, and reading them in epoch order", "Parity under crop and flip"):
        assert section(after, title) == section(before, title)
    assert "0.50 (0.25–1.00) | ratio ≤ 1.05 | met" in after
    assert json.loads(out.with_suffix(".json").read_text()).keys() == {"parity", "targets", "step"}
    assert "[figures.json](figures.json)" in after
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
    monkeypatch.setattr(every, "run_bench", None)
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
    assert every.run_bench(["views", "--limit", "0"]) is None
    assert "--limit" in capfd.readouterr().err


@pytest.mark.parametrize("each", SECTIONS, ids=lambda each: each.name)
def test_the_commands_of_the_sections_exist(each):
    command = bench.commands[each.words[0]]
    command.make_context("kdpipe", [*each.words[1:], *(["--index", "PHOTOS"] if each.photographs else [])])


def test_every_bench_has_a_section():
    elsewhere = {"losses", "fidelity"}  # which have documents of their own
    assert {each.words[0] for each in SECTIONS} == bench.commands.keys() - {"all"} - elsewhere


def test_the_document_is_what_its_record_draws():
    """Nobody edits a figure by hand: `python -m benchmarks all --only NAME --out docs/benchmarks.md` measures it."""
    path = ROOT / "docs" / "benchmarks.md"
    assert path.read_text() == page.draw(book.read(str(path)), "benchmarks.json")
