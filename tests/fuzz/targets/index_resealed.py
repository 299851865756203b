"""An index of somebody who means harm: its digests fit whatever it holds."""

import io
import json
from pathlib import Path
from random import Random

import numpy as np

from kdpipe._util.fingerprint import canonical_json, fingerprint, sha256
from kdpipe.errors import IndexFileError
from kdpipe.shards import layout
from tests.fuzz.files import join, of_content, replaced, split
from tests.fuzz.mutate import NUMBERS, mutate_bytes, mutate_tree
from tests.fuzz.small import make_index
from tests.fuzz.target import Target
from tests.fuzz.targets.index import everything


def make(folder: Path) -> Target:
    path = make_index(folder).path
    document = path / layout.DOCUMENT

    def run(data: bytes) -> None:
        name, content = split(data)
        tree = json.loads(document.read_bytes())
        if name == layout.DOCUMENT:
            tree = json.loads(content)
        else:
            tree["arrays"][name.removesuffix(".npy")]["sha256"] = sha256(content)
        with replaced(path / name, content), replaced(document, sealed(tree)):
            everything(path, True)

    seeds = [join(file.name, file.read_bytes()) for file in sorted(path.iterdir())]
    # As likely as all arrays together.
    seeds += [join(layout.DOCUMENT, document.read_bytes())] * len(seeds)
    return Target(run, seeds, 20_000, mutate=of_content(mutate))


def sealed(tree: object) -> bytes:
    """An index document with the digest of its content."""
    if not isinstance(tree, dict):
        raise IndexFileError("not an object")
    content = {key: value for key, value in tree.items() if key != "digest"}
    return canonical_json(content | {"digest": fingerprint(content)})


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Documents as trees; arrays by bytes, or by numbers of the same shape."""
    if data[:1] == b"{":
        return json.dumps(mutate_tree(rng, json.loads(data))).encode()
    if rng.random() < 0.3:
        return mutate_bytes(rng, data, others)
    array = np.load(io.BytesIO(data)).copy()
    limits = np.iinfo(array.dtype)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if array.size:
            value = rng.choice(NUMBERS) if rng.random() < 0.5 else rng.randrange(-4, 5000)
            array.reshape(-1)[rng.randrange(array.size)] = min(max(value, int(limits.min)), int(limits.max))
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()
