"""The merged form of a teacher: the same answers, the same teacher, checked before anything is kept."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from kdpipe.cache import Store
from kdpipe.errors import IdentityError, TeacherError
from kdpipe.models import merged, weights_digest
from kdpipe.teacher import Teacher, TeacherConfig
from tests.models.small import difference, shuffled
from tests.stages.running import kdpipe
from tests.tiny import CLASSES, SIZE, make_cache, teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def slak(tmp_path_factory):
    """A slak_nano whose BatchNorms do something, and its settings."""
    model = shuffled(timm.create_model("slak_nano", num_classes=CLASSES))
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(model.state_dict(), path)
    return model, {"model": "slak_nano", "weights": str(path)}


class Fusing(torch.nn.Module):
    """A layer of a user's, whose `fuse` is as `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, torch.nn.Conv2d(3, CLASSES, 3, bias=False)
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.bias[:, None, None]

    def fuse(self) -> torch.nn.Module:
        if self.how == "raises":
            raise RuntimeError("not today")
        if self.how == "nothing":
            return self
        conv = torch.nn.Conv2d(3, CLASSES, 3)
        weight = self.conv.weight.flip(2, 3) if self.how == "flips" else self.conv.weight
        conv.load_state_dict({"weight": weight.detach(), "bias": self.bias.detach()})
        return conv


def fusing(how: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(Fusing(how), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def users(how: str, **changes: object) -> Teacher:
    return teacher(model="tests.test_teacher_reparameterisation:fusing", model_kwargs={"how": how}, **changes)


def test_merged_says_the_same_with_fewer_layers(slak):
    model, settings = slak
    merged, eager = teacher(**settings), teacher(**settings, form="eager")
    assert difference(merged(IMAGES).logits, eager(IMAGES).logits) < 1e-5
    x = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        assert difference(merged(IMAGES).logits, model(x)) < 1e-5
        assert difference(merged.built.module(x), model(x)) < 1e-5
    layers = [len(list(one.built.module.modules())) for one in (merged, eager)]
    assert layers[0] < layers[1]


def test_merged_is_the_same_teacher_run_in_another_way(slak):
    model, settings = slak
    merged, eager = teacher(**settings), teacher(**settings, form="eager")
    assert merged.identity() == eager.identity()
    assert merged.identity()["weights"] == weights_digest(model)
    assert merged.numerics() == eager.numerics() | {"form": "merged"}


def test_a_users_own_layers_are_merged_where_they_know_how():
    assert teacher().numerics()["form"] == users("nothing").numerics()["form"] == "eager"
    assert users("fuses").numerics()["form"] == "merged"
    assert users("fuses")(IMAGES).logits.shape == (9, CLASSES)


def test_an_ensemble_is_merged_where_a_member_is(slak):
    _, settings = slak
    said = {"num_classes": CLASSES, "input_size": SIZE, "batch_size": 8, "threads": 1}
    members = [settings, {"model": "tests.tiny:network"}]
    merged, eager = (
        Teacher(TeacherConfig.model_validate(said | {"members": members, "form": form})) for form in ("merged", "eager")
    )
    assert (merged.numerics()["form"], eager.numerics()["form"]) == ("merged", "eager")
    assert merged.identity() == eager.identity()
    assert difference(merged(IMAGES).logits, eager(IMAGES).logits) < 1e-5


def test_under_autocast_forms_are_compared_in_float32(slak):
    _, settings = slak
    merged, eager = (teacher(**settings, amp_dtype="bfloat16", form=form) for form in ("merged", "eager"))
    apart = difference(merged(IMAGES).logits, eager(IMAGES).logits)
    assert 1e-5 < apart < 0.1


@pytest.mark.parametrize("images", [IMAGES, np.zeros_like(IMAGES)], ids=["views", "black"])
def test_a_merge_that_changes_the_function_is_refused(images):
    # Of black views a kernel says the same when it is flipped.
    with pytest.raises(TeacherError, match=r"merged, the model's output differs; found .* of the largest logit"):
        users("flips")(images)
    users("flips", form="eager")(images)


def test_it_is_refused_before_there_is_a_cache(world, slak, monkeypatch, tmp_path):
    def broken(model):
        copied = merged(model)
        with torch.no_grad():
            copied.stages[0].blocks[0].mlp.fc1.weight.mul_(1.01)
        return copied

    monkeypatch.setattr("kdpipe.teacher.reparameterisation.merged", broken)
    with pytest.raises(TeacherError, match=r"set teacher\.form=eager$"):
        make_cache(world, tmp_path / "c", **slak[1])
    assert not (tmp_path / "c").exists()


def test_layers_that_fail_to_merge_are_one_line():
    with pytest.raises(TeacherError, match=r"can't be merged: RuntimeError: not today.*teacher\.form=eager$"):
        users("raises")
    assert users("raises", form="eager")(IMAGES).logits.shape == (9, CLASSES)


def test_a_cache_of_the_merged_form_is_true(world, slak, tmp_path):
    made = make_cache(world, tmp_path / "c", views=(0,), **slak[1], form="eager")
    cache = make_cache(world, tmp_path / "c", views=(0, "center"), **slak[1])
    assert [s.numerics["form"] for s in cache.segments] == ["eager", "merged"]
    assert made.identity == cache.identity
    result = kdpipe("verify", tmp_path / "c", "--samples", 60, "--json")
    assert result.code == 0, result.out
    assert json.loads(result.out)["truth"]["difference"] < 1e-5


def test_a_segment_goes_on_in_the_form_it_was_begun_with(world, slak, tmp_path):
    make_cache(world, tmp_path / "c", views=(0,), **slak[1], form="eager")
    Store(tmp_path / "c").remove("commits/000-top4-float16-v0-1/shard-0001.tar.json")
    with pytest.raises(IdentityError, match=r"another form.*found merged; allowed: eager.*set teacher\.form=eager$"):
        make_cache(world, tmp_path / "c", views=(0,), **slak[1])
    assert make_cache(world, tmp_path / "c", views=(0,), **slak[1], form="eager").views() == [0]
