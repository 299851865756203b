"""What the large-kernel papers say of receptive fields, on networks trained here."""

import json

import pytest

from kdpipe.models.build import build
from kdpipe_stages.demo_run import TEACHER, Demo
from tests.stages.running import kdpipe

# Stride 8, at which maps are large enough for kernels to differ.
SEVEN = {"patch_size": 1, "depths": [1, 1, 2, 1], "dims": [16, 40, 80, 120], "kernel_sizes": 7, "ls_init_value": 1.0}


@pytest.mark.slow
def test_a_trained_slak_sees_further_than_kernels_of_seven(tmp_path):
    models = {
        "slak": TEACHER.model_copy(update={"model_kwargs": {"patch_size": 1}}),
        "seven": TEACHER.model_copy(update={"model": "convnext_atto", "model_kwargs": SEVEN}),
    }
    sizes = {name: sum(p.numel() for p in build(model).module.parameters()) for name, model in models.items()}
    assert sizes["slak"] == pytest.approx(sizes["seven"], rel=0.1)
    run = Demo(tmp_path, quiet=True)
    run.shards()
    for name, model in models.items():
        assert run.trained(name, run.full, model, "none", seed=0, epochs=4) > 0.5
    files = [tmp_path / name / "best.safetensors" for name in models]
    words = ("--index", tmp_path / "val.index", "--limit", 30, "--input-size", 64, "--set", "views.crop_pct=1.0")
    result = kdpipe("erf", *files, *words, "--out", tmp_path / "erf.png", "--json")
    assert result.code == 0, result.err
    slak, of_seven = json.loads(result.out)["models"]
    for measure in ("log", "gradient"):
        for share in ("50%", "99%"):
            assert slak[measure][share]["side"] >= of_seven[measure][share]["side"]
        assert slak[measure]["50%"]["side"] > of_seven[measure]["50%"]["side"]
