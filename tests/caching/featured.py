"""Small teachers with features, and what they say of a world's views."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from kdpipe.cache import ArrayReader, Cache
from kdpipe.shards import BlockReader
from kdpipe.teacher import Teacher, TeacherOutput
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import paired_index, render_rows
from tests.teacher.networks import CLASSES, network
from tests.tiny import World, teacher

# A network of a user's, whose map is 5 channels of 4 x 4.
TINY: dict[str, object] = {"model": "tests.teacher.users:users", "num_classes": CLASSES}


def settings(name: str, folder: Path, seed: int = 0) -> dict[str, object]:
    """What `tests.tiny.teacher` takes, of one of `tests.teacher.networks`; its weights are left in the folder."""
    built = network(name, seed)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{seed}.safetensors"
    save_file(built.module.state_dict(), path)
    said = {"model": built.name, "model_kwargs": built.kwargs, "weights": str(path)}
    return {**said, "num_classes": CLASSES, "input_size": built.input_size}


def live(world: World, view: View, config: ViewsConfig, one: Teacher) -> TeacherOutput:
    """What a teacher says of all samples, block by block."""
    from concurrent.futures import ThreadPoolExecutor

    reader, answers = BlockReader(paired_index(world.index, config)), []
    with ThreadPoolExecutor(1) as pool:
        for block in range(world.index.blocks):
            rows = world.index.rows(block)
            rendered = render_rows(reader, config, rows, [view], one.built.input_size, pool)
            answers.append(one(rendered.pixels[0], rendered.erased[0]))
    reader.close()
    return TeacherOutput.joined(answers)


def giving(*features: str, **said: object) -> Teacher:
    """A teacher that gives these features."""
    one = teacher(**said)
    one.set_features(features)
    return one


def stored(cache: Cache, view: View, number: int | None = None) -> dict[str, torch.Tensor]:
    """The rows of all samples by field, from the segment of this number, by default the only one with this view."""
    reader = ArrayReader(cache)
    [segment] = [s for s in cache.segments if view in s.views and number in (None, s.number)]
    parts = [reader.read(segment, s["name"], view, 0, s["samples"]) for s in cache.shards]
    return {name: torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in parts[0]}
