"""A loader of views with the teacher's cached outputs, like a PyTorch DataLoader; and losses of its batches."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import distributed, nn

from kdpipe.cache import CacheReader, MultiCacheReader
from kdpipe.errors import CheckpointError, ConfigError
from kdpipe.loader import Batch, Loader, LoaderConfig
from kdpipe.loader.schedule import ViewSchedule
from kdpipe.losses import Context, Loss, LossConfig, StudentOutput, build_loss
from kdpipe.opening import PathLike, as_cache, as_index, configured, whole
from kdpipe.shards import Index
from kdpipe.targets import Labels, Targets
from kdpipe.teacher import resolve_device
from kdpipe.trainer.teachers import targets_of
from kdpipe.views import Normalize


@dataclass(frozen=True)
class CachedBatch:
    """Views as a student takes them, and the teacher's outputs on exactly these views.

    Attributes:
        images: float32 (n, 3, S, S) in channels_last memory, normalised, erased where the policy erases.
        labels: int64 (n,), -1 where there is none; of a mixed view the label with the larger share.
        targets: the teacher's outputs, decoded: `targets.log_probs` is float32 (n, C), natural logarithm.
        rows: int64 (n,), rows of the index.
        views: int64 (n,), view numbers.
        ground_truth: the labels as losses take them: of mixed views both, with their shares.
        context: the whole batch over all processes, by which losses divide.
        epoch, step: from 0.
    """

    images: torch.Tensor
    labels: torch.Tensor
    targets: Targets
    rows: torch.Tensor
    views: torch.Tensor
    ground_truth: Labels
    context: Context
    epoch: int
    step: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CachedBatch":
        """The same batch on another device."""
        found: CachedBatch = _moved(self, device, non_blocking)
        return found

    def __len__(self) -> int:
        return len(self.rows)


class CachedLoader:
    """Batches of views with the teacher's cached outputs on exactly these views.

        for epoch in range(epochs):
            for batch in loader:
                loss = loss_of(student(batch.images), batch)

    Each iteration is an epoch: every sample once, in one of its cached views, in an order that depends on `seed` and
    the epoch alone, not on workers or processes. After its last batch the next iteration is the next epoch, without
    `set_epoch`; an iteration that was left earlier begins again.
    Under torch.distributed each process gets its part of every batch.

    Args:
        index: the samples: an index from `open_index`, or its path.
        cache: from `open_cache`, or its path.
        batch_size: samples of a batch, over all processes.
        workers: processes that render; 0 renders in this one.
        seed: of the order.
        device: where the batches are made; "auto" is cuda if there is one.
        mean, std: of the student, per channel, for images in 0 to 1; by default the teacher's, which the cache has.
        input_size: side of the images, pixels; by default the cache's, at which the teacher saw them. Another one is
            refused unless `exact` is False.
        exact: refuse whatever makes the student's pixels other than the teacher's.
        raw: give `kdpipe.loader.Batch` instead: uint8 images, not erased, and encoded targets, on the CPU.
        view_schedule: what follows when all cached views were shown: "cycle" repeats them, "strict" is an error.
        streams, window: blocks that are read side by side, and shuffled together; see docs/training.md.
        rank, world_size: this process among how many; by default those of torch.distributed, if it is initialised.

    Attributes:
        num_classes: of the teacher, C.
        policy: the augmentations, which are the cache's.

    Raises:
        ConfigError: an argument of the wrong type or out of range; or mean and std are unknown.
        IndexFileError, CacheError: index or cache can't be opened.
        IdentityError: the cache is of other samples.
        TargetsError: it has no numbered view.
    """

    def __init__(
        self,
        index: Index | PathLike,
        cache: CacheReader | MultiCacheReader | PathLike,
        batch_size: int = 256,
        *,
        workers: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | None = None,
        exact: bool = True,
        raw: bool = False,
        view_schedule: ViewSchedule = "cycle",
        streams: int = 64,
        window: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.index = as_index(index)
        self.cache = as_cache(cache, self.index)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.device, self._raw = resolve_device(str(device)), raw
        first = self.cache.readers[0] if isinstance(self.cache, MultiCacheReader) else self.cache
        self.input_size = _size(first, input_size, exact)
        self.policy = first.config
        self.mean, self.std = _statistics(first, mean, std)
        self._normalize = None if raw else Normalize(self.mean, self.std).to(self.device)
        settings = {"workers": workers, "view_schedule": view_schedule, "streams": streams, "window": window}
        there = distributed.is_available() and distributed.is_initialized()
        self._world = world_size if world_size is not None else distributed.get_world_size() if there else 1
        self._loader = Loader(
            self.index,
            self.policy,
            self.input_size,
            self.batch_size,
            loader=configured(LoaderConfig, settings, "CachedLoader"),
            seed=whole("seed", seed, 0),
            cache=self.cache,
            rank=rank if rank is not None else distributed.get_rank() if there else 0,
            world=self._world,
        )
        self.num_classes = first.num_classes
        self._decode = targets_of(self.cache)
        self._epoch = self._step = self._resume = 0
        self._active: Generator[Any, None, None] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._loader.steps

    def __iter__(self) -> Iterator[Any]:
        """Iterate an epoch, after `load_state_dict` the rest of one; an iteration still in progress ends."""
        if self._active is not None:
            self._active.close()
        self._active = self._batches()
        return self._active

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; the one that `load_state_dict` set is continued where it was."""
        epoch = whole("epoch", epoch, 0)
        if epoch != self._epoch:
            self._epoch, self._step, self._resume = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was given, and what the order depends on; JSON-able."""
        return {
            "epoch": self._epoch,
            "step": self._step,
            "order": {
                "data": self.index.fingerprint,
                "seed": self._loader.seed,
                "batch_size": self.batch_size,
                "streams": self._loader.streams,
                "window": self._loader.loader.window,
                "view_schedule": self._loader.loader.view_schedule,
                "views": self._views(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position from `state_dict`: the next iteration gives exactly the batches that followed.

        Raises:
            CheckpointError: it is no such state, or of a loader whose batches are others; the field is named.
        """
        order = self.state_dict()["order"]
        position = [state.get(name) if isinstance(state, dict) else None for name in ("epoch", "step")]
        if not all(isinstance(n, int) and n >= 0 for n in position) or not isinstance(state.get("order"), dict):
            raise CheckpointError("not a state of a CachedLoader", allowed="what state_dict returned")
        for name, value in order.items():
            if state["order"].get(name) != value:
                raise CheckpointError(
                    f"the state is of a loader with another {name}: its batches are others",
                    where="CachedLoader",
                    found=state["order"].get(name),
                    allowed=value,
                )
        if state["step"] >= len(self):
            raise CheckpointError("no such step", where="CachedLoader", found=state["step"], allowed=len(self) - 1)
        self._epoch, self._step = state["epoch"], state["step"]
        self._resume = self._step

    def close(self) -> None:
        """Stop the workers and close the files; iterating opens them again."""
        if self._active is not None:
            self._active.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.input_size} x {self.input_size}"
        return (
            f"CachedLoader({len(self._loader)} samples, {len(self)} batches of {self.batch_size}, {size} pixels, "
            f"views {self._views()}, cache {self.cache.url}{', raw' if self._raw else ''})"
        )

    def _views(self) -> list[int]:
        """The numbered ones, which are those that it shows."""
        return [view for view in self.cache.views if isinstance(view, int)]

    def _batches(self) -> Generator[Any, None, None]:
        epoch, start, self._resume = self._epoch, self._resume, 0
        self._step = start
        for batch in self._loader.epoch(epoch, start):
            # Before the batch is given: who counts batches doesn't come back after the last one.
            done = batch.step + 1 == len(self)
            self._epoch, self._step = epoch + done, 0 if done else batch.step + 1
            yield batch if self._normalize is None else self._made(batch, self._normalize)

    def _made(self, batch: Batch, normalize: Normalize) -> CachedBatch:
        batch = batch.to(self.device, non_blocking=True)
        return CachedBatch(
            images=normalize(batch.images, batch.erased),
            labels=batch.labels,
            targets=self._decode(batch),
            rows=batch.rows,
            views=batch.views,
            ground_truth=batch.ground_truth,
            context=Context(
                batch.global_rows, batch.global_labelled, self._world, batch.epoch + batch.step / len(self)
            ),
            epoch=batch.epoch,
            step=batch.step,
        )


class BatchLoss(nn.Module):
    """A loss of logits and a `CachedBatch`; see `create_loss`."""

    def __init__(self, loss: Loss, epochs: float) -> None:
        super().__init__()
        self.loss, self._epochs = loss, epochs

    def forward(self, logits: torch.Tensor, batch: CachedBatch) -> torch.Tensor:
        """The loss to minimise, float32 (), from logits (n, C) of `batch.images`.

        Under data-parallel training the mean of its gradients over the processes is the gradient of the whole batch.
        """
        return self.parts(logits, batch)["loss"]

    def parts(self, logits: torch.Tensor, batch: CachedBatch) -> dict[str, torch.Tensor]:
        """The same under `loss`, and each part by name, unweighted."""
        context = replace(batch.context, epochs=self._epochs)
        found: dict[str, torch.Tensor] = self.loss(StudentOutput(logits), batch.ground_truth, batch.targets, context)
        return found


def create_loss(name: str = "kd", *, epochs: float | None = None, **hyperparameters: Any) -> BatchLoss:
    """A built-in or registered loss by name, to be called with logits and a `CachedBatch`.

    Args:
        name: as `kdpipe losses` lists them, of those that take logits only: kd, nkd, dkd, dist, ...
        epochs: of the run; only needed where the loss has a `schedule`.
        hyperparameters: of this loss, such as temperature and alpha; see its config. Of several losses joined by +, a
            dict each: kd={"alpha": 1}.

    Returns:
        A module: `loss(logits, batch)`, of logits (n, C) of `batch.images`, is float32 (); `loss.parts(logits, batch)`
        is a dict of the same under "loss" and of its parts by name.

    Raises:
        ConfigError: no such loss or hyperparameter, or the loss takes features, which `kdpipe.train` provides.
    """
    config = configured(LossConfig, {"name": name}, "create_loss")
    if hyperparameters:
        sections = hyperparameters
        if len(config.losses) == 1:
            sections = {config.losses[0].name.replace("-", "_"): hyperparameters}
        config = configured(LossConfig, {"name": name, **sections}, "create_loss")
    needs = config.requirements
    if needs.features or needs.maps or needs.student_pooled:
        raise ConfigError(
            "this loss takes features, and create_loss gives it logits only",
            where=config.name,
            do="Train with kdpipe.train, or use kdpipe.trainer.DistillationModule, which takes the features",
        )
    terms = [config.hyperparameters(loss.name) for loss in config.losses]
    if epochs is None and any("schedule" in term.model_fields_set for term in terms):
        raise ConfigError("a schedule needs the length of the run", where=name, do="Pass epochs to create_loss")
    return BatchLoss(build_loss(config), 1.0 if epochs is None else epochs)


def _moved(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, CachedBatch | Targets | Labels):
        own = {field.name: _moved(getattr(value, field.name), device, non_blocking) for field in fields(value)}
        return replace(value, **own)
    return value


def _size(cache: CacheReader, size: int | None, exact: bool) -> int:
    found = cache.cache.size
    if size is None or whole("input_size", size, 1) == found:
        return found
    if exact:
        raise ConfigError(
            "the cached outputs are of another render size, so the student would see other pixels than the teacher",
            where="input_size",
            found=size,
            allowed=found,
            do="Leave input_size out, or pass exact=False",
        )
    return size


def _statistics(
    cache: CacheReader, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    teacher = cache.cache.identity["teacher"]
    found = [given if given is not None else teacher.get(name) for name, given in (("mean", mean), ("std", std))]
    for name, values in zip(("mean", "std"), found, strict=True):
        if values is None:
            what = "a teacher of several models has no mean and std of its own"
            raise ConfigError(what, where=name, do="Pass the student's mean and std")
        numbers = isinstance(values, Sequence) and all(isinstance(x, int | float) for x in values)
        if not numbers or len(values) != 3 or (name == "std" and min(values) <= 0):
            allowed = "three numbers" + (" above 0" if name == "std" else "")
            raise ConfigError("impossible statistics", where=name, found=repr(values), allowed=allowed)
    return found[0], found[1]
