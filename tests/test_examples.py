"""The examples run, on tiny data, as they are."""

import importlib.util
import math
import runpy
import sys

import pytest
import torch

from tests.imports import ROOT

MODEL = "resnet10t"


def load(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plain_loop_trains_and_resumes_exactly(world, cache_path, tmp_path):
    main = load("plain_loop").main
    options = {"model": MODEL, "batch_size": 32, "lr": 1e-3}
    torch.manual_seed(0)
    whole = main(world.index_path, cache_path, epochs=2, checkpoint=str(tmp_path / "whole.pt"), **options)
    torch.manual_seed(0)
    main(world.index_path, cache_path, epochs=1, checkpoint=str(tmp_path / "parts.pt"), **options)
    parts = main(world.index_path, cache_path, epochs=2, checkpoint=str(tmp_path / "parts.pt"), **options)
    assert math.isfinite(whole)
    assert parts == whole


def test_timms_idiom_trains(world, cache_path):
    script = load("timm_script")
    words = ["--model", MODEL, "--epochs", "2", "--batch-size", "32", "--amp", "--model-ema", "--clip-grad", "1"]
    scores = script.main(script.parse([world.index_path, cache_path, *words, "--device", "cpu"]))
    assert scores.samples == len(world.index)
    assert math.isfinite(scores.nll)


@pytest.mark.filterwarnings("ignore")  # of Lightning's own: few workers, few batches
def test_a_lightning_module_trains_and_its_checkpoint_has_the_position(world, cache_path, tmp_path):
    pytest.importorskip("lightning")
    main = load("lightning_module").main
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"model": MODEL, "batch_size": 32, "default_root_dir": str(tmp_path), **quiet}
    module = main(world.index_path, cache_path, epochs=2, **options)
    assert module.global_step == 6
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    state = torch.load(checkpoint, weights_only=False)["CachedData"]
    assert (state["epoch"], state["step"]) == (2, 0)


@pytest.mark.parametrize("name", ["plain_loop", "timm_script", "lightning_module"])
def test_an_example_has_a_command_line(name, monkeypatch, capsys):
    if name == "lightning_module":
        pytest.importorskip("lightning")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"python examples/{name}.py" in capsys.readouterr().out
