"""The document of reliability is the one that its record gives."""

import json

from tests.reliability import DOCUMENT, draw, keep

REPORT = {
    "date": "2026-01-02",
    "command": "make fuzz",
    "machine": "none",
    "text": ["Some text."],
    "columns": ["target", "executions"],
    "rows": [["labels", 1234567]],
    "findings": [],
}


def test_sections_are_kept_apart_and_drawn(tmp_path):
    out = tmp_path / "r.md"
    keep("fuzz", REPORT, out)
    assert "| labels | 1,234,567 |" in out.read_text()
    assert "Not run yet: `make chaos`." in out.read_text()
    keep("chaos", REPORT | {"findings": ["a\nfailure"]}, out)
    assert "- a failure\n" in out.read_text()
    assert json.loads(out.with_suffix(".json").read_text())["fuzz"] == REPORT


def test_the_document_is_drawn_from_its_record():
    record = DOCUMENT.with_suffix(".json")
    if DOCUMENT.exists() or record.exists():
        assert DOCUMENT.read_text() == draw(json.loads(record.read_text()), record.name)
