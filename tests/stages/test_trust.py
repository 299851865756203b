"""Files that name code, opened by every command that can open them; settings that are bombs."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import Cache, Store
from kdpipe.cache.layout import PROVENANCE, part_file, part_record
from kdpipe.cache.modules import put_part, read_part
from kdpipe.cache.sealed import read_record, seal
from kdpipe.cache.select import TAIL
from kdpipe.trainer.files import RunFolder
from tests.marking import Code, code, weights
from tests.stages.running import kdpipe, refused
from tests.stages.test_features import caching as featured
from tests.stages.test_features import slak  # noqa: F401 - a fixture
from tests.stages.test_mistakes import training
from tests.tiny import CLASSES, SIZE, network
from tests.trainer.featured import STUDENT

NONE = {"model": None, "mean": None, "std": None}
QUICK = ("--steps", 1, "--batches", 1, "--rows", 2)
FLAT = ("--set", "views.crop_pct=1.0", "--set", "teacher.threads=1")


@pytest.fixture
def marking(tmp_path, monkeypatch) -> Code:
    return code(tmp_path, monkeypatch)


def commands(file: Path, index: str, out: Path) -> dict[str, tuple[object, ...]]:
    """Every command that builds a network from a file of weights."""
    shards = ("--index", index)
    return {
        "evaluate": ("evaluate", file, *shards, *FLAT),
        "erf": ("erf", file, *shards, "--out", out / "e.png", "--input-size", 16, "--limit", 2),
        "cache-teacher": ("cache-teacher", *shards, "--weights", file, "--out", out / "c", "--k", 3, *FLAT),
        "fidelity": ("fidelity", *shards, "--weights", file, "--loss", "kd", *QUICK, *FLAT),
        "plan": ("plan", *shards, "--weights", file, "--seconds", 1, *FLAT),
        "train-student": (
            *("train-student", *shards, "--weights", file, "--loss", "none", "--epochs", 1, "--out", out / "r"),
            *("--batch-size", 16, "--set", "train.warmup_epochs=0"),
        ),
    }


COMMANDS = list(commands(Path(), "", Path()))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_shell_command_in_a_header_is_not_run(world, tmp_path, name):
    header = {"model": "os:system", "model_kwargs": {"command": f"touch {tmp_path / 'ran'}"}}
    file = weights(tmp_path / "w.safetensors", header)
    (tmp_path / "out").mkdir()
    line = refused(*commands(file, world.index_path, tmp_path / "out")[name])
    assert f"{file}: the file names a model" in line
    assert "found os:system" in line
    assert "--trust os:system" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "w.safetensors"]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_code_is_imported_when_it_is_trusted(world, tmp_path, marking, name):
    header = {"model": marking.name, "num_classes": CLASSES, "input_size": SIZE}
    file = weights(tmp_path / "w.safetensors", header, network().state_dict())
    words = commands(file, world.index_path, tmp_path)[name]
    line = refused(*words)
    assert f"--trust {marking.name}" in line
    assert not marking.ran
    assert "--trust marking" in refused(*words, "--trust", "mark", "--trust", "marking.inner:other")
    assert not marking.ran
    result = kdpipe(*words, "--trust", "elsewhere", "--trust", "marking")
    # The network has no map whose receptive field could be measured; it was built to see that.
    assert (result.code, "has no forward_features" in result.err) == ((2, True) if name == "erf" else (0, False))
    assert marking.ran


def test_a_params_file_trusts_too(world, tmp_path, marking):
    header = {"model": marking.name, "num_classes": CLASSES, "input_size": SIZE}
    file = weights(tmp_path / "w.safetensors", header, network().state_dict())
    words = commands(file, world.index_path, tmp_path)["evaluate"]
    for settings in ({"teacher": {"trust": ["marking"]}}, {"student": {"model": marking.name}}):
        (tmp_path / "p.yaml").write_text(json.dumps(settings))
        assert kdpipe(*words, "--config", tmp_path / "p.yaml").code == 0
    assert "--trust" in refused(*words, "--set", "student.model=marking.inner:other")
    assert kdpipe(*words, "--model", marking.name).code == 0


class TestProvenance:
    def written(self, cache_path: str, folder: Path, **teacher: object) -> Path:
        shutil.copytree(cache_path, folder / "c")
        store = Store(folder / "c")
        content = read_record(store, PROVENANCE)
        content["runs"][-1]["teacher"] |= teacher
        store.put(PROVENANCE, seal(content))
        return folder / "c"

    @pytest.mark.parametrize("inside", ["model", "members"])
    def test_code_is_not_run(self, cache_path, tmp_path, marking, inside):
        member = {"model": marking.name}
        changes = member if inside == "model" else {**NONE, "members": [member] * 2}
        cache = self.written(cache_path, tmp_path, **changes, model_kwargs={})
        line = refused("verify", cache)
        assert f"{cache}/provenance.json: the file names a model" in line
        assert f"--trust {marking.name}" in line
        assert not marking.ran
        refused("verify", cache, "--trust", "marking")  # another teacher than the cache's, as its identity says
        assert marking.ran

    def test_the_teacher_may_be_named(self, cache_path):
        assert kdpipe("verify", cache_path, "--teacher", "tests.tiny:network", "--samples", 8).code == 0
        line = refused("verify", cache_path, "--teacher", "tests.tiny:teacher")
        assert "another teacher; found tests.tiny:teacher; allowed: tests.tiny:network" in line

    @pytest.mark.parametrize(
        "changes",
        [
            {"batch_size": 2**31, "model_kwargs": {"width": 2**40}, "members": 3},
            {"model_kwargs": {"checkpoint_path": "/etc/passwd"}, "model": "resnet18"},
            {"model": {"a": 1}},
            {"num_classes": 2**31},
        ],
    )
    def test_what_is_no_teacher(self, cache_path, tmp_path, changes):
        cache = self.written(cache_path, tmp_path, **changes)
        assert f"{cache}/provenance.json: " in refused("verify", cache, "--trust", "tests")

    @pytest.mark.parametrize(
        "run", [3, {}, {"shards": 1, "samples": 1, "teacher": {}}, {"shards": "a", "samples": "b"}]
    )
    def test_what_is_no_run(self, cache_path, tmp_path, run):
        cache = self.written(cache_path, tmp_path)
        Store(cache).put(PROVENANCE, seal({"runs": [run]}))
        result = kdpipe("verify", cache)
        assert result.code == 1
        assert "provenance.json: a record of the cache isn't as kdpipe writes them" in result.out


@pytest.fixture(scope="module")
def cache(world, slak, tmp_path_factory) -> Path:  # noqa: F811
    """Features and the last stage of a SLaK; not to be changed."""
    out = tmp_path_factory.mktemp("tail") / "c"
    result = kdpipe(
        *featured(world, out, "--feature-map", "float16", "--pooled", "float16", "--last-stage", teacher=slak)
    )
    assert result.code == 0, result.err
    return out


class TestTail:
    def words(self, world, cache: Path, out: Path) -> list[object]:
        student = ["--student", "resnet10t", "--model-kwargs", f"channels={STUDENT['channels']}"]
        flags = ["--loss", "scalekd", "--cache", cache, "--batch-size", 16, "--limit", 40]
        sets = [
            "views.crop_pct=1.0",
            "views.seed=3",
            "views.interpolation=bilinear",
            "train.warmup_epochs=0",
            "train.device=cpu",
        ]
        sets = [word for one in sets for word in ("--set", one)]
        return ["train-student", "--index", world.index_path, *student, *flags, *sets, "--epochs", 1, "--out", out]

    def test_code_is_not_run(self, world, cache, tmp_path, marking):
        shutil.copytree(cache, tmp_path / "c")
        opened = Cache(Store(tmp_path / "c"))
        tensors, about = read_part(opened, TAIL)
        for file in (part_file(TAIL), part_record(TAIL)):
            opened.store.remove(file)
        del opened.parts[TAIL]
        put_part(opened, TAIL, tensors, about | {"model": marking.name, "model_kwargs": {}})
        words = self.words(world, tmp_path / "c", tmp_path / "r")
        line = refused(*words)
        assert f"{tmp_path / 'c'} part tail: the file names a model" in line
        assert f"--trust {marking.name}" in line
        assert not marking.ran
        assert not (tmp_path / "r").exists()
        refused(*words, "--trust", "marking")  # whose stage it isn't
        assert marking.ran

    def test_a_true_one_is_used(self, world, cache, tmp_path):
        result = kdpipe(*self.words(world, cache, tmp_path / "r"))
        assert result.code == 0, result.err


class TestCheckpoint:
    def changed(self, path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        folder = RunFolder(path)
        tensors, state = folder.read_checkpoint()
        change(state)
        folder.write_checkpoint(tensors, state)

    def test_names_in_it_are_compared_and_not_used(self, world, tmp_path, marking):
        words = training(world, tmp_path / "r", "--loss", "none")
        assert kdpipe(*words).code == 0
        self.changed(tmp_path / "r", lambda state: state["config"]["student"].update(model=marking.name))
        line = refused(*words)
        assert "student.model" in line
        assert f"allowed: {marking.name} as started" in line
        assert not marking.ran

    def test_a_dtype_is_no_other_name_of_torch(self, world, tmp_path):
        words = training(world, tmp_path / "r", "--loss", "none")
        assert kdpipe(*words).code == 0
        (tmp_path / "r" / "summary.json").unlink()
        self.changed(tmp_path / "r", lambda state: state["optimizer"].update(groups={"dtype": "load"}))
        assert "dtype load" in refused(*words)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "[" * 50_000,
        "{a: " * 50_000,
        "x" * 2_000_000,
        "a: &a [*a]",
        "views: {seed: " + "9" * 5000 + "}",
        "views: {? {a: 1} : 2}",
        "1: 2",
        "views: {1: 2}",
        "views: {fill: " + "[" * 20 + "1" + "]" * 20 + "}",
        "teacher: {members: 3, model: [1]}",
        "teacher: {num_classes: 2147483648}",
        "student: {trust: 3}",
        "- 1",
        "\0",
    ],
    ids=range(15),
)
def test_params_that_are_none(world, tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    words = [["--config", tmp_path / "p.yaml"]]
    if text.startswith(("a: &a [x", "[", "{a: {", "x")):  # which are no values either
        words += [[f"--set=views.seed={text}"], [f"--model-kwargs=a={text}"]]
    for one in words:
        began = time.monotonic()
        line = refused(*training(world, tmp_path / "r"), *one)
        assert time.monotonic() - began < 5
        assert len(line) < 1500
