"""params.yaml, the presets and dvc.yaml say what the code does."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from kdpipe.presets import preset_names
from kdpipe_stages import settings as params
from kdpipe_stages.defaults import defaults_yaml
from kdpipe_stages.settings import Params
from tests.test_readme import parse

ROOT = Path(__file__).parent.parent
PRESETS = ROOT / "pipeline" / "kdpipe" / "presets"
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
KEYS = ["matrix", "cmd", "deps", "params", "outs"]
NAMES = ["prepare", "train_teacher", "cache_teacher", "train_student", "train_baseline", "evaluate", "report"]
VARS = {name: value for entry in DVC["vars"] for name, value in entry.items()}


def expand(stage: dict) -> list[dict]:
    """The stage once for each combination of its matrix, as DVC does, with ${} filled in."""
    axes = {name: VARS[v[2:-1]] if isinstance(v, str) else v for name, v in stage.get("matrix", {}).items()}
    text = yaml.safe_dump({key: value for key, value in stage.items() if key != "matrix"}, width=10**6)
    return [
        yaml.safe_load(re.sub(r"\$\{(?:item\.)?(\w+)\}", lambda m, one=(VARS | item): str(one[m[1]]), text))
        for item in (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    ]


STAGES = [(name, one) for name, stage in DVC["stages"].items() for one in expand(stage)]


def commands(stage: dict) -> list[str]:
    lines = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
    return [line for line in lines if not line.startswith(("mkdir -p ", "cd runs/dvc/begun/"))]


def paths(entries: list) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_params_yaml_has_every_default():
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == Params().model_dump(mode="json")


def test_params_yaml_is_made_from_the_fields():
    do = "Run python -m kdpipe_stages.defaults > params.yaml"
    assert (ROOT / "params.yaml").read_text() == defaults_yaml(), do


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name):
    path = PRESETS / f"{name}.yaml"
    assert params.load(f"preset:{name}") == params.load(str(path)) != Params()


def test_all_presets_have_names():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(preset_names()) >= {"cifar10", "digits"}


def test_dvc_has_the_stages_in_order():
    assert list(DVC["stages"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_dvc_keys_are_in_order(name):
    stage = DVC["stages"][name]
    assert list(stage) == [key for key in KEYS if key in stage]


@pytest.mark.parametrize("at", range(len(STAGES)), ids=[f"{name}-{i}" for i, (name, _) in enumerate(STAGES)])
def test_dvc_stage(at):
    stage = STAGES[at][1]
    for line in commands(stage):
        assert line.startswith("kdpipe ")
        parse(shlex.split(line.split(">")[0])[1:])
    made = {path for _, other in STAGES[:at] for path in paths(other["outs"])}
    for dep in stage["deps"]:
        known = (ROOT / dep).exists() or any(dep == out or dep.startswith(f"{out}/") for out in made)
        assert known or any(out.startswith(f"{dep}/") for out in made), dep
    for entry in stage.get("params", []):
        for file, sections in entry.items():
            assert set(sections) <= yaml.safe_load((ROOT / file).read_text()).keys()


def test_dvc_watches_every_section_of_its_presets_that_a_stage_reads():
    watched = {
        s
        for _, stage in STAGES
        for e in stage.get("params", [])
        for s in e.get("pipeline/kdpipe/presets/digits.yaml", [])
    }
    assert watched == yaml.safe_load((PRESETS / "digits.yaml").read_text()).keys()


def test_dvc_never_owns_a_cache():
    # DVC deletes or copies what it owns: an interrupted cache could not go on.
    assert not any(".zarr" in path or "caches" in path for _, stage in STAGES for path in paths(stage["outs"]))


def test_dvc_owns_no_unfinished_run():
    # It would delete it before it could go on; and of an out that persists DVC forgets what it was before.
    assert not any(entry for _, stage in STAGES for entry in stage["outs"] if not isinstance(entry, str))
    for _, stage in STAGES:
        runs = {line.split(" --out ")[1].split()[0] for line in commands(stage) if " train-student " in line}
        assert not runs & set(paths(stage["outs"]))


def test_dvc_shows_what_the_stages_make():
    outs = [path for _, stage in STAGES for path in paths(stage["outs"])]
    assert sorted(DVC["metrics"]) == sorted(path for path in outs if path.startswith("runs/dvc/evaluations/"))
    runs = {
        out for (name, stage) in STAGES if name in {"train_teacher", "train_student"} for out in paths(stage["outs"])
    }
    for plot in DVC["plots"]:
        for settings in plot.values():
            assert {path.split("/dvclive/")[0] for path in settings["y"]} == runs


def test_baselines_have_as_many_steps_as_students():
    images, labelled = 1438, 143  # of what `kdpipe prepare digits --labelled 0.1` leaves for training
    train = yaml.safe_load((PRESETS / "digits.yaml").read_text())["train"]
    command = next(commands(stage)[0] for name, stage in STAGES if name == "train_baseline")
    epochs = int(command.split("--epochs ")[1].split()[0])
    steps, alone = (-(-count // train["batch_size"]) for count in (images, labelled))
    assert abs(epochs * alone - train["epochs"] * steps) < alone
