"""params.yaml, the presets and dvc.yaml say what the code does."""

from pathlib import Path

import pytest
import yaml

from stages import params
from stages.params import Params
from tests.test_readme import parse

ROOT = Path(__file__).parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
KEYS = ["cmd", "deps", "params", "outs"]


def commands(stage: dict) -> list[str]:
    return [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]


def paths(entries: list) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_params_yaml_spells_out_every_default():
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == Params().model_dump(mode="json")


def test_params_yaml_explains_every_key():
    lines = (ROOT / "params.yaml").read_text().splitlines()
    bare = [line for line in lines if line.startswith("  ") and "#" not in line]
    assert bare == []


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda p: p.name)
def test_presets_load(path):
    params.load(str(path))


def test_dvc_has_the_stages_in_order():
    assert list(STAGES) == ["prepare", "index", "train_teacher", "cache_teacher", "train_student", "evaluate"]


@pytest.mark.parametrize("name", STAGES)
def test_dvc_stage(name):
    stage = STAGES[name]
    assert list(stage) == [key for key in KEYS if key in stage], "keys in order cmd, deps, params, outs"
    for line in commands(stage):
        assert line.startswith("kdpipe ")
        parse(line.split(">")[0].split()[1:])
    made = {path for other in list(STAGES)[: list(STAGES).index(name)] for path in paths(STAGES[other]["outs"])}
    for dep in stage["deps"]:
        assert (ROOT / dep).exists() or any(dep == out or dep.startswith(f"{out}/") for out in made), dep
    for entry in stage.get("params", []):
        for file, sections in entry.items():
            assert set(sections) <= yaml.safe_load((ROOT / file).read_text()).keys()


def test_dvc_never_owns_a_cache():
    # DVC deletes or copies what it owns: an interrupted cache could not go on.
    outs = [path for stage in STAGES.values() for path in paths(stage["outs"])]
    assert not any(".zarr" in path for path in outs)
    assert set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["metrics"]) <= set(outs)
