"""The functions of `import kdpipe`: each one call into the library, with typed results."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from kdpipe import results
from kdpipe.cache import Cache, CacheReader, Store
from kdpipe.cache.manifest import cached_views
from kdpipe.cache.tools.describe import describe_cache, describe_outputs
from kdpipe.cache.tools.statistics import choose_blocks
from kdpipe.cached_loader import CachedLoader
from kdpipe.caching import CachingConfig, CachingProgress, cache_views
from kdpipe.caching.poor_teacher import refuse
from kdpipe.caching.summary import summarise
from kdpipe.errors import ConfigError
from kdpipe.evaluation import Metrics
from kdpipe.evaluation import evaluate as score
from kdpipe.loader import Loader, LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig, read_header
from kdpipe.models.header import parsed
from kdpipe.opening import PathLike, Settings, as_index, open_cache, path_of, settings_of, whole
from kdpipe.shards import Index
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig, resolve_device
from kdpipe.trainer import TrainConfig, TrainingJob
from kdpipe.trainer import train as train_job
from kdpipe.trainer.files import BEST
from kdpipe.verification.verify import verify_cache
from kdpipe.views import CROPS, Normalize, View, ViewsConfig
from kdpipe.views.canaries import CanaryTolerance

_log = logging.getLogger("kdpipe")


def cache_teacher(
    index: Index | PathLike,
    teacher: Teacher | TeacherConfig | Settings,
    out: PathLike,
    views: Sequence[View],
    *,
    policy: ViewsConfig | Settings | None = None,
    targets: TargetsConfig | Settings | None = None,
    caching: CachingConfig | Settings | None = None,
    on_progress: Callable[[CachingProgress], None] = lambda _: None,
) -> results.CacheReport:
    """Run a teacher over views of all samples and cache its outputs. Tasks that are there already are skipped.

    Args:
        index: the samples, or their path.
        teacher: a `Teacher`, or its settings, such as {"model": "resnet50", "weights": "resnet50.safetensors"}.
        out: the cache, a folder or fsspec URL.
        views: view numbers and evaluation views: range(4), or [0, 1, "center"].
        policy: the augmentations, section `views` of params.yaml.
        targets: what to keep, section `targets`.
        caching: how, section `caching`.
        on_progress: called after every task.

    Raises:
        ConfigError: an argument of the wrong type, or an impossible setting.
        TeacherError: the teacher can't be built, or can't do the first batch; or `caching` is strict, and it is poor.
        CacheError, IdentityError: the cache can't be written, or is of something else.
    """
    samples = as_index(index)
    if isinstance(views, str) or not isinstance(views, Sequence) or not views:
        found = repr(views)
        raise ConfigError("not a list of views", where="views", found=found, allowed='range(4), or [0, 1, "center"]')
    if not isinstance(teacher, Teacher):
        teacher = Teacher(settings_of(TeacherConfig, teacher, "teacher"), samples.num_classes)
    how = settings_of(CachingConfig, caching, "caching")
    cache, report = cache_views(
        path_of("out", out),
        samples,
        settings_of(ViewsConfig, policy, "policy"),
        teacher,
        settings_of(TargetsConfig, targets, "targets"),
        list(views),
        caching=how,
        on_progress=on_progress,
    )
    assert report.encoding is not None
    failed = tuple(f"{outcome.task.shard.name}: {outcome.error}" for outcome in report.failed)
    summary = summarise(cache, report, report.encoding, list(views), teacher.config)
    if how.strict and not failed:
        refuse(summary["remarks"], summary["cache"])
    return results.of(results.CacheReport, {**summary, "failed": failed})


def verify(
    cache: PathLike,
    *,
    index: PathLike | None = None,
    weights: PathLike | None = None,
    trust: Sequence[str] = (),
    integrity_only: bool = False,
    samples: int = 512,
    seed: int = 0,
    canary_tolerance: CanaryTolerance = 0,
    device: str | None = None,
) -> results.Verification:
    """Check every file of a cache, and a sample of its outputs against the live teacher.

    Args:
        cache: folder or URL.
        index, weights: where they are now; by default where they were when the cache was made.
        trust: names of code that the cache may give, such as the teacher's package.module:factory.
        integrity_only: check the files alone.
        samples: views to run again, at least a batch of each segment; `seed` of their choice.
        canary_tolerance: levels of 255 by which reference views may differ when rendered here.
        device: of the teacher; by default the kind on which the cache was made.

    Raises:
        CacheError: there is no cache, or nothing in it.
        IdentityError: index or teacher are not those of the cache.
        TeacherError: the teacher can't be built, or isn't trusted.
    """
    found = verify_cache(
        path_of("cache", cache),
        index_path=None if index is None else path_of("index", index),
        weights=None if weights is None else path_of("weights", weights),
        trust=tuple(trust),
        integrity_only=integrity_only,
        samples=whole("samples", samples, 1),
        seed=seed,
        canary_tolerance=canary_tolerance,
        device=device,
        log=_log.warning,
    )
    return results.of(results.Verification, found.json())


def inspect(
    cache: PathLike,
    *,
    statistics: bool = True,
    index: PathLike | None = None,
    samples: int | None = None,
    top: int = 10,
) -> results.CacheDescription:
    """Describe a cache: identity, completeness, size and, with `statistics`, the teacher's outputs.

    Args:
        cache: folder or URL.
        statistics: read the outputs.
        index: for the labels; by default the index with which the cache was made.
        samples: to read, in whole blocks; all by default, up to 4 million views.
        top: contradictions to keep.

    Raises:
        CacheError: no cache there, or it is damaged.
    """
    held = Cache(Store(path_of("cache", cache)))
    document = describe_cache(held)
    if statistics:
        path = None if index is None else path_of("index", index)
        blocks = choose_blocks(held, samples, seed=0)
        found = describe_outputs(held, path, blocks, seed=0, top=top)
        document |= {name: found[name] for name in ("views", "contradictions", "remark")}
    return results.of(results.CacheDescription, document)


def train(
    index: Index | PathLike,
    out: PathLike,
    *,
    cache: PathLike | Sequence[PathLike] = (),
    student: ModelConfig | Settings | str = "resnet18",
    loss: LossConfig | Settings | str = "kd",
    config: TrainConfig | Settings | None = None,
    validation: Index | PathLike | None = None,
    loader: LoaderConfig | Settings | None = None,
    views: ViewsConfig | Settings | None = None,
    log: Callable[[str], None] = _log.info,
    overwrite: bool = False,
) -> results.TrainReport:
    """Train a student as `kdpipe train-student` does; an unfinished run in `out` is resumed exactly.

    Args:
        index: training samples, or their path.
        out: folder of the run.
        cache: one or several caches or manifests; none for losses without a teacher.
        student: name of the model, or its settings, section `student` of params.yaml.
        loss: name of the loss, or its settings, section `loss`.
        config: epochs, batch size, optimizer and schedule, section `train`.
        validation: samples for the evaluation after each epoch.
        loader: section `loader`.
        views: the policy, section `views`; by default that of the first cache.
        log: gets remarks and a line an epoch.
        overwrite: delete a run of another job in `out`.

    Raises:
        ConfigError: an argument of the wrong type, or an impossible setting.
        TrainingError: the student can't be trained like this; CheckpointError: `out` holds something else.
        CacheError, IdentityError, TargetsError, ViewError: the cache doesn't serve.
    """
    caches = tuple(path_of("cache", one) for one in ([cache] if isinstance(cache, str | os.PathLike) else cache))
    policy = cached_views(caches[0]) if views is None and caches else settings_of(ViewsConfig, views, "views")
    job = TrainingJob(
        index=as_index(index),
        validation=None if validation is None else as_index(validation),
        caches=caches,
        views=policy,
        student=settings_of(ModelConfig, {"model": student} if isinstance(student, str) else student, "student"),
        loss=settings_of(LossConfig, {"name": loss} if isinstance(loss, str) else loss, "loss"),
        train=settings_of(TrainConfig, config, "config"),
        loader=settings_of(LoaderConfig, loader, "loader"),
    )
    summary = train_job(job, path_of("out", out), log=log, overwrite=overwrite)
    assert summary is not None  # nothing stops it
    final, best = summary["final"], summary["best"]
    more = {
        "loss": summary["loss"]["name"],
        "train": final["train"],
        "validation": final["validation"],
        "best": best["validation"],
        "best_epoch": best["epoch"],
        "weights": Path(out) / BEST,
    }
    return results.of(results.TrainReport, {**summary, **more})


def evaluate(
    model: nn.Module | Teacher | PathLike,
    index: Index | PathLike,
    *,
    like: CachedLoader | None = None,
    cache: CacheReader | PathLike | None = None,
    crops: Literal["center", "five-crop"] = "center",
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> results.Scores:
    """Score a model on the center crop, or five crops, of every sample.

    Args:
        model: weights that kdpipe wrote; a `Teacher`; or a module that gives logits (n, C), which is put in eval mode
            for the time.
        index: the samples, or their path.
        like: the training loader of a module, whose mean, std, render size and interpolation are used.
        cache: of the same samples and crops, to compare with its teacher.
        crops: "center" or "five-crop", whose probabilities are averaged.
        batch_size: views a forward; of a Teacher its own.
        workers: processes that render.
        device: of a module or of weights; "auto" is cuda if there is one.
        trust: names of code that the weights may give, such as your package.module:factory; see docs/security.md.

    Raises:
        ConfigError: an argument of the wrong type; or a module without `like`.
        TeacherError: the weights can't be read.
        TrainingError: the output is not finite, or not (n, C).
    """
    samples, batch_size = as_index(index), whole("batch_size", batch_size, 1)
    if crops not in CROPS:
        raise ConfigError("unknown crops", where="crops", found=repr(crops), allowed=", ".join(CROPS))
    policy = ViewsConfig()
    if isinstance(model, str | os.PathLike):
        settings = {"weights": os.fspath(model), "device": device, "batch_size": batch_size, "trust": trust}
        header = read_header(os.fspath(model))
        if header.views is not None:
            policy = parsed(ViewsConfig, header.views, model, "the header's views are none that kdpipe writes")
        model = Teacher(settings_of(TeacherConfig, settings, "evaluate"), samples.num_classes)
    if isinstance(model, Teacher):
        teacher, size, classes, where = model, model.built.input_size, model.num_classes, model.device
        predict: Callable[[torch.Tensor], torch.Tensor] = lambda x: teacher(x.cpu().numpy()).logits  # noqa: E731
        batch_size, policy = teacher.config.batch_size, like.policy if like is not None else policy
    elif isinstance(model, nn.Module):
        if like is None:
            do = "Pass like=, the loader that it was trained with"
            raise ConfigError("how to feed a module is unknown", where="like", do=do)
        policy, size, classes, where = like.policy, like.input_size, like.num_classes, resolve_device(device)
        module, normalize = model.to(where), Normalize(like.mean, like.std).to(where)
        predict = lambda x: cast(torch.Tensor, module(normalize(x))).float()  # noqa: E731
    else:
        allowed = "a module, a Teacher, or a file of weights"
        raise ConfigError("not a model", where="model", found=type(model).__name__, allowed=allowed)
    samples.check_labels(classes)
    reader = None
    if cache is not None:
        reader = cache if isinstance(cache, CacheReader) else open_cache(cache, samples, views=policy)
    loader = Loader(
        samples,
        policy,
        size,
        batch_size,
        loader=settings_of(LoaderConfig, {"workers": workers}, "evaluate"),
        cache=reader,
        evaluate=CROPS[crops],
    )
    was_training = isinstance(model, nn.Module) and model.training
    try:
        if was_training:
            cast(nn.Module, model).eval()
        decode = None if reader is None else reader.decode
        found: Metrics = score(predict, loader.epoch(0), classes, where, cached=decode, views=len(CROPS[crops]))
    finally:
        if was_training:
            cast(nn.Module, model).train()
        loader.close()
    return results.of(results.Scores, found)
