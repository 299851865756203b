"""A student that can't run is refused before a file is written; one that has no room is told how to make some."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.errors import TrainingError
from kdpipe.models import weights_digest
from kdpipe.trainer import DistillationModule, Step, build_student, files, train
from tests.trainer import tiny
from tests.trainer.test_refusals import refused

FULL = 2**50  # bytes that no machine has


class Failing(nn.Module):
    """Fails in its n-th forward in training mode, or in eval mode."""

    failure: Exception | None = None

    def __init__(self, num_classes: int, in_eval: bool) -> None:
        super().__init__()
        self.head, self.in_eval = nn.Linear(3, num_classes), in_eval

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.failure is not None and self.in_eval != self.training:
            raise self.failure
        return self.head(images.mean(dim=(2, 3)))


def failing(num_classes: int, in_eval: bool = True) -> nn.Module:
    return Failing(num_classes, in_eval)


def wide(num_classes: int) -> nn.Module:
    """With one class more than it is asked for."""
    return tiny.model(num_classes + 1)


def student(factory: str = "failing", **kwargs: object) -> dict:
    return {"model": f"tests.trainer.test_student:{factory}", "model_kwargs": kwargs}


def test_timm_model_of_another_input_size(index, tmp_path):
    job = tiny.make_job(index, student={"model": "vit_tiny_patch16_224", "input_size": 32})
    message = r"vit_tiny_patch16_224: the student can't run: AssertionError: .*32 pixels.*--input-size"
    refused(job, tmp_path / "run", TrainingError, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failure", [RuntimeError("mat1 and mat2\ndo not fit"), KeyError("x"), NotImplementedError()])
def test_any_failure_of_the_first_forward(index, tmp_path, monkeypatch, failure):
    monkeypatch.setattr(Failing, "failure", failure)
    refused(
        tiny.make_job(index, student=student()), tmp_path / "run", TrainingError, f"can't run: {type(failure).__name__}"
    )
    assert not (tmp_path / "run").exists()


def test_output_that_is_no_logits(index, tmp_path):
    message = re.escape("the student's output is no logits; found (2, 5); allowed: (2, 4)")
    refused(tiny.make_job(index, student=student("wide")), tmp_path / "run", TrainingError, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("of", ["cuda", "cpu"])
def test_out_of_memory_in_a_step(index, tmp_path, monkeypatch, of):
    """Told with the batch size, and the corrected command begins anew in the same folder."""
    failure: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if of == "cpu":
        with pytest.raises(RuntimeError) as caught:
            torch.empty(FULL, dtype=torch.uint8)
        failure = caught.value
    monkeypatch.setattr(Failing, "failure", failure)
    job = tiny.make_job(index, student=student(in_eval=False), epochs=1)
    refused(job, tmp_path / "run", TrainingError, "out of memory: .*16 images of 16 pixels.*Lower --batch-size, now 16")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [files.CHECKPOINT]
    monkeypatch.undo()
    smaller = tiny.make_job(index, student=student(in_eval=False), epochs=1, batch_size=8)
    train(smaller, tmp_path / "run", log=lambda _: None)
    assert json.loads((tmp_path / "run" / files.SUMMARY).read_text())["config"]["train"]["batch_size"] == 8


def test_out_of_memory_in_the_backward(index, tmp_path, monkeypatch):
    def backward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    refused(tiny.make_job(index), tmp_path / "run", TrainingError, "out of memory: .*Lower --batch-size")


def test_the_rehearsal_changes_nothing(index):
    job = tiny.make_job(index)
    built = build_student(job.student, job.train)
    step = Step(DistillationModule(built, job.loss), job.train, updates=3, targets_of=None)
    before, drawn = weights_digest(step.model), torch.get_rng_state()
    step.dry_run()
    assert weights_digest(step.model) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in step.model.parameters())


def test_half_of_torchruns_environment(index, tmp_path: Path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(
        tiny.make_job(index), tmp_path / "run", TrainingError, "^RANK: .*found nothing.*Start with torchrun, or unset"
    )
    monkeypatch.setenv("RANK", "0")
    refused(tiny.make_job(index), tmp_path / "run", TrainingError, "^LOCAL_RANK: .*Start with torchrun")
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused(tiny.make_job(index), tmp_path / "run", TrainingError, "MASTER_ADDR.*Start with torchrun")
    monkeypatch.setenv("WORLD_SIZE", "two")
    refused(tiny.make_job(index), tmp_path / "run", TrainingError, "^WORLD_SIZE: .*found two")
