"""Every loss: an exact cache trains as a live teacher does; adapters resume; what is kept is plain."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from kdpipe.cache import Cache, CacheReader, Store
from kdpipe.cache.manifest import CacheRecord
from kdpipe.cache.modules import put_part, read_part
from kdpipe.errors import IdentityError, KdpipeError, TrainingError
from kdpipe.loader import Batch, Loader, LoaderConfig
from kdpipe.losses import LOSSES, LossConfig
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.shards import Index
from kdpipe.targets import Targets, TargetsConfig
from kdpipe.trainer import DistillationModule, Step, TrainConfig, build_student, train
from kdpipe.trainer.teachers import Teachers
from tests.trainer import featured
from tests.trainer.featured import CLASSES, SIZE, STUDENT, VIEWS

STEPS = 20
USES = [loss.usable for loss in LOSSES.values()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Index, teacher and exact cache."""
    return featured.make(tmp_path_factory.mktemp("losses"))


def teachers(url: str, index: Index, config: LossConfig) -> Teachers:
    caches = (url,) if config.requirements.targets else ()
    return Teachers(caches, index, VIEWS, config, LoaderConfig(), CLASSES, lambda _: None)


def run(index: Index, cached: Teachers, config: LossConfig, targets_of: Any, **more: Any) -> list[float]:
    loader = Loader(index, VIEWS, SIZE, 16, loader=LoaderConfig(streams=3), seed=3, cache=cached.reader)
    student = ModelConfig(model="resnet10t", model_kwargs=STUDENT, num_classes=CLASSES, input_size=SIZE)
    how = TrainConfig(epochs=7, batch_size=16, lr=1e-3, warmup_epochs=0, device="cpu", **more)
    built = build_student(student, how)
    torch.manual_seed(1)
    step = Step(DistillationModule(built, config, cached.info()), how, updates=loader.steps, targets_of=targets_of)
    losses: list[float] = []
    for epoch in range(7):
        for batch in loader.epoch(epoch):
            losses.append(float(step(batch, len(losses))["loss"]))
    return losses[:STEPS]


@pytest.mark.parametrize("name", USES)
def test_a_live_teacher_gives_the_losses_of_the_cache(made: Any, name: str) -> None:
    index, teacher, url = made
    teacher.set_features(("pooled", "map"))
    config = LossConfig(name=name)
    cached = teachers(url, index, config)

    def ask(batch: Batch) -> Targets:
        return Targets.live(teacher(batch.images.numpy(), batch.erased))

    online = run(index, cached, config, ask if config.requirements.targets else None)
    offline = run(index, cached, config, cached.targets_of)
    assert len(online) == STEPS
    assert online[-1] != online[0]
    scale = max(1.0, *map(abs, online))
    assert max(abs(a - b) for a, b in zip(online, offline, strict=True)) <= 1e-6 * scale


@pytest.mark.parametrize("name", ["nkd+fd", "norm", "simkd", "scalekd"])
def test_bfloat16_trains_nearly_as_float32(made: Any, name: str) -> None:
    index, _, url = made
    config = LossConfig(name=name)
    cached = teachers(url, index, config)
    full, half = (run(index, cached, config, cached.targets_of, amp_dtype=d) for d in ("float32", "bfloat16"))
    assert half[0] == pytest.approx(full[0], rel=0.02)
    assert half == pytest.approx(full, rel=0.15)
    assert half != full


def test_another_teachers_tail_is_refused(made: Any, tmp_path: Path) -> None:
    index, _, url = made
    other = featured.make_teacher(tmp_path, seed=1)
    second = featured.make_cache(tmp_path / "second.zarr", index, other, TargetsConfig(map="float32"), [0])
    ours, theirs = Cache(Store(second)), Cache(Store(url))
    put_part(ours, "tail", *read_part(theirs, "tail"))
    config = LossConfig(name="scalekd")
    with pytest.raises(IdentityError, match="tail"):
        teachers(second, index, config).info()


@pytest.mark.parametrize("name", ["dist", "nkd+fd", "norm", "simkd", "scalekd"])
def test_a_run_resumes_with_its_adapters(made: Any, name: str, tmp_path: Path) -> None:
    index, _, url = made
    job = featured.make_job(index, (url,), LossConfig(name=name), model_ema=name == "norm")
    train(job, tmp_path / "whole", log=lambda _: None)
    answers = iter([False, False, True])
    assert train(job, tmp_path / "parts", log=lambda _: None, stop=lambda: next(answers)) is None
    train(job, tmp_path / "parts", log=lambda _: None)
    whole, parts = (build(ModelConfig(weights=str(tmp_path / n / "last.safetensors"))) for n in ("whole", "parts"))
    ours, theirs = whole.module.state_dict(), parts.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    plain = timm.create_model("resnet10t", num_classes=CLASSES, **STUDENT)
    if name != "simkd":  # which keeps the teacher's classifier and the way to it
        assert whole.name == "resnet10t"
        assert set(ours) == set(plain.state_dict())


def test_what_is_missing_is_named_with_the_flags_that_add_it(made: Any, tmp_path: Path) -> None:
    index, teacher, _ = made
    url = str(tmp_path / "few.zarr")
    featured.make_cache(Path(url), index, teacher, TargetsConfig(k=2), [0])
    for name, flags in {
        "dist": "--targets dense, or --pooled float16",
        "kd+fd": "--targets none --feature-map float16",
        "ce+rkd": "--targets none --pooled float16",
        "simkd": "--pooled float16",
        "scalekd": "--last-stage",
    }.items():
        with pytest.raises(KdpipeError, match=flags):
            teachers(url, index, LossConfig(name=name))
    assert Cache(Store(url)).views() == [0]


def test_pooled_features_give_dense_logits_at_any_temperature(made: Any, tmp_path: Path) -> None:
    index, teacher, url = made
    small = str(tmp_path / "pooled.zarr")
    for name, targets in {"top": TargetsConfig(k=2), "pooled": TargetsConfig(kind="none", pooled="float32")}.items():
        featured.make_cache(Path(small), index, teacher, targets, [0])
        assert name == "top" or len(Cache(Store(small)).segments) == 2
    config = LossConfig(name="kd", kd={"temperature": 4.0})
    dense = teachers(small, index, config)
    assert dense.readers[0].selection.by_head
    exact = CacheReader(url, index, VIEWS)
    found, expected = (
        reader.decode({n: torch.from_numpy(a) for n, a in reader.read("train-0000.tar", 0, 0, 24).items()}).log_probs
        for reader in (dense.readers[0], exact)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # The top k suffices at temperature 1, and is smaller.
    assert teachers(small, index, LossConfig(name="kd")).readers[0].selection.logits.kind == "topk"


def test_what_is_kept_twice_is_named_and_a_record_chooses(made: Any, tmp_path: Path) -> None:
    index, teacher, _ = made
    url, config = str(tmp_path / "twice.zarr"), LossConfig(name="ce+rkd")
    coarse, fine = (TargetsConfig(kind="none", pooled=dtype) for dtype in ("int8", "float32"))
    featured.make_cache(Path(url), index, teacher, coarse, [0])
    assert not teachers(url, index, config).remarks()
    featured.make_cache(Path(url), index, teacher, fine, [0])
    (said,) = teachers(url, index, config).remarks()
    assert "pooled-int8 is read, and not pooled-float32; to read it, pass a manifest" in said
    record, cache = str(tmp_path / "fine.json"), Cache(Store(url))
    CacheRecord.of(cache, cache.segments[1].encoding, [0]).write(record)
    by_record = teachers(record, index, config)
    assert not by_record.remarks()
    assert by_record.readers[0].selection.sources[0].encoding.pooled.dtype == "float32"


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_several_caches_average_as_their_teachers_would(made: Any, tmp_path: Path, weights: tuple) -> None:
    index, teacher, url = made
    other = featured.make_teacher(tmp_path, seed=1)
    second = featured.make_cache(tmp_path / "second.zarr", index, other, views=range(7))
    config = LossConfig(name="kd", teacher_weights=weights)
    both = Teachers((url, second), index, VIEWS, config, LoaderConfig(), CLASSES, lambda _: None)
    shares = [w / sum(weights) for w in weights] or [0.5, 0.5]

    def ask(batch: Batch) -> Targets:
        said = [t(batch.images.numpy(), batch.erased).logits.log_softmax(dim=1) for t in (teacher, other)]
        return Targets(sum(w * x for w, x in zip(shares, said, strict=True)).log_softmax(dim=1), dense=True)

    online, offline = (run(index, both, config, of) for of in (ask, both.targets_of))
    assert online == pytest.approx(offline, abs=1e-6)
    alone = teachers(url, index, LossConfig(name="kd"))
    assert online != pytest.approx(run(index, alone, config, alone.targets_of), abs=1e-3)


def test_the_sum_over_teachers_is_the_weighted_mean_of_their_losses(made: Any, tmp_path: Path) -> None:
    index, _, url = made
    second = featured.make_cache(tmp_path / "second.zarr", index, featured.make_teacher(tmp_path, seed=1))
    config = LossConfig(name="kd+rkd", teachers="sum", teacher_weights=(3.0, 1.0))
    both = Teachers((url, second), index, VIEWS, config, LoaderConfig(), CLASSES, lambda _: None)
    one = LossConfig(name="kd+rkd")
    first, *_ = run(index, both, config, both.targets_of)
    a, b = (run(index, of, one, of.targets_of)[0] for of in (teachers(u, index, one) for u in (url, second)))
    assert first == pytest.approx(0.75 * a + 0.25 * b, rel=1e-6)
    featured_job = featured.make_job(index, (url, second), config, epochs=1)
    assert len(train(featured_job, tmp_path / "run", log=lambda _: None)["pixels"]) == 2


def test_several_caches_that_do_not_go_together_are_refused(made: Any, tmp_path: Path) -> None:
    index, teacher, url = made
    logits = TargetsConfig()
    fewer = featured.make_cache(tmp_path / "fewer.zarr", index, teacher, logits, range(3))
    seeded = featured.make_cache(tmp_path / "seeded.zarr", index, teacher, logits, range(1), seed=6)
    for caches, loss, message in [
        ((url, fewer), {"name": "kd"}, "different views; found 0:3; allowed: 0:7"),
        ((url, seeded), {"name": "kd"}, "another views.seed"),
        ((url, url), {"name": "kd+fd"}, "loss.teachers=sum"),
        ((url, url), {"name": "norm", "teachers": "sum"}, "changes the student for one teacher.*Pass one --cache"),
        ((url, url), {"name": "simkd"}, "changes the student for one teacher.*Pass one --cache"),
        ((url, url), {"name": "kd", "teacher_weights": (1.0,)}, "each cache has a weight above 0"),
    ]:
        job = featured.make_job(index, caches, LossConfig(**loss))
        with pytest.raises(KdpipeError, match=message):
            train(job, tmp_path / "run", log=lambda _: None)
        assert not (tmp_path / "run").exists()


def test_several_caches_of_pooled_features_average_their_heads_logits(made: Any, tmp_path: Path) -> None:
    index, teacher, _ = made
    pooled = TargetsConfig(kind="none", pooled="float32")
    several = (teacher, featured.make_teacher(tmp_path, seed=1))
    urls = tuple(featured.make_cache(tmp_path / f"{i}.zarr", index, t, pooled) for i, t in enumerate(several))
    config = LossConfig(name="kd", kd={"temperature": 4.0})
    both = Teachers(urls, index, VIEWS, config, LoaderConfig(), CLASSES, lambda _: None)

    def ask(batch: Batch) -> Targets:
        said = [t(batch.images.numpy(), batch.erased).logits.log_softmax(dim=1) for t in several]
        return Targets((sum(said) / 2).log_softmax(dim=1), dense=True)

    online, offline = (run(index, both, config, of) for of in (ask, both.targets_of))
    assert online == pytest.approx(offline, abs=1e-5)


def test_an_evaluation_view_in_one_cache_alone_is_no_hindrance(made: Any, tmp_path: Path) -> None:
    index, teacher, _ = made
    more, fewer = (
        featured.make_cache(tmp_path / f"{len(views)}.zarr", index, teacher, TargetsConfig(), views)
        for views in ((0, 1, "center"), (0, 1))
    )
    both = Teachers((more, fewer), index, VIEWS, LossConfig(), LoaderConfig(), CLASSES, lambda _: None)
    assert both.reader is not None
    assert both.reader.views == [0, 1]


def test_a_run_goes_on_with_what_it_began_with_though_its_caches_got_more(made: Any, tmp_path: Path) -> None:
    index, teacher, _ = made
    dense = TargetsConfig(kind="dense", dtype="float32")
    url, other = (featured.make_cache(tmp_path / f"{n}.zarr", index, teacher, dense, range(2)) for n in "ab")
    job = featured.make_job(index, (url, other), LossConfig(name="kd"))
    answers = iter([False, True])
    assert train(job, tmp_path / "run", log=lambda _: None, stop=lambda: next(answers)) is None
    # A smaller encoding over more views, in one of them.
    featured.make_cache(Path(url), index, teacher, TargetsConfig(k=1), range(3))
    summary = train(job, tmp_path / "run", log=lambda _: None)
    assert summary is not None
    assert [c["views"] for c in summary["config"]["caches"]] == [[0, 1], [0, 1]]
    assert {c["encodings"][0]["kind"] for c in summary["config"]["caches"]} == {"dense"}


def test_another_teachers_head_is_refused(made: Any, tmp_path: Path) -> None:
    index, _, url = made
    other = featured.make_teacher(tmp_path, seed=1)
    second = featured.make_cache(tmp_path / "second.zarr", index, other, TargetsConfig(kind="none", map="float32"), [0])
    put_part(Cache(Store(second)), "head", *read_part(Cache(Store(url)), "head"))
    featured.make_cache(tmp_path / "second.zarr", index, other, TargetsConfig(kind="none", pooled="float32"), [0])
    with pytest.raises(IdentityError, match="head is another teacher's"):
        teachers(second, index, LossConfig(name="simkd")).info()


def test_what_a_student_cannot_give_is_said_in_words(made: Any) -> None:
    index, _, url = made
    vit = {"model": "vit_tiny_patch16_224", "model_kwargs": {"depth": 1, "embed_dim": 12, "num_heads": 1}}
    resnet = {"model": "resnet10t", "model_kwargs": STUDENT}
    for student, loss, message in [
        (vit, {"name": "kd+fd"}, "doesn't match model.*Check --input-size"),
        (resnet, {"name": "scalekd", "student_layers": ("layer4", "layer4")}, "last two stages"),
        (resnet, {"name": "kd+fd", "student_layers": ("fc",)}, "is no map"),
    ]:
        config = LossConfig(**loss)
        built = build(ModelConfig(**student, num_classes=CLASSES, input_size=SIZE))
        with pytest.raises(TrainingError, match=message):
            DistillationModule(built, config, teachers(url, index, config).info())


HELD = {"last stage": r"its last stage \(([\d,]+)\)", "classifier": r"its classifier \(([\d,]+)\)"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("simkd", ["classifier"]),
        ("ce+srrl", ["classifier"]),
        ("scalekd", ["last stage"]),
        ("scalekd+srrl", ["last stage", "classifier"]),
        ("kd", []),
        ("kd by head", ["classifier"]),
    ],
)
def test_what_is_held_of_the_teacher_is_said(made: Any, name: str, parts: list[str], tmp_path: Path) -> None:
    index, teacher, url = made
    if name == "kd by head":
        url = featured.make_cache(
            tmp_path / "pooled.zarr", index, teacher, TargetsConfig(kind="none", pooled="float32"), [0]
        )
    cached = teachers(url, index, LossConfig(name=name.partition(" ")[0]))
    reader, lines = cached.readers[0], [line for line in cached.remarks() if "in memory" in line]
    assert len(lines) == bool(parts)
    counts = {"last stage": lambda: reader.tail.resident, "classifier": lambda: 25 * CLASSES}
    for part in parts:
        assert re.search(HELD[part], lines[0]).group(1) == f"{counts[part]():,}"
    for line in lines:
        total = sum(counts[part]() for part in parts)
        assert line.startswith(f"{total:,} parameters of convnext_atto are in memory, frozen: its {parts[0]}")
