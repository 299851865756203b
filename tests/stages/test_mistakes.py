"""The mistakes a user makes first, stage by stage: one clear line, exit code 2, nothing half-written."""

import contextlib
import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from kdpipe.shards import build_index
from kdpipe_stages.cli import main
from tests.shards.making import write_shards
from tests.stages.running import kdpipe, refused
from tests.tiny import CLASSES, SIZE, VIEWS, World, make_cache, make_world, network, tree

TEACHER = [
    *("--teacher", "tests.tiny:network", "--num-classes", CLASSES, "--input-size", SIZE, "--batch-size", 8),
    *("--set", "teacher.threads=1", "--set", "teacher.mean=[0.5,0.5,0.5]", "--set", "teacher.std=[0.25,0.25,0.25]"),
    *("--set", "views.seed=3", "--set", "views.interpolation=bilinear", "--set", "views.crop_pct=1.0"),
]
STUDENT = [
    *("--student", "tests.tiny:network", "--num-classes", CLASSES, "--input-size", SIZE, "--batch-size", 16),
    *("--set", "views.seed=3", "--set", "views.interpolation=bilinear", "--set", "views.crop_pct=1.0"),
    *("--set", "train.warmup_epochs=0"),
]


def caching(world: World, out: Path, *more: object) -> list[object]:
    return ["cache-teacher", "--index", world.index_path, *TEACHER, "--out", out, *more]


def training(world: World, out: Path, *more: object) -> list[object]:
    return ["train-student", "--index", world.index_path, *STUDENT, "--epochs", 1, "--out", out, *more]


class TestWrongPath:
    def test_index(self, tmp_path):
        assert "nowhere" in refused("index", tmp_path / "nowhere", "--out", tmp_path / "i")
        assert "a-0001.tar" in refused("index", tmp_path / "a-{0001..0003}.tar", "--out", tmp_path / "i")
        assert not (tmp_path / "i").exists()

    def test_prepare(self, tmp_path):
        assert "nowhere" in refused("prepare", "folder", tmp_path / "nowhere", "--out", tmp_path / "o")
        assert not (tmp_path / "o").exists()

    def test_cache_teacher(self, world, tmp_path):
        gone = World(tmp_path, world.index)
        line = refused("cache-teacher", "--index", tmp_path / "no.index", *TEACHER, "--out", tmp_path / "c")
        assert "no.index" in line
        assert "x.safetensors: weights not found" in refused(
            *caching(gone, tmp_path / "c", "--weights", "x.safetensors")
        )
        assert "unknown model; found resnet81" in refused(
            *caching(gone, tmp_path / "c"), "--teacher", "resnet81", "--pretrained"
        )
        assert not (tmp_path / "c").exists()

    def test_train_student(self, world, tmp_path):
        assert "no cache here" in refused(*training(world, tmp_path / "r", "--loss", "kd", "--cache", tmp_path / "no"))
        assert "no.yaml: settings can't be read" in refused(
            *training(world, tmp_path / "r"), "--config", tmp_path / "no.yaml"
        )
        assert not (tmp_path / "r").exists()

    @pytest.mark.parametrize("command", ["verify", "inspect"])
    def test_a_cache_that_is_not_there(self, tmp_path, command):
        assert "no cache here" in refused(command, tmp_path / "no.zarr")
        assert not (tmp_path / "no.zarr").exists()

    def test_evaluate(self, world, tmp_path):
        line = refused("evaluate", tmp_path / "no.safetensors", "--index", world.index_path)
        assert "no.safetensors: weights not found" in line

    def test_shards_that_moved_after_indexing(self, tmp_path):
        world = make_world(tmp_path / "w")
        (tmp_path / "w" / "shards").rename(tmp_path / "w" / "moved")
        line = refused(*caching(world, tmp_path / "c"))
        assert "shard-0000.tar: the shard is not where it was indexed" in line
        assert "Index the shards where they are now and pass that index" in line


class TestWrongClassCount:
    def test_a_label_beyond_the_teachers_classes(self, world, tmp_path):
        line = refused(*caching(world, tmp_path / "c"), "--num-classes", 3)
        assert "label out of range; found" in line
        assert "allowed: 0 to 2" in line
        assert "byte" in line
        assert not (tmp_path / "c").exists()

    def test_a_student_with_other_classes_than_the_cache(self, world, cache_path, tmp_path):
        line = refused(*training(world, tmp_path / "r", "--loss", "kd", "--cache", cache_path), "--num-classes", 9)
        assert "9" in line
        assert "7" in line
        assert not (tmp_path / "r").exists()

    def test_index(self, world, tmp_path):
        line = refused("index", world.folder / "shards", "--out", tmp_path / "i", "--num-classes", 2)
        assert "shard-0000.tar" in line
        assert not (tmp_path / "i").exists()


class TestCacheOfOtherShards:
    def test_train_student_and_cache_teacher(self, cache_path, tmp_path):
        other = make_world(tmp_path / "w", seed=9)
        before = tree(Path(cache_path), ignore=())
        field = "another shards.shard-0000.tar.content"
        assert field in refused(*training(other, tmp_path / "r", "--loss", "kd", "--cache", cache_path))
        assert field in refused(*caching(other, Path(cache_path)))
        assert tree(Path(cache_path), ignore=()) == before
        assert not (tmp_path / "r").exists()

    def test_verify(self, cache_path, tmp_path):
        other = make_world(tmp_path / "w", seed=9)
        assert "shard-0000.tar.content" in refused(
            "verify", cache_path, "--index", other.index_path, "--trust", "tests"
        )


def test_views_not_cached_under_strict(world, cache_path, tmp_path):
    command = training(world, tmp_path / "r", "--loss", "kd", "--cache", cache_path, "--view-schedule", "strict")
    line = refused(*command, "--epochs", 4)
    assert "view schedule strict: more epochs than cached views; found epoch 3; allowed: 3 epochs" in line
    assert not (tmp_path / "r").exists()


def test_teacher_without_weights(world, tmp_path):
    line = refused("cache-teacher", "--index", world.index_path, "--teacher", "resnet18", "--out", tmp_path / "c")
    assert "teacher has no weights: it would teach noise" in line
    assert "--weights FILE, or --pretrained" in line
    assert not (tmp_path / "c").exists()


def test_kd_without_a_cache(world, tmp_path):
    assert "--cache" in refused(*training(world, tmp_path / "r", "--loss", "kd"))
    assert not (tmp_path / "r").exists()


def corrupt_world(folder: Path) -> World:
    """A world in which one image's second half is zeros, which only decoding notices."""
    write_shards(folder / "shards", 1, 12, size=24, classes=CLASSES)
    first = build_index(str(folder / "shards"), folder / "first")
    shard = folder / "shards" / "shard-0000.tar"
    data = bytearray(shard.read_bytes())
    start, size = int(first.image_start[5]), int(first.image_size[5])
    data[start + size // 2 : start + size] = bytes(size - size // 2)
    shard.write_bytes(data)
    return World(folder, build_index(str(folder / "shards"), folder / "index", check="header"))


class TestCorruptImage:
    def test_index_finds_it_and_skips_it_when_told(self, tmp_path):
        world = corrupt_world(tmp_path)
        line = refused("index", tmp_path / "shards", "--out", tmp_path / "i")
        assert "shard-0000.tar" in line
        assert world.index.key(5) in line
        assert str(int(world.index.image_start[5])) in line or "byte" in line
        assert kdpipe("index", tmp_path / "shards", "--out", tmp_path / "i", "--skip-bad").code == 0

    def test_cache_teacher_and_train_student_name_it(self, tmp_path):
        world = corrupt_world(tmp_path)
        for command in (caching(world, tmp_path / "c"), training(world, tmp_path / "r", "--loss", "none")):
            line = refused(*command)
            assert f"shard-0000.tar key {world.index.key(5)} at byte {int(world.index.image_start[5])}" in line


def test_a_damaged_cache_is_refused_when_its_chunk_is_read(world, cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    chunk = tmp_path / "c.zarr/segments/000-top4-float16-v0-3/log_prob/c/0/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[30] ^= 4
    chunk.write_bytes(data)
    line = refused(*training(world, tmp_path / "r", "--loss", "kd", "--cache", tmp_path / "c.zarr"))
    assert "log_prob/c/0/1/0/0: a chunk of the cache is damaged: its checksum is wrong" in line


class TestNoSpaceAndNoPermission:
    @pytest.fixture(params=[errno.ENOSPC, errno.EACCES])
    def full(self, request, monkeypatch):
        """From now on every fsync fails, as it does where a disk is full or has been taken away."""

        def fails(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "fsync", fails)
        return os.strerror(request.param)

    def test_cache_teacher(self, world, tmp_path, full, monkeypatch):
        assert full in refused(*caching(world, tmp_path / "c"))
        monkeypatch.undo()
        assert kdpipe(*caching(world, tmp_path / "c")).code == 0
        make_cache(world, tmp_path / "d", views=(0,))
        assert len(tree(tmp_path / "c")) == len(tree(tmp_path / "d"))

    def test_train_student(self, world, tmp_path, full, monkeypatch):
        assert full in refused(*training(world, tmp_path / "r", "--loss", "none"))
        monkeypatch.undo()
        assert kdpipe(*training(world, tmp_path / "r", "--loss", "none")).code == 0

    def test_index(self, world, tmp_path, full):
        assert full in refused("index", world.folder / "shards", "--out", tmp_path / "i")
        assert not (tmp_path / "i").exists()

    def test_prepare(self, tmp_path, full):
        assert full in refused("prepare", "digits", "--out", tmp_path / "d")
        assert not (tmp_path / "d").exists()

    @pytest.mark.parametrize("buffered", [True, False])
    def test_a_standard_output_on_a_full_disk(self, tmp_path, monkeypatch, capsys, buffered):
        raw = io.FileIO("/dev/full", "w")
        file = io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as end:
            main(["cache", "ls", str(tmp_path)])
        assert end.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "error: standard output: the result can't be written: No space left on device. Make room"
        )
        with contextlib.suppress(OSError):
            file.close()

    def test_a_report_and_a_record_appear_whole_or_not_at_all(self, world, cache_path, tmp_path, monkeypatch):
        write = Path.write_text

        def half(self: Path, text: str, *args: object) -> None:
            write(self, text[: len(text) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        assert kdpipe(*training(world, tmp_path / "runs" / "r", "--loss", "none")).code == 0
        (tmp_path / "e").mkdir()
        scores = kdpipe("evaluate", tmp_path / "runs/r/best.safetensors", "--index", world.index_path, "--json").out
        (tmp_path / "e" / "r.json").write_text(scores)
        monkeypatch.setattr(Path, "write_text", half)
        out = tmp_path / "out"
        refused("report", tmp_path / "runs", "--evaluations", tmp_path / "e", "--out", out / "report.md")
        refused(*caching(world, out / "c"), "--manifest", out / "record.json")
        assert sorted(p.name for p in out.iterdir()) == ["c"]

    @pytest.mark.parametrize("stage", ["cache-teacher", "train-student", "index", "prepare", "demo"])
    def test_a_file_where_a_folder_should_be(self, world, tmp_path, stage):
        (tmp_path / "file").write_text("precious")
        out = tmp_path / "file" / "out"
        refused(
            *{
                "cache-teacher": caching(world, out),
                "train-student": training(world, out, "--loss", "none"),
                "index": ["index", world.folder / "shards", "--out", out],
                "prepare": ["prepare", "digits", "--out", out],
                "demo": ["demo", "--out", out],
            }[stage]
        )
        assert (tmp_path / "file").read_text() == "precious"


class TestDemo:
    def test_a_file_as_its_folder(self, tmp_path):
        (tmp_path / "file").write_text("precious")
        assert "file: can't be written: File exists. Choose another --out" in refused(
            "demo", "--out", tmp_path / "file"
        )

    def test_a_folder_that_is_read_only(self, tmp_path, monkeypatch):
        def denied(self: Path, *_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        monkeypatch.setattr(Path, "mkdir", denied)
        assert "can't be written: Permission denied" in refused("demo", "--out", tmp_path / "demo")


class TestParams:
    @pytest.mark.parametrize("command", [caching, training])
    def test_unknown_key(self, world, tmp_path, command):
        file = tmp_path / "p.yaml"
        file.write_text(yaml.safe_dump({"train": {"learning_rate": 1}}))
        line = refused(*command(world, tmp_path / "out"), "--config", file)
        assert "p.yaml: train.learning_rate: unknown key; allowed: " in line
        assert "views.zoom: unknown key" in refused(*command(world, tmp_path / "out"), "--set", "views.zoom=1")
        assert not (tmp_path / "out").exists()

    def test_wrong_type_impossible_value_and_no_yaml(self, world, tmp_path):
        line = refused(*training(world, tmp_path / "r"), "--set", "train.lr=fast")
        assert "train.lr" in line
        assert "found fast" in line
        assert "train.lr" in refused(*training(world, tmp_path / "r"), "--set", "train.lr=-1")
        assert "section.key=value" in refused(*training(world, tmp_path / "r"), "--set", "lr=1")
        (tmp_path / "bad.yaml").write_text("a: [1")
        assert "not YAML" in refused(*training(world, tmp_path / "r"), "--config", tmp_path / "bad.yaml")

    def test_values_that_are_no_yaml_or_a_date(self, world, tmp_path):
        for value in ("a=[1", "a=2020-99-99"):
            line = refused(*training(world, tmp_path / "r"), "--model-kwargs", value)
            assert "--model-kwargs a: value is not YAML: " in line
            assert f"; found {value[2:]}" in line
            assert "value is not YAML" in refused(*training(world, tmp_path / "r"), "--set", f"views.see{value}")
        for value in ("2020-01-01", "{2020-01-01: 1}"):
            line = refused(*training(world, tmp_path / "r"), "--set", f"views.seed={value}")
            assert line.startswith("error: --set: views.seed: input should be a valid integer")
        assert "2020-01-01" in refused(*training(world, tmp_path / "r"), "--set", "views.seed=2020-01-01")
        (tmp_path / "bad.yaml").write_text("views: {seed: 2020-99-99}")
        assert "not YAML" in refused(*training(world, tmp_path / "r"), "--config", tmp_path / "bad.yaml")

    def test_the_source_of_a_wrong_setting_is_named(self, world, tmp_path):
        run = [*training(world, tmp_path / "r"), "--config", "preset:digits"]
        assert refused(*run, "--set", "train.lr=fast").startswith("error: --set: train.lr: input should be a valid")
        assert refused(*run, "--set", "train.lrr=1").startswith("error: --set: train.lrr: unknown key; allowed: ")
        assert refused(*run, "--loss", "fd").startswith("error: loss: nothing in fd trains the classifier")
        assert refused(*run, "--loss", "nkdd").startswith("error: --loss: loss.name: unknown loss nkdd; ")
        (tmp_path / "own.yaml").write_text("train: {lr: fast}")
        line = refused(*training(world, tmp_path / "r"), "--config", tmp_path / "own.yaml")
        assert line.startswith(f"error: {tmp_path / 'own.yaml'}: train.lr: input should be a valid number")

    @pytest.mark.parametrize("views", ["4:2", "x", "-1", "0:4,"])
    def test_views_that_are_none(self, world, tmp_path, views):
        assert "invalid --views" in refused(*caching(world, tmp_path / "c"), f"--views={views}")


class TestOtherCheckpoint:
    def test_a_run_of_other_settings(self, world, tmp_path):
        assert kdpipe(*training(world, tmp_path / "r", "--loss", "none")).code == 0
        before = tree(tmp_path / "r")
        line = refused(*training(world, tmp_path / "r", "--loss", "none", "--lr", 0.5))
        assert "train.lr" in line
        assert tree(tmp_path / "r") == before

    def test_weights_of_another_model(self, world, tmp_path):
        assert kdpipe(*training(world, tmp_path / "r", "--loss", "none")).code == 0
        best = tmp_path / "r" / "best.safetensors"
        line = refused(*caching(world, tmp_path / "c", "--weights", best), "--teacher", "resnet18")
        assert "weights of another model; found tests.tiny:network; allowed: resnet18" in line
        line = refused(*caching(world, tmp_path / "c", "--weights", best), "--model-kwargs", "width=5")
        assert "weights don't fit the model Sequential" in line
        assert "of another shape (first: 0.bias (8,) instead of (5,))" in line
        assert not (tmp_path / "c").exists()

    def test_damaged_weights_in_every_command_that_reads_them(self, world, tmp_path):
        assert kdpipe(*training(world, tmp_path / "r", "--loss", "none")).code == 0
        best = tmp_path / "r" / "best.safetensors"
        data = bytearray(best.read_bytes())
        data[-5] ^= 1
        best.write_bytes(data)
        commands = [
            ["evaluate", best, "--index", world.index_path, "--trust", "tests.tiny"],
            ["erf", best, "--index", world.index_path, "--out", tmp_path / "erf.png", "--trust", "tests.tiny"],
            caching(world, tmp_path / "c", "--weights", best),
            training(world, tmp_path / "s", "--loss", "none", "--weights", best),
        ]
        for command in commands:
            assert f"{best}: weights can't be read: damaged: its tensors aren't those" in refused(*command)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]

    def test_a_remark_on_weights_of_another_program(self, world, tmp_path):
        save_file(network(CLASSES).state_dict(), tmp_path / "w.safetensors")
        result = kdpipe(*caching(world, tmp_path / "c", "--weights", tmp_path / "w.safetensors"))
        assert result.code == 0, result.err
        remark = f"{tmp_path / 'w.safetensors'}: no digest: its content can't be checked"
        assert [line for line in result.err.splitlines() if "digest" in line] == [remark]

    def test_a_file_that_is_no_checkpoint(self, world, tmp_path):
        (tmp_path / "w.safetensors").write_bytes(b"not at all")
        (tmp_path / "w.pth").write_bytes(b"not at all")
        for name in ("w.safetensors", "w.pth"):
            assert f"{name}: weights can't be read" in refused(
                *caching(world, tmp_path / "c", "--weights", tmp_path / name)
            )

    def test_a_folder_that_is_something_else(self, world, tmp_path):
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "thesis.tex").write_text("years of work")
        refused(*training(world, tmp_path / "r", "--loss", "none"))
        refused(*caching(world, tmp_path / "r"))
        assert tree(tmp_path / "r") == {"thesis.tex": b"years of work"}


def test_the_policy_of_these_tests_is_the_caches():
    assert (VIEWS.seed, VIEWS.interpolation, VIEWS.crop_pct) == (3, "bilinear", 1.0)
