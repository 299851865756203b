"""Tars, through the scanner of `kdpipe index`."""

import tarfile
from pathlib import Path
from random import Random

import numpy as np

from kdpipe.errors import KdpipeError
from kdpipe.shards.labels import MAX_LABEL, Rules
from kdpipe.shards.scan import Scan, scan
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.target import Changed, Target
from tests.shards.making import encode, shard_members, write_tar

_RULES = (Rules(check="header"), Rules(check="header", num_classes=10), Rules(check="header", label_key="json:x"))


def make(folder: Path) -> Target:
    path = folder / "x.tar"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        rules = _RULES[len(data) % len(_RULES)]
        # What a shard with bad samples is skipped to must be sound too.
        refused = None
        try:
            require_sound(scan(str(path), rules, 2), data)
        except KdpipeError as e:
            refused = e
        require_sound(scan(str(path), rules, 2, skip_bad=True), data)
        if refused is not None:
            raise refused

    return Target(run, list(seeds(folder)), 60_000, mutate=mutate, guided=20_000)


def seeds(folder: Path) -> list[bytes]:
    plain, picture = shard_members(2, size=4), encode(np.zeros((2, 2, 3), np.uint8), "png")
    labelled = [("a/b.png", picture), ("a/b.json", b'{"label": 3, "x": 1}'), ("k.png", picture), ("k.txt", b"text")]
    # A long name takes a header of its own, in two ways.
    long = [("a/" + "long" * 40 + ".png", picture), ("é.png", picture), ("é.cls", b"1")]
    forms = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    sets = [(plain, tarfile.USTAR_FORMAT), (labelled, tarfile.USTAR_FORMAT), *(([*long, *labelled], f) for f in forms)]
    return [write_tar(folder / "seed.tar", members, form).read_bytes() for members, form in sets]


def require_sound(found: Scan, data: bytes) -> None:
    """Every range that the scanner gives lies in the file, and every label is one."""
    n = len(found.keys)
    starts, sizes = found.arrays["image_start"], found.arrays["image_size"]
    if not all(len(found.arrays[name]) == n for name in ("labels", "image_start", "image_size")):
        raise Changed("arrays of other lengths than the keys")
    if n and (starts.min() < 0 or sizes.min() < 1 or (starts + sizes).max() > len(data)):
        raise Changed("an image outside of the file")
    if n and not -1 <= found.arrays["labels"].min() <= found.arrays["labels"].max() <= MAX_LABEL:
        raise Changed("an impossible label")
    if len(set(found.keys)) != n:
        raise Changed("two samples of one key")


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Half of them with checksums that fit, so that the scanner reads on."""
    out = bytearray(mutate_bytes(rng, data, others))
    if rng.random() < 0.5:
        for at in range(0, len(out) - 511, 512):
            if out[at + 257 : at + 262] == b"ustar":
                out[at + 148 : at + 156] = b" " * 8
                out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)
