"""Files that hold no weights: one line each, whatever they hold."""

import os
from pathlib import Path

import pytest
import torch

from kdpipe.errors import TeacherError
from kdpipe.models import load_weights, read_metadata
from tests.trainer import tiny


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "no weights by name but an object of type list"),
        (torch.zeros(2), "no weights by name but an object of type Tensor"),
        ({"state_dict": 3}, "no weights by name but an object of type int"),
        ({1: torch.zeros(2)}, "no weights by name but other keys than names"),
        ({"a" * 501: torch.zeros(2)}, "no weights by name but other keys than names"),
        ({"\x1b[31m": torch.zeros(2)}, "no weights by name but other keys than names"),
        ({"epoch": 3, "lr": 0.1}, r"something else than weights \(2 of 2 entries\); found int under 'epoch'"),
        ({"optimizer": {}, "0.weight": torch.zeros(2)}, "found dict under 'optimizer'"),
    ],
)
def test_pickles_of_something_else(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=message) as caught:
        load_weights(tiny.model(4), tmp_path / "w.pth")
    assert "w.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_permission(tmp_path: Path, monkeypatch):
    def denied(self: Path, **_: object) -> bool:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(TeacherError, match=r"w.safetensors: weights can't be read: Permission denied"):
        read_metadata(tmp_path / "w.safetensors")


def test_not_there(tmp_path: Path):
    with pytest.raises(TeacherError, match=r"weights not found. Check the path"):
        read_metadata(tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match="weights not found"):
        read_metadata(tmp_path)
