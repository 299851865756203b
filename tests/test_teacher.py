"""Teachers: loaded strictly, run in one exact form, refused when they would teach noise."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import IdentityError, TeacherError
from kdpipe.models import METADATA_KEY, weights_digest
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from tests.tiny import CLASSES, SIZE, VIEWS, teacher
from tests.views.test_render import photo


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=11).eval()
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_logits_are_timms(resnet):
    model, path = resnet
    loaded = Teacher(TeacherConfig(model="test_resnet", weights=str(path), num_classes=11, batch_size=4))
    assert loaded.built.input_size == 160
    images = np.stack([photo(160, 160, seed=i) for i in range(6)])
    transform = create_transform(
        160, interpolation="bilinear", crop_pct=1.0, mean=loaded.built.mean, std=loaded.built.std
    )
    with torch.no_grad():
        expected = model(torch.stack([transform(Image.fromarray(image)) for image in images]))
    logits = loaded(images).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_pickles_of_tensors_are_the_same_teacher(resnet, tmp_path, wrap):
    model, path = resnet
    torch.save(wrap(model.state_dict()), tmp_path / "w.pth")
    ours = Teacher(TeacherConfig(model="test_resnet", weights=str(tmp_path / "w.pth"), num_classes=11))
    assert ours.weights == weights_digest(model)
    assert ours.identity() == Teacher(TeacherConfig(model="test_resnet", weights=str(path), num_classes=11)).identity()


def test_the_answer_on_a_view_does_not_depend_on_its_neighbours():
    model = teacher()
    images = np.random.default_rng(0).integers(0, 256, (21, SIZE, SIZE, 3), dtype=np.uint8)
    whole = model(images).logits
    for rows in (slice(0, 8), slice(16, 21), slice(8, 16)):
        assert torch.equal(model(images[rows]).logits, whole[rows])


def test_the_digest_sees_one_weight(resnet):
    model, _ = resnet
    before = weights_digest(model)
    with torch.no_grad():
        model.fc.bias[3] += 1e-6
        assert weights_digest(model) != before
        model.fc.bias[3] -= 1e-6


def test_published_weights_of_other_classes_are_refused(monkeypatch):
    created = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        return created(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(TeacherError, match=r"another number of classes.*found 1000; allowed: 10"):
        Teacher(TeacherConfig(model="resnet18", pretrained=True, num_classes=10))


def test_a_model_that_cannot_run_is_one_line():
    with pytest.raises(TeacherError, match=r"the model can't run: RuntimeError: .*found 8 views of 1 pixels"):
        teacher()(np.zeros((1, 1, 1, 3), np.uint8))


def test_an_output_that_is_no_logits_is_refused():
    with pytest.raises(TeacherError, match=r"no logits; found \(8, 7\); allowed: \(8, 9\)"):
        teacher(num_classes=9, model_kwargs={"num_classes": 7})(np.zeros((2, SIZE, SIZE, 3), np.uint8))


def test_numerics_name_what_may_move_results():
    assert teacher().numerics() == {
        "form": "eager",
        "layers": {},
        "batch_size": 8,
        "amp_dtype": "float32",
        "channels_last": True,
        "device": "cpu",
        "threads": 1,
        "tf32": False,
    }


def test_standardised_logits_are_another_teacher(world, tmp_path):
    """The scale is said by the file's header alone: the digest of the tensors doesn't see it."""
    model = timm.create_model("resnet10t", num_classes=CLASSES, channels=(8, 8, 12, 16), stem_width=8)
    header = {"model": "resnet10t", "model_kwargs": {"channels": [8, 8, 12, 16], "stem_width": 8}}
    header |= {"num_classes": CLASSES, "input_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    teachers = {}
    for name, scale in {"plain": {}, "norm": {"logit_scale": 2.5}}.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), path, metadata={METADATA_KEY: json.dumps(header | scale)})
        teachers[name] = Teacher(TeacherConfig(weights=str(path), batch_size=8, threads=1))
    plain, norm = (one.identity() for one in teachers.values())
    assert norm == plain | {"logit_scale": 2.5}
    assert "logit_scale" not in plain  # identities of other caches stay as they are
    how = {"targets": TargetsConfig(kind="dense", dtype="float32"), "caching": CachingConfig(render_threads=1)}
    cache_views(str(tmp_path / "c"), world.index, VIEWS, teachers["norm"], views=[0], **how)
    message = r"another teacher\.logit_scale; found absent now; allowed: 2\.5 as cached"
    with pytest.raises(IdentityError, match=message):
        cache_views(str(tmp_path / "c"), world.index, VIEWS, teachers["plain"], views=[0, 1], **how)
