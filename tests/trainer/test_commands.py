"""The commands train-student and evaluate, as typed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kdpipe.cache import Cache, Store
from kdpipe.cache.manifest import CacheRecord
from kdpipe_stages.cli import main
from tests.trainer import tiny

PARAMS = f"""
views: {json.dumps(tiny.VIEWS.model_dump(mode="json"))}
student: {{input_size: {tiny.SIZE}, num_classes: {tiny.CLASSES}}}
train: {{batch_size: 16, lr: 0.01, device: cpu, threads: 1}}
teacher: {{device: cpu, batch_size: 8}}
"""


# The student's weights name a factory of the tests.
TRUST = ("--trust", "tests.trainer")


def kdpipe(*words: str) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture(scope="module")
def params(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(PARAMS)
    return path


@pytest.fixture(scope="module")
def trained(params, index, validation, cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "student"
    result = kdpipe(
        *("train-student", "--config", params, "--index", index.path, "--val", validation.path),
        *("--cache", cache, "--student", tiny.MODEL, "--model-kwargs", "width=6", "--loss", "kd"),
        *("--temperature", 2, "--alpha", 0.8, "--epochs", 2, "--out", out, "--json"),
    )
    assert result.exit_code == 0, result.output
    assert "epoch 2/2" in result.stderr
    summary = json.loads(result.stdout)
    assert summary["loss"]["kd"]["temperature"] == 2
    assert summary["config"]["student"]["model_kwargs"] == {"width": 6}
    return out


def test_train_without_a_teacher(params, index, tmp_path):
    words = ["train-student", "--config", params, "--index", index.path, "--student", tiny.MODEL]
    words += ["--loss", "none", "--epochs", 1, "--limit", 20, "--out", tmp_path / "run"]
    result = kdpipe(*words)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["samples"] == 20
    again = kdpipe(*words)
    assert again.exit_code == 0
    assert "is finished" in again.stderr
    other = kdpipe(*words, "--lr", 0.5)
    assert other.exit_code == 2
    assert "made with another train.lr" in other.stderr


class TestViewsOfTheCache:
    """Where neither --config nor --set gives views, a student takes those of its cache."""

    @pytest.fixture
    def words(self, index, cache, tmp_path):
        student = ("--student", tiny.MODEL, "--input-size", tiny.SIZE, "--batch-size", 16)
        more = ("--epochs", 1, "--warmup-epochs", 0, "--set", "train.device=cpu", "--loss", "kd", "--limit", 20)
        return ["train-student", "--index", index.path, "--cache", cache, *student, *more, "--out", tmp_path / "run"]

    def test_they_are_taken(self, words, tmp_path):
        result = kdpipe(*words)
        assert result.exit_code == 0, result.output
        assert "views: those of the cache" in result.stderr
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["config"]["views"] == json.loads(json.dumps(tiny.VIEWS.identity()))

    def test_given_ones_that_differ_are_refused_by_name(self, words, tmp_path):
        policy = json.dumps(tiny.VIEWS.model_copy(update={"hflip": 0.25}).model_dump(mode="json"))
        (tmp_path / "other.yaml").write_text(f"views: {policy}\n")
        result = kdpipe(*words, "--config", tmp_path / "other.yaml")
        assert (result.exit_code, "views.hflip" in result.stderr) == (2, True), result.stderr
        result = kdpipe(*words, "--set", "views.seed=6")
        assert (result.exit_code, "views." in result.stderr) == (2, True), result.stderr
        assert not (tmp_path / "run").exists()

    def test_a_manifest_names_the_cache(self, words, index, cache, tmp_path):
        opened = Cache(Store(str(cache)))
        record = CacheRecord.of(opened, opened.segments[0].encoding, opened.views())
        record.write(str(tmp_path / "m.json"))
        words[words.index("--cache") + 1] = tmp_path / "m.json"
        assert kdpipe(*words).exit_code == 0


def test_label_smoothing_of_the_named_loss(params, index, tmp_path):
    words = ["train-student", "--config", params, "--index", index.path, "--student", tiny.MODEL, "--epochs", 1]
    words += ["--warmup-epochs", 0, "--limit", 20, "--out", tmp_path / "run", "--label-smoothing", 0.1, "--json"]
    result = kdpipe(*words, "--loss", "none")
    assert json.loads(result.stdout)["loss"]["none"]["label_smoothing"] == 0.1
    refused = kdpipe(*words, "--loss", "ce+fd", "--alpha", 0.5)
    assert (refused.exit_code, "none+fd has no alpha" in refused.stderr) == (2, True), refused.stderr


def test_evaluate_needs_no_more_than_file_and_shards(trained, validation):
    result = kdpipe("evaluate", trained / "best.safetensors", "--index", validation.path, *TRUST, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    best = json.loads((trained / "summary.json").read_text())["best"]["validation"]
    assert found == {k: pytest.approx(v, abs=1e-6) for k, v in best.items()}


def test_evaluate_takes_no_word_about_other_weights_from_a_params_file(trained, validation, tmp_path):
    other = "teacher: {class_map: nowhere.txt, checkpoint_key: model_ema, layers: {fc: convolved}, batch_size: 8}\n"
    (tmp_path / "other.yaml").write_text(other)
    words = ("evaluate", trained / "best.safetensors", "--index", validation.path, "--config", tmp_path / "other.yaml")
    words += TRUST
    assert kdpipe(*words).exit_code == 0
    asked = kdpipe(*words, "--set", "teacher.class_map=nowhere.txt")
    assert (asked.exit_code, "class map can't be read" in asked.stderr) == (2, True)


def test_evaluate_for_people(trained, validation):
    result = kdpipe("evaluate", trained / "best.safetensors", "--index", validation.path, "--limit", 5, *TRUST)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("samples 5\nlabelled 5\ntop1 ")


def test_agreement_with_the_cached_center_view(trained, index, data, tmp_path):
    url = tiny.make_cache(tmp_path, index, views=("center",))
    file = trained / "best.safetensors"
    found = json.loads(kdpipe("evaluate", file, "--index", index.path, "--cache", url, *TRUST, "--json").stdout)
    assert 0 <= found["agreement_top1"] <= found["agreement_top5"] == 1
    assert found["kl"] > 0


def test_evaluate_any_model(params, index, tmp_path):
    """A teacher against its own cached answers: it agrees with itself."""
    url = tiny.make_cache(tmp_path, index, views=("center",))
    result = kdpipe(
        *("evaluate", "--config", params, "--model", "tests.trainer.tiny:teacher_model", "--num-classes", tiny.CLASSES),
        *("--input-size", tiny.SIZE, "--index", index.path, "--cache", url, "--json"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["agreement_top1"] == 1
    assert abs(found["kl"]) < 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "kdd"], "unknown loss kdd; allowed: none, kd, soft-ce"),
        (["--loss", "kd"], "needs a teacher's targets. Pass --cache"),
        (["--loss", "none", "--set", "train.epoch=3"], "unknown key"),
        (["--loss", "none", "--student", "resnet19"], "unknown model"),
        (["--loss", "none", "--set", "train.opt=adamq"], "unknown optimizer adamq"),
        (["--loss", "none", "--num-classes", "2"], "label out of range"),
        (["--loss", "none", "--val", "nowhere.index"], "nowhere.index"),
        (["--loss", "kd", "--cache", "nowhere.zarr"], "no cache here"),
    ],
)
def test_mistakes_are_one_line(params, index, tmp_path, words, message):
    begin = ["train-student", "--config", params, "--index", index.path, "--student", tiny.MODEL]
    result = kdpipe(*begin, "--epochs", 1, "--out", tmp_path / "run", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("run/*"))


def test_evaluate_mistakes(trained, index, cache):
    missing = kdpipe("evaluate", "nowhere.safetensors", "--index", index.path)
    assert (missing.exit_code, "weights not found" in missing.stderr) == (2, True)
    nothing = kdpipe("evaluate", "--model", "resnet18", "--index", index.path)
    assert (nothing.exit_code, "no weights" in nothing.stderr) == (2, True)
    file = trained / "best.safetensors"
    no_center = kdpipe("evaluate", file, "--index", index.path, "--cache", cache, *TRUST)
    assert (no_center.exit_code, "view center is not cached" in no_center.stderr) == (2, True)
