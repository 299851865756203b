"""The sound files that targets start from: shards, an index, a cache with everything in it, weights."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from kdpipe.shards import Index, build_index
from kdpipe.targets import TargetsConfig
from tests.caching.featured import settings
from tests.shards.making import write_shards
from tests.tiny import World, make_cache

EVERYTHING = TargetsConfig(k=3, pooled="float16", map="int8", map_rank=4, tail=True)
VIEWS = (0, 1)


def make_index(folder: Path) -> Index:
    """Two shards of a few samples in blocks of four; labels below 10."""
    write_shards(folder / "shards", 2, [6, 3], size=16, classes=10)
    return build_index(str(folder / "shards"), folder / "index", block_size=4, workers=1)


def make_world(folder: Path) -> tuple[World, dict[str, Any]]:
    """A cache, folder/cache, of a network of timm's: top-k, pooled feature, map on a basis, head and last stage."""
    world = World(folder, make_index(folder))
    said = settings("resnet", folder / "weights")
    with patch("os.fsync", lambda _: None):
        make_cache(world, folder / "cache", views=VIEWS, targets=EVERYTHING, **said)
    return world, said
