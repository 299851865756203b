"""The bytes of .cls and .json members, through the check of samples."""

import mmap
from pathlib import Path

import numpy as np

from kdpipe.shards.labels import MAX_LABEL, Rules
from kdpipe.shards.samples import examine
from kdpipe.shards.tar import Member
from tests.fuzz.files import join, of_content, split
from tests.fuzz.target import Changed, Target
from tests.shards.making import encode

# What an input's name says of the rules.
_RULES = {
    "cls": Rules(check="header"),
    "json": Rules(check="header", num_classes=1000),
    "json-x": Rules(check="header", label_key="json:x"),
}
_SEEDS = [("cls", b"3"), ("cls", b" 12\n"), ("cls", b"+7"), ("json", b'{"label": 3, "caption": "x", "a": [1, {}]}')]
_SEEDS += [("json-x", b'{"x": 999}'), ("json", b'{"other": null}')]


def make(folder: Path) -> Target:
    image = encode(np.zeros((2, 2, 3), np.uint8), "png")
    memory = mmap.mmap(-1, 1 << 20)
    memory[: len(image)] = image
    at = len(image)

    def run(data: bytes) -> None:
        name, content = split(data)
        rules = _RULES.get(name, _RULES["cls"])
        content = content[: len(memory) - at]
        memory[at : at + len(content)] = content
        suffix = name.partition("-")[0] if name in _RULES else "cls"
        group = [Member("k", "png", 0, 0, at, at), Member("k", suffix, at, at, len(content), at + len(content))]
        label = examine(group, memory, "x.tar", rules).label
        if not -1 <= label <= MAX_LABEL or type(label) is not int:
            raise Changed(f"a label that is none: {label!r}")
        if suffix == "cls" and label != int(content.decode("utf-8-sig")):
            raise Changed(f"another label than is written: {label}")

    return Target(run, [join(*seed) for seed in _SEEDS], 300_000, mutate=of_content(), guided=60_000)
