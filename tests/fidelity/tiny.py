"""A small index and an untrained teacher, for tests of fidelity; imported where pytest looks for fixtures."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdpipe.fidelity.run import Size
from kdpipe.fidelity.setup import Setup, make_setup
from kdpipe.shards import Index, build_index
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig
from tests.shards.making import write_shards

SIZE, CLASSES = 32, 24
VIEWS = ViewsConfig(seed=5, scale=(0.5, 1.0), crop_pct=1.0, interpolation="bilinear")
# Its map has 2 x 2 positions: of a single one it makes no difference how it lies in memory.
TEACHER = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24], "patch_size": 2, "output_stride": 16, "kernel_sizes": 3}
QUICK = Size(steps=4, batches=1, rows=16)
KS = (1, 5, 10, 16)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "shards", 2, 24, size=40, classes=CLASSES, seed=1, kind="png", name="train")
    return build_index(str(folder / "shards"), folder / "train.index", block_size=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher with confident outputs."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=CLASSES, **TEACHER)
    with torch.no_grad():
        model.head.fc.weight.mul_(20)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def setup(index: Index, weights: Path) -> Setup:
    config = TeacherConfig(
        model="convnext_atto",
        model_kwargs=TEACHER,
        weights=str(weights),
        num_classes=CLASSES,
        input_size=SIZE,
        batch_size=16,
        device="cpu",
        form="merged",
    )
    return make_setup(index, VIEWS, Teacher(config))


def settings(path: Path, views: str = "{scale: [0.5, 1.0], crop_pct: 1.0, interpolation: bilinear}") -> Path:
    """A --config file of the teacher."""
    model = json.dumps({"model": "convnext_atto", "model_kwargs": TEACHER, "num_classes": CLASSES, "input_size": SIZE})
    path.write_text(f"views: {views}\nteacher: {model}\n")
    return path
