"""What fidelity is measured on: samples, views, a teacher with its parts, and its outputs on batches of views."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from kdpipe.caching.modules import FitSample, fit_tokens
from kdpipe.errors import ConfigError, TeacherError
from kdpipe.loader import Batch, Loader
from kdpipe.losses import TeacherInfo
from kdpipe.shards import Index
from kdpipe.targets import Calibration, Targets
from kdpipe.teacher import FEATURES, Teacher, TeacherOutput, head_parts, load_head, load_tail, tail_parts
from kdpipe.views import ViewsConfig
from kdpipe.views.block import labelling_index

# Images on which the teacher's parts are tried.
_TRIED = 16


@dataclass(frozen=True)
class TeacherBatch:
    """A batch of views and the teacher's outputs on it."""

    batch: Batch
    output: TeacherOutput

    @property
    def exact(self) -> Targets:
        """The outputs as targets, without any encoding."""
        return Targets.live(self.output)


@dataclass(frozen=True)
class Setup:
    """Samples, views and teacher.

    Attributes:
        info: the teacher's sizes and parts, as adapters take them.
        basis: PCA of its feature map, with the components of the largest rank; None without a map.
        lacks: of pooled, map, head and tail, those that this teacher doesn't have, and why.
    """

    index: Index
    views: ViewsConfig
    teacher: Teacher
    info: TeacherInfo
    basis: Calibration | None
    lacks: dict[str, str]

    @property
    def ranks(self) -> tuple[int, ...]:
        """An eighth, a quarter, and half of the map's channels."""
        width = self.info.map[0] if self.info.map else 0
        return tuple(sorted({width // part for part in (8, 4, 2)} - {0}))

    def basis_of(self, rank: int | None) -> Calibration | None:
        """The basis with so many components; None for none."""
        if self.basis is None:
            return None
        assert self.basis.components is not None
        return replace(self.basis, components=None if rank is None else self.basis.components[:rank])

    def batches(self, count: int, size: int, epoch: int) -> Iterator[TeacherBatch]:
        """So many batches of `size` views, from the first of an epoch on."""
        batches = _batches(self.index, self.views, self.teacher.built.input_size, size, epoch)
        for batch in itertools.islice(batches, count):
            output: TeacherOutput = self.teacher(batch.images.numpy(), batch.erased)
            # The student is small, and gradients are compared on the CPU, wherever the teacher runs.
            yield TeacherBatch(batch, TeacherOutput(**{name: x.cpu() for name, x in output.parts().items()}))


def make_setup(index: Index, views: ViewsConfig, teacher: Teacher) -> Setup:
    """Extract the teacher's parts, and fit a basis to its map; what it doesn't have is left out.

    Raises:
        ShardError: a label is out of range for the teacher's classes.
        ConfigError: the views mix targets, which features don't allow.
    """
    if views.mixes and views.mix == "targets":
        raise ConfigError(
            "features don't mix", where="views.mix", found="targets", allowed="images", do="Pass --set views.mix=images"
        )
    labelling_index(index, views).check_labels(teacher.num_classes)
    lacks: dict[str, str] = {}
    given = [name for name in FEATURES if _tried(partial(teacher.shapes, (name,)), name, lacks) is not None]
    shapes = teacher.shapes(given) if given else {}
    teacher.set_features(given)
    some = next(_batches(index, views, teacher.built.input_size, _TRIED, 0)).images.numpy()

    def original() -> tuple[Any, Any, torch.Tensor]:
        return teacher.original(), teacher.built, teacher.normalized(some).contiguous()

    head = _tried(lambda: load_head(head_parts(*original()), "the teacher's head"), "head", lacks)
    own = (teacher.built.name, *teacher.built.kwargs)
    tail = _tried(lambda: load_tail(*tail_parts(*original(), teacher.weights), "its tail", trust=own), "tail", lacks)
    basis = None
    if "map" in shapes:
        tokens, _ = fit_tokens(teacher, FitSample(index, views.cached, [0], teacher.built.input_size, 1))
        basis = Calibration.fit(tokens, max(1, shapes["map"][-1] // 2))
    height, width, depth = shapes.get("map", (0, 0, 0))
    info = TeacherInfo(
        num_classes=teacher.num_classes,
        pooled=shapes["pooled"][0] if "pooled" in shapes else 0,
        map=(depth, height, width) if "map" in shapes else None,
        mean=None if basis is None else basis.mean,
        std=None if basis is None else basis.std,
        head=head,
        tail=tail,
    )
    return Setup(index, views, teacher, info, basis, lacks)


def _tried(make: Callable[[], Any], name: str, lacks: dict[str, str]) -> Any:
    try:
        return make()
    except TeacherError as e:
        lacks[name] = e.what
        return None


def _batches(index: Index, views: ViewsConfig, side: int, size: int, epoch: int) -> Iterator[Batch]:
    loader = Loader(index, views, side, min(size, len(index)), seed=3)
    try:
        while True:
            # An epoch's last batch may be a small one, which would count as much as a whole one.
            yield from (batch for batch in loader.epoch(epoch) if len(batch) == loader.batch_size)
            epoch += 1
    finally:
        loader.close()
