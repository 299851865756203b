"""The sound files that commands take in the tests of hostile ones, and what must not change around them."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.cache import Cache
from kdpipe.cache.manifest import CacheRecord
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.loader import LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig
from kdpipe.shards import Index, build_index
from kdpipe.targets import Encoding, TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import TrainConfig, TrainingJob, train
from kdpipe.trainer.files import SUMMARY
from kdpipe.views import ViewsConfig
from tests.fuzz.tensors import CONFIG, weights_file
from tests.shards.making import encode, photo, write_shards

SECRET = b"nobody's business"


@dataclass(frozen=True)
class World:
    """Sound files by what they are; all below `folder`, beside which lies a secret that nobody may change."""

    folder: Path
    shards: Path
    index: Path
    cache: Path
    weights: Path
    run: Path  # of train-student, begun and not finished
    runs: Path
    evaluations: Path
    record: Path
    images: Path
    manifest: Path
    class_map: Path
    class_names: Path
    params: Path
    empty: Path

    @property
    def places(self) -> dict[str, str]:
        """What command lines are filled with."""
        return {name: str(path) for name, path in vars(self).items()}


def make(folder: Path) -> World:
    """Nine images of three classes, a teacher of timm's, everything that it gives in a cache, a student of it."""
    inside = folder / "inside"
    (folder / "secret.txt").parent.mkdir(parents=True)
    (folder / "secret.txt").write_bytes(SECRET)
    write_shards(inside / "shards", 2, [6, 3], size=16, classes=3)
    index = build_index(str(inside / "shards"), inside / "index", block_size=4, num_classes=3, workers=1)
    weights = weights_file(inside / "weights")
    cache = _cache(inside, index, weights)
    run = _run(inside, index)
    return World(
        folder=folder,
        shards=inside / "shards",
        index=inside / "index",
        cache=inside / "cache",
        weights=weights,
        run=run,
        runs=inside / "runs",
        evaluations=_evaluations(inside),
        record=_record(inside, cache),
        images=_images(inside),
        manifest=_manifest(inside),
        class_map=_text(inside / "map.json", "[2, 0, 1]"),
        class_names=_text(inside / "names.csv", "class0,0\nclass1,1\nclass2,2\n"),
        params=_text(inside / "params.yaml", "views: {seed: 0}\n"),
        empty=_folder(inside / "empty"),
    )


def _cache(inside: Path, index: Index, weights: Path) -> Cache:
    teacher = Teacher(TeacherConfig(weights=str(weights), batch_size=4, device="cpu", threads=1))
    targets = TargetsConfig(k=2, pooled="float16", map="int8", map_rank=4, tail=True)
    out = str(inside / "cache")
    cache, _ = cache_views(
        out, index, ViewsConfig(), teacher, targets, [0, 1, "center"], caching=CachingConfig(render_threads=1)
    )
    return cache


def _run(inside: Path, index: Index) -> Path:
    """A finished run without its last file, as a kill leaves it, and a finished one."""
    job = TrainingJob(
        index=index,
        validation=None,
        caches=(),
        views=ViewsConfig(),
        student=ModelConfig.model_validate(CONFIG),
        loss=LossConfig(name="none"),
        train=TrainConfig(epochs=1, batch_size=4, warmup_epochs=0, device="cpu"),
        loader=LoaderConfig(),
    )
    for name in ("begun", "runs/one"):
        train(job, inside / name, log=lambda _: None)
    (inside / "begun" / SUMMARY).unlink()
    return inside / "begun"


def _evaluations(inside: Path) -> Path:
    (inside / "evaluations").mkdir()
    scores = {"top1": 0.5, "top5": 1.0, "nll": 1.0, "agreement_top1": 0.5, "agreement_top5": 1.0, "kl": 0.1}
    _text(inside / "evaluations" / "one.json", json.dumps(scores))
    return inside / "evaluations"


def _record(inside: Path, cache: Cache) -> Path:
    encoding: Encoding = cache.segments[0].encoding
    CacheRecord.of(cache, encoding, [0, 1, "center"]).write(str(inside / "record.json"))
    return inside / "record.json"


def _images(inside: Path) -> Path:
    for label in (0, 1):
        (inside / "images" / f"class{label}").mkdir(parents=True)
        picture = photo(np.random.default_rng(label), 12, 12, label)
        (inside / "images" / f"class{label}" / "a.jpg").write_bytes(encode(picture))
    return inside / "images"


def _manifest(inside: Path) -> Path:
    shutil.copytree(inside / "shards", inside / "listed")
    names = sorted(path.name for path in (inside / "listed").iterdir())
    split = {"filenames": names, "shard_lengths": [6, 3]}
    return _text(inside / "listed" / "_info.json", json.dumps({"splits": {"train": split}}))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def snapshot(folder: Path, *without: Path) -> dict[str, str]:
    """Digest of every file below a folder, but of those whose paths begin with one of `without`."""
    found = {}
    for where, _, names in os.walk(folder):
        for path in (Path(where, name) for name in names):
            if not str(path).startswith(tuple(map(str, without))):
                data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
                found[str(path)] = hashlib.sha256(data).hexdigest()
    return found
