"""An index with one damaged file: opened, read, verified."""

import hashlib
from pathlib import Path
from typing import Any

from kdpipe.shards import BlockReader, Index
from tests.fuzz.files import join, of_content, replaced, split
from tests.fuzz.small import make_index
from tests.fuzz.target import Changed, Target


def make(folder: Path) -> Target:
    path = make_index(folder).path
    sound = everything(path, True)

    def run(data: bytes) -> None:
        name, content = split(data)
        with replaced(path / name, content):
            if everything(path, True) != sound:
                raise Changed("verified, and not what was written")

    seeds = [join(file.name, file.read_bytes()) for file in sorted(path.iterdir())]
    return Target(run, seeds, 20_000, mutate=of_content())


def everything(path: Path, verify: bool) -> dict[str, Any]:
    """What is read of an index by those who use it."""
    index = Index.open(path)
    reader = BlockReader(index)
    try:
        said = {
            "keys": index.keys(0, len(index)),
            "labels": index.labels.tolist(),
            "identity": index.identity(),
            "rows": [index.rows(block) for block in range(index.blocks)],
            "shards": [index.shard_of(row).name for row in range(len(index))],
            "classes": index.num_classes,
            "warnings": index.warnings(),
            "text": repr(index),
            "images": [
                hashlib.sha256(image).hexdigest() for block in range(index.blocks) for image in reader.read(block)
            ],
        }
    finally:
        reader.close()
    index.check_labels(10)
    if verify:
        index.verify()
    return said
