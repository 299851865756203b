"""Sealed records, by their bytes: a record that is taken is one that was written."""

from pathlib import Path

from kdpipe.cache.sealed import seal, unseal
from tests.fuzz.target import Changed, Target

_CONTENTS = [
    {"format": 1, "files": {"zarr.json": "0" * 64, "canaries/labels.json": "1" * 64}},
    {"segment": "000-top4-float16-v0-3", "shard": {"name": "a.tar", "samples": 40}, "quality": {"views": 3.5}},
    {"runs": [{"date": "2026-01-01", "teacher": {"model": "é", "weights": None}}], "nested": [[[{}]]]},
]


def make(folder: Path) -> Target:
    return Target(run, [seal(content) for content in _CONTENTS], 400_000, guided=60_000)


def run(data: bytes) -> None:
    content = unseal(data, "a record")
    if content not in _CONTENTS or data not in [seal(one) for one in _CONTENTS]:
        raise Changed(f"taken as sealed: {str(content)[:100]}")
