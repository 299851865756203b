"""A user's own loss and teacher, those of CONTRIBUTING.md: named, configured, trained, resumed, refused."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from kdpipe.errors import CheckpointError, ConfigError
from kdpipe.losses import Context, LossConfig, StudentOutput, TermConfig, build_loss, find_loss, register_loss
from kdpipe.losses.logit import KnowledgeDistillation
from kdpipe.models.build import ModelConfig, build
from kdpipe.targets import Labels, Targets
from kdpipe.trainer import train
from kdpipe.trainer.files import CHECKPOINT
from tests.imports import ROOT
from tests.stages.running import kdpipe, refused
from tests.trainer import tiny
from tests.trainer.test_commands import PARAMS
from tests.trainer.test_damaged import _set, resealed

BLOCK = re.compile(r'^( *)```python\n\1"""(\w+\.py)"""\n(.*?)^\1```', re.MULTILINE | re.DOTALL)
OWN = "my_losses:LogitMse"


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    """The modules of CONTRIBUTING.md, importable."""
    found = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert [name for _, name, _ in found] == ["my_teachers.py", "my_losses.py"]
    (tmp_path / "own").mkdir()
    for _, name, code in found:
        (tmp_path / "own" / name).write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    yield
    for module in ("my_losses", "my_teachers", "marking_losses"):
        sys.modules.pop(module, None)


def put(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "own" / f"{name}.py").write_text(text)


def stop(step) -> None:
    if step.epoch == 2:
        raise KeyboardInterrupt


def job(index, cache, **train):
    made = tiny.make_job(index, cache=cache, **{"epochs": 2, "checkpoint_steps": 2, "threads": 1, **train})
    loss = LossConfig.model_validate({"name": f"kd+{OWN}", "logit_mse": {"weight": 0.5, "temperature": 2.0}})
    return made.__class__(**{**vars(made), "loss": loss})


def test_it_is_computed_as_written():
    loss = build_loss(LossConfig.model_validate({"name": OWN, "logit_mse": {"temperature": 2.0}}))
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    context, labels = Context(rows=5, labelled=0), Labels(torch.full((5,), -1))
    found = loss(StudentOutput(student.bfloat16()), labels, Targets(teacher, dense=True), context)["loss"]
    s, t = (x.double() - x.double().mean(dim=1, keepdim=True) for x in (student.bfloat16(), teacher))
    assert found.item() == pytest.approx((((s - t) / 2) ** 2).mean().item(), rel=1e-6)


def test_the_command_trains_with_it(index, cache, tmp_path):
    own = "loss: {logit_mse: {schedule: [[0, 0.5], [0.5, 1]]}}\n"
    (tmp_path / "params.yaml").write_text(PARAMS + own)
    words = ["train-student", "--config", tmp_path / "params.yaml", "--index", index.path, "--cache", cache]
    words += ["--student", tiny.MODEL, "--epochs", 2, "--loss", f"kd+{OWN}", "--temperature", 2, "--json"]
    result = kdpipe(*words, "--set", "loss.logit_mse.weight=0.25", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    used = json.loads(result.out)["loss"]
    assert used["name"] == f"kd+{OWN}"
    assert used["logit-mse"] == {"weight": 0.25, "schedule": [[0, 0.5], [0.5, 1]], "temperature": 2.0}
    assert used["kd"]["temperature"] == 2.0
    assert "logit_mse" in json.dumps(tiny.lines(tmp_path / "run"))
    line = refused(*words, "--set", "loss.logit_mse.temprature=3", "--out", tmp_path / "other")
    assert "loss.logit_mse.temprature: unknown key; allowed: schedule, temperature, weight" in line
    assert "Did you mean temperature" in line
    assert not (tmp_path / "other").exists()


def test_resumed_it_gives_the_same_weights(index, cache, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(job(index, cache), whole, log=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        train(job(index, cache), stopped, log=lambda _: None, on_step=stop)
    assert (stopped / CHECKPOINT).exists()
    train(job(index, cache), stopped, log=lambda _: None)
    assert (stopped / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_listing_shows_its_hyperparameters():
    shown = kdpipe("losses", OWN, "--classes", 10).out
    assert "logit-mse: Kim et al. 2021" in shown
    assert "needs logits of all classes" in shown
    assert "loss.logit_mse.temperature = 1.0: Both sides' logits are divided by it." in shown
    assert json.loads(kdpipe("losses", OWN, "--json").out)[0]["name"] == "logit-mse"


def test_a_file_that_names_a_loss_imports_nothing(index, tmp_path):
    put(tmp_path, "marking_losses", f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    made = tiny.make_job(index, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "run", log=lambda _: None, on_step=stop)
    name = "marking_losses:Loss"
    resealed(tmp_path / "run", _set("config.loss.name", name))
    with pytest.raises(CheckpointError, match=r"made with another loss\.name"):
        train(made, tmp_path / "run", log=lambda _: None)
    train(made, tmp_path / "whole", log=lambda _: None)
    summary = tmp_path / "whole" / "summary.json"
    summary.write_text(summary.read_text().replace('"name": "none"', f'"name": "{name}"'))
    kdpipe("report", tmp_path / "whole")
    assert name in summary.read_text()
    assert not (tmp_path / "ran").exists()
    # The same name on the command line imports it.
    assert "module 'marking_losses' has no attribute 'Loss'" in refused("losses", name)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere:Loss", "can't be imported: ModuleNotFoundError.*PYTHONPATH"),
        ("os:system", "subclass of kdpipe.losses.Loss"),
        ("my_losses:LogitMseConfig", "subclass of kdpipe.losses.Loss"),
        ("scalkd", "unknown loss scalkd; allowed: none, kd.*Did you mean scalekd"),
        ("logit-mse+logit-mse", "unknown loss|twice"),
        (f"{OWN}+{OWN}", "a loss is there twice"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_line(index, tmp_path, word, message):
    line = refused("train-student", "--index", index.path, "--loss", word, "--out", tmp_path / "run")
    assert re.search(message, line), line


def test_names_that_are_taken_or_impossible_are_refused():
    class Config(TermConfig):
        pass

    for name in ("kd", "ce", "soft_ce", "teachers", "used", "copy", "Kd", "a b", "a.b"):
        with pytest.raises(ConfigError, match=r"another loss or setting|no name that can be used"):
            register_loss(name)(type("Own", (KnowledgeDistillation,), {"Config": Config}))
    with pytest.raises(ConfigError, match="another loss"):
        register_loss("thing")(KnowledgeDistillation)
    assert KnowledgeDistillation.name == "kd"
    with pytest.raises(ConfigError, match=r"subclass of kdpipe\.losses\.Loss"):
        register_loss("thing")(object)
    with pytest.raises(ConfigError, match="unknown loss thing"):
        find_loss("thing")


def test_a_registered_name_works_in_python_and_replaces_itself():
    for weight in (1.0, 2.0):
        made = type("Mine", (KnowledgeDistillation,), {"__module__": "notebook"})
        assert register_loss("mine")(made) is made
        config = LossConfig.model_validate({"name": "ce+mine", "mine": {"weight": weight}})
        assert find_loss("mine").load() is made
        assert (config.used()["mine"]["weight"], config.name) == (weight, "none+mine")
    with pytest.raises(ConfigError, match="another loss"):
        register_loss("mine")(type("Other", (KnowledgeDistillation,), {"__module__": "notebook"}))


def test_the_teacher_of_the_page_is_built():
    made = build(ModelConfig(model="my_teachers:small", model_kwargs={"width": 4}, num_classes=3, input_size=16))
    assert made.module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_objectives_is_losses():
    assert kdpipe("objectives").out == kdpipe("losses").out != ""
    assert "objectives" not in kdpipe("--help").out
