"""The stages of `kdpipe demo`: the whole path on scikit-learn's digits, with a baseline."""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from kdpipe.cache import Cache, Store
from kdpipe.caching import cache_views
from kdpipe.errors import ConfigError, KdpipeError
from kdpipe.loader import LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.losses.config import KdConfig
from kdpipe.models import ModelConfig
from kdpipe.shards import Index, build_index
from kdpipe.shards.prepare import prepare_digits
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import TrainConfig, TrainingJob, train
from kdpipe.verification import check_integrity, check_truth
from kdpipe.views import ViewsConfig

VIEWS = ViewsConfig(seed=0, scale=(0.6, 1.0), hflip=0.0, interpolation="bilinear", crop_pct=1.0)
_FEED: dict[str, Any] = {"num_classes": 10, "input_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
# Stripes of 13 on maps of 8 x 8 and 4 x 4, against 3 x 3 in the student.
TEACHER = ModelConfig(model="slak_nano", model_kwargs={"patch_size": 2}, **_FEED)
_SMALL = {"patch_size": 4, "depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64], "kernel_sizes": 3}
STUDENT = ModelConfig(model="convnext_atto", model_kwargs=_SMALL, **_FEED)
LABELLED = 0.1
COUNT = 20
SEEDS = (0, 1, 2)


@dataclass
class Demo:
    """The demo's stages; each writes its files to `out`, and resumes from those that are there."""

    out: Path
    quiet: bool = False
    epochs: int = COUNT
    seconds: dict[str, float] = field(default_factory=dict)

    def all(self, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
        """Run every stage; returns the summary."""
        self.shards()
        teacher = self.teacher()
        cache = self.cache()
        with self.stage("students and baselines"):
            students = [self.student(seed) for seed in seeds]
            baselines = [self.baseline(seed) for seed in seeds]
        gain = interval([100 * (s - t) for s, t in zip(students, baselines, strict=True)])
        return {
            "teacher_top1": teacher,
            "student_top1": students,
            "baseline_top1": baselines,
            "gain_points": gain[0],
            "gain_interval_95": [gain[0] - gain[1], gain[0] + gain[1]],
            "labelled": len(self.train) - self.train.unlabelled,
            "images": len(self.train),
            "views": COUNT,
            **cache,
            "seconds": {name: round(s, 1) for name, s in self.seconds.items()},
        }

    def shards(self) -> None:
        """Digits to shards, with a tenth of the labels and with all of them; and their indexes."""
        with self.stage("shards"):
            with writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
                started = (self.out / "digits").exists()
            if not started:
                prepare_digits(self.out / "digits", labelled=LABELLED, full=True)
            names = ("train", "train-full", "val")
            self.train, self.full, self.val = (
                build_index(str(self.out / "digits" / name), self.out / f"{name}.index", num_classes=10)
                for name in names
            )

    def teacher(self) -> float:
        """Train the teacher on all labels; its validation top-1."""
        with self.stage("teacher"):
            return self.trained("teacher", self.full, TEACHER, "none", seed=0, epochs=self.epochs)

    def cache(self) -> dict[str, Any]:
        """Cache the teacher on the partly labelled images and verify the cache."""
        weights = self.out / "teacher" / "best.safetensors"
        with self.stage("cache"):
            teacher = Teacher(TeacherConfig(weights=str(weights), batch_size=128))
            _, report = cache_views(
                str(self.out / "cache.zarr"), self.train, VIEWS, teacher, TargetsConfig(), range(COUNT)
            )
        with self.stage("verify"):
            store = Store(self.out / "cache.zarr")
            problems, _ = check_integrity(store)
            cache = Cache(store)
            truth = check_truth(cache, self.train, VIEWS, teacher, cache.segments)
            if problems or not truth["ok"]:
                raise KdpipeError("the cache does not verify", where=store, do="Delete it and repeat")
        total = cache.bytes(cache.segments[0])
        quality = cache.quality(cache.segments[0])
        return {
            "bytes_per_view": total / quality.views,
            "encoding_loss_nats": quality.means()["encoding_loss"],
            "cached_now": report.quality.views,
        }

    def student(self, seed: int, cache: str | None = None, name: str = "student") -> float:
        """A student: the cached targets of every image, the labels of a tenth; its validation top-1."""
        where = cache or str(self.out / "cache.zarr")
        return self.trained(f"{name}-{seed}", self.train, STUDENT, "kd", seed=seed, epochs=self.epochs, caches=(where,))

    def baseline(self, seed: int) -> float:
        """Its baseline: the same steps on the labelled tenth alone."""
        few = len(self.train) - self.train.unlabelled
        batch = 64
        steps = self.epochs * -(-len(self.train) // batch)
        epochs = round(steps / -(-few // batch))
        return self.trained(f"baseline-{seed}", self.train, STUDENT, "none", seed=seed, epochs=epochs)

    def trained(
        self, name: str, index: Index, model: ModelConfig, loss: str, *, seed: int, epochs: int, **more: Any
    ) -> float:
        """A model, trained in the folder `name` with the demo's settings; its validation top-1."""
        job = TrainingJob(
            index=index,
            validation=self.val,
            views=VIEWS,
            student=model,
            loss=LossConfig(name=loss, kd=KdConfig(temperature=2.0, alpha=0.9)),
            train=TrainConfig(
                epochs=epochs,
                batch_size=64,
                lr=3e-3,
                warmup_epochs=epochs / 10,
                seed=seed,
                eval_every=epochs,
                checkpoint_epochs=max(1, epochs // 5),
            ),
            loader=LoaderConfig(),
            **more,
        )
        summary = train(job, self.out / name, log=lambda text: self.log(f"  {name}: {text}"))
        assert summary is not None  # nothing stops it
        return float(summary["best"]["validation"]["top1"])

    def log(self, text: str) -> None:
        """A line of progress on stderr."""
        if not self.quiet:
            click.echo(text, err=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce and time a stage."""
        self.log(f"{name} ...")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an OSError into a ConfigError that names the folder."""
    try:
        yield
    except OSError as e:
        do = "Choose another --out, or make room and permission"
        raise ConfigError(f"can't be written: {e.strerror}", where=out, do=do) from e


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t) over a few seeds; infinite for one."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0], math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1)) * spread
