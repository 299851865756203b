"""`import kdpipe`: what is exported, how quickly, and what the functions give."""

import importlib
import json
import pkgutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, is_dataclass

import pytest
import torch

import kdpipe
from kdpipe.cache import CacheReader
from kdpipe.errors import ConfigError
from kdpipe.shards import Index
from kdpipe.teacher import TeacherConfig
from tests.stages.running import kdpipe as command
from tests.tiny import CLASSES, SETTINGS, VIEWS, teacher
from tests.trainer.tiny import MODEL

HEAVY = ("torch", "timm", "zarr", "numpy", "dask", "pydantic", "PIL")


def test_importing_it_imports_little():
    code = "import sys; before = set(sys.modules); import kdpipe; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "kdpipe" in found
    assert not [name for name in found if name.split(".")[0] in HEAVY]
    assert len(found) < 30


def test_what_is_public():
    assert dir(kdpipe) == sorted(kdpipe.__all__)
    assert len(kdpipe.__all__) <= 16
    code = "import kdpipe; print(*(n for n in vars(kdpipe) if not n.startswith('_')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == []
    # A function of a submodule's name would turn into the module as soon as that is imported.
    modules = {module.name for module in pkgutil.iter_modules(kdpipe.__path__)}
    assert not modules & set(kdpipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'torch'"):
        _ = kdpipe.torch


@pytest.mark.parametrize("name", kdpipe.__all__)
def test_each_export_is_there(name):
    if name == "register_loss" and not hasattr(importlib.import_module("kdpipe.losses"), name):
        pytest.skip("kdpipe.losses has no register_loss yet")
    found = getattr(kdpipe, name)
    assert name == "__version__" or found.__doc__
    assert name not in ("__version__",) or found[0].isdigit()


def test_an_index_and_a_cache_open_by_path_or_as_they_are(world, cache_path):
    index = kdpipe.open_index(world.index_path)
    assert isinstance(index, Index)
    reader = kdpipe.open_cache(cache_path)  # with the index with which it was made
    assert isinstance(reader, CacheReader)
    assert reader.views == [0, 1, 2, "center"]
    assert kdpipe.open_cache(cache_path, index, views=VIEWS).views == reader.views


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kdpipe.open_index(3), "index: not a path; found int 3"),
        (lambda: kdpipe.open_cache(None), "cache: not a path; found NoneType"),
        (lambda: kdpipe.verify(b"x"), "cache: not a path; found bytes"),
        (lambda: kdpipe.inspect(7), "cache: not a path; found int 7"),
        (lambda: kdpipe.create_loss("kdd"), "create_loss: .*kdd"),
        (lambda: kdpipe.create_loss("kd", temprature=2), r"create_loss: .*temprature"),
        (lambda: kdpipe.create_loss("kd+fd"), "takes features"),
        (lambda: kdpipe.create_loss("kd+dist", alpha=1), "create_loss: alpha"),
        (lambda: kdpipe.create_loss("kd+dist", kd={"schedule": ((0, 0.5),)}), "needs the length of the run"),
        (lambda: kdpipe.create_loss("simkd"), "takes features"),
        (lambda: kdpipe.create_loss("norm"), "takes features"),
        (lambda: kdpipe.create_loss("kd", schedule=((0, 1.0),)), "needs the length of the run"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_other_views_than_the_caches_are_refused(world, cache_path):
    with pytest.raises(kdpipe.KdpipeError, match=r"views\.seed"):
        kdpipe.open_cache(cache_path, world.index, views={**VIEWS.model_dump(), "seed": 4})
    with pytest.raises(ConfigError, match="views: hflip"):
        kdpipe.open_cache(cache_path, world.index, views={"hflip": 2})
    for views in ("0:4", 4, []):
        with pytest.raises(ConfigError, match="not a list of views"):
            kdpipe.cache_teacher(world.index, teacher(), "nowhere", views)
    with pytest.raises(ConfigError, match="teacher: not settings; found str"):
        kdpipe.cache_teacher(world.index, "resnet18", "nowhere", [0])


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """A cache and a student, by the functions alone."""
    folder = tmp_path_factory.mktemp("api")
    report = kdpipe.cache_teacher(
        world.index_path, SETTINGS, folder / "cache.zarr", range(2), policy=VIEWS, targets={"k": 4}
    )
    trained = kdpipe.train(
        world.index,
        folder / "run",
        cache=folder / "cache.zarr",
        student={"model": MODEL, "input_size": 16},
        validation=world.index_path,
        config={"epochs": 2, "batch_size": 32, "warmup_epochs": 0, "device": "cpu"},
    )
    return folder, report, trained


def test_results_are_frozen_and_typed(made):
    _, report, trained = made
    for result in (report, trained):
        assert is_dataclass(result)
        with pytest.raises(FrozenInstanceError):
            result.seconds = 1
    assert (report.ok, report.tasks, report.views, report.cached) == (True, 3, 2 * 94, "0:2")
    assert 0 < report.retained_mass <= 1
    assert (trained.student, trained.loss, trained.epochs, trained.samples) == (MODEL, "kd", 2, 94)
    assert trained.weights.is_file()
    assert trained.validation.samples == 94
    assert set(trained.train) == {"loss", "kd", "ce"}


def test_verify_and_inspect_agree_with_the_commands(made):
    folder, *_ = made
    where = str(folder / "cache.zarr")
    verified = kdpipe.verify(where, trust=["tests.tiny:network"])
    document = json.loads(command("verify", where, "--trust", "tests.tiny:network", "--json").out)
    assert verified.ok
    assert (verified.integrity.files, verified.truth.views) == (
        document["integrity"]["files"],
        document["truth"]["views"],
    )
    assert verified.truth.difference <= verified.truth.tolerance
    assert kdpipe.verify(where, integrity_only=True).truth is None
    described = kdpipe.inspect(where, top=3)
    document = json.loads(command("inspect", where, "--top", 3, "--json").out)
    assert (described.root, described.bytes, described.complete) == (document["root"], document["bytes"], True)
    assert [s.name for s in described.segments] == [s["name"] for s in document["segments"]]
    assert described.views[0].teacher_top1 == document["statistics"]["views"][0]["teacher_top1"]
    assert [c.key for c in described.contradictions] == [c["key"] for c in document["statistics"]["contradictions"]]
    assert kdpipe.inspect(where, statistics=False).views == ()


def test_a_damaged_cache_does_not_verify(made, tmp_path):
    folder, *_ = made
    where = tmp_path / "cache.zarr"
    subprocess.run(["cp", "-r", folder / "cache.zarr", where], check=True)
    chunk = next(path for path in sorted(where.glob("segments/*/log_prob/c/**/*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    found = kdpipe.verify(where)
    assert not found.ok
    assert found.truth is None
    assert "log_prob" in found.integrity.problems[0].where


def test_evaluate_takes_weights_a_module_or_a_teacher(made, world):
    folder, _, trained = made
    scores = kdpipe.evaluate(trained.weights, world.index, device="cpu", trust=[MODEL])
    assert scores.top1 == trained.best.top1
    assert scores.nll == pytest.approx(trained.best.nll, rel=1e-5)
    loader = kdpipe.CachedLoader(world.index, folder / "cache.zarr", 32)
    module = kdpipe.Teacher(TeacherConfig(weights=str(trained.weights), trust=(MODEL,))).original()
    module.train()
    again = kdpipe.evaluate(module, world.index_path, like=loader, device="cpu", crops="five-crop")
    assert module.training
    assert again.labelled == scores.labelled
    assert kdpipe.evaluate(teacher(), world.index, like=loader).samples == 94
    again = {"weights": trained.weights, "trust": [MODEL], "device": "cpu"}  # a Path, as the report has it
    assert kdpipe.cache_teacher(world.index, again, folder / "student.zarr", [0]).views == 94
    with pytest.raises(ConfigError, match="how to feed a module"):
        kdpipe.evaluate(module, world.index)
    with pytest.raises(ConfigError, match="not a model; found int"):
        kdpipe.evaluate(3, world.index)


def test_a_loss_by_name_is_that_of_the_trainer(world, cache_path):
    from kdpipe.losses.logit import cross_entropy, kd

    batch = next(iter(kdpipe.CachedLoader(world.index, cache_path, 16)))
    logits = torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = kdpipe.create_loss("kd", alpha=0.25)
    expected = 0.25 * kd(logits, batch.targets.log_probs).mean()
    expected = expected + 0.75 * cross_entropy(logits, batch.ground_truth, batch.context)
    found = loss(logits, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(loss.parts(logits, batch)) == {"loss", "kd", "ce"}
    found.backward()
    assert logits.grad.abs().sum() > 0
