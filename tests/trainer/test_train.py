"""A whole run: what it writes, what it learns, what it says."""

import json

import pytest
import torch
from safetensors import safe_open

from kdpipe.evaluation import evaluate
from kdpipe.loader import Loader
from kdpipe.models import METADATA_KEY, ModelConfig, read_metadata
from kdpipe.models.build import build
from kdpipe.trainer import train
from kdpipe.views import Normalize
from tests.trainer import tiny


def test_a_run_from_the_cache(tmp_path, index, validation, cache):
    said, steps = [], []
    job = tiny.make_job(index, validation, cache, {"name": "kd", "alpha": 0.9}, epochs=8, lr=0.02)
    summary = train(job, tmp_path / "run", log=said.append, on_step=steps.append)
    out = tmp_path / "run"
    assert sorted(p.name for p in out.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "summary.json",
    ]
    metrics = tiny.lines(out)
    assert [line["epoch"] for line in metrics] == list(range(1, 9))
    assert metrics[-1]["train"]["kd"] < 0.7 * metrics[0]["train"]["kd"]
    assert set(metrics[0]["train"]) == {"loss", "kd", "ce"}
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["final"] == {k: metrics[-1][k] for k in ("train", "validation")}
    top1 = [line["validation"]["top1"] for line in metrics]
    assert summary["best"]["epoch"] == 1 + top1.index(max(top1))
    assert summary["samples"] == len(index)
    assert len(steps) == summary["steps"] == 8 * 3
    assert (steps[-1].samples, steps[-1].total) == (8 * len(index), 8 * len(index))
    assert said[0] == "2 cached views for 8 epochs: views repeat, in a new order each time round"
    assert len([s for s in said if s.startswith("epoch ")]) == 8


def test_best_weights_say_all_that_evaluation_needs(tmp_path, index, validation):
    summary = train(tiny.make_job(index, validation), tmp_path / "run", log=lambda _: None)
    best = tmp_path / "run" / "best.safetensors"
    built = build(ModelConfig(weights=str(best), trust=("tests.trainer",)))
    assert (built.name, built.num_classes, built.input_size) == (tiny.MODEL, tiny.CLASSES, tiny.SIZE)
    header = read_metadata(best)
    assert header["evaluation"] == summary["best"]["validation"]
    assert header["views"] == tiny.VIEWS.model_dump(mode="json")
    normalize, model = Normalize(built.mean, built.std), built.module.eval()
    loader = Loader(validation, tiny.VIEWS, built.input_size, 16, evaluate=("center",))
    found = evaluate(lambda x: model(normalize(x)), loader.epoch(0), built.num_classes, torch.device("cpu"))
    assert found == summary["best"]["validation"]
    with safe_open(best, framework="pt") as file:
        assert set(file.metadata()) == {METADATA_KEY}


def test_without_validation_the_last_epoch_is_best(tmp_path, index):
    summary = train(tiny.make_job(index, epochs=2), tmp_path / "run", log=lambda _: None)
    assert summary["best"] == {"epoch": 2, "validation": None}
    out = tmp_path / "run"
    assert (out / "best.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()


def test_average_of_weights_is_what_is_evaluated_and_kept(tmp_path, index, validation):
    job = tiny.make_job(index, validation, epochs=2, model_ema=True, model_ema_decay=0.9)
    train(job, tmp_path / "run", log=lambda _: None)
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", framework="pt") as file:
        ema, raw = file.get_tensor("ema/0.weight"), file.get_tensor("model/0.weight")
    with safe_open(tmp_path / "run" / "last.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("0.weight"), ema)
    assert not torch.equal(ema, raw)


def test_same_seed_same_weights_for_any_number_of_workers(tmp_path, index, cache):
    def weights(name: str, workers: int = 0, seed: int = 7) -> bytes:
        job = tiny.make_job(index, cache=cache, epochs=2, seed=seed, loader={"workers": workers})
        train(job, tmp_path / name, log=lambda _: None)
        return (tmp_path / name / "last.safetensors").read_bytes()

    first = weights("a")
    torch.manual_seed(123)  # what was drawn before plays no part
    assert weights("b", workers=2) == first
    assert weights("c", seed=8) != first


def test_unlabelled_samples(tmp_path, data):
    part = tiny.make_index(data, "part", unlabelled=0.5)
    said: list[str] = []
    summary = train(tiny.make_job(part, epochs=1), tmp_path / "none", log=said.append)
    # Labels lie together in blocks here, so that most pairs have both.
    assert said[0] == "mixing leaves 20 of 22 labels in epoch 1: of a pair both samples must have one"
    assert said[1] == "22 of 44 samples have no label and are left out"
    assert summary["samples"] == 22
    said.clear()
    folder = tmp_path / "cached"
    folder.mkdir()
    summary = train(
        tiny.make_job(part, cache=tiny.make_cache(folder, part), epochs=1), tmp_path / "kd", log=said.append
    )
    assert "22 of 44 samples have no label: they learn from the teacher only" in said
    assert summary["samples"] == 44


def test_eval_every(tmp_path, index, validation):
    train(tiny.make_job(index, validation, epochs=3, eval_every=2), tmp_path / "run", log=lambda _: None)
    assert [line["validation"] is not None for line in tiny.lines(tmp_path / "run")] == [False, True, True]


def test_another_input_size_is_said(tmp_path, index, cache):
    said: list[str] = []
    job = tiny.make_job(index, cache=cache, student={"input_size": 12}, epochs=1)
    pixels = train(job, tmp_path / "run", log=said.append)["pixels"][0]
    assert sum("student sees 12 pixels a side, the teacher saw 16: views share crop, flips" in s for s in said) == 1
    assert (pixels["student"], pixels["teacher"], pixels["exact"]) == (12, 16, False)
    assert "erased boxes" in pixels["shared"]
    assert "erased noise" in pixels["own"]
    same = train(tiny.make_job(index, cache=cache, epochs=1), tmp_path / "same", log=said.append)
    assert same["pixels"][0] == {"student": 16, "teacher": 16, "exact": True, "canaries": 44}


def test_loss_none_leaves_a_cache_alone(tmp_path, index):
    said: list[str] = []
    job = tiny.make_job(index, cache="nowhere.zarr", loss={"name": "none"}, epochs=1)
    train(job, tmp_path / "run", log=said.append)
    assert said[0] == "loss none takes nothing from a teacher: the cache is not read"


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_autocast(tmp_path, index, amp_dtype):
    summary = train(tiny.make_job(index, epochs=1, amp_dtype=amp_dtype), tmp_path / "run", log=lambda _: None)
    assert summary["final"]["train"]["loss"] < 5
