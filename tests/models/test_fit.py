"""Weights of another model or other classes: one line that says whose they are; class maps."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig, load_weights, weights_digest
from kdpipe.models.build import build
from tests.models import layouts
from tests.models.small import CLASSES, FAMILIES, difference, images, shuffled

MANY = 30


def checkpoint(tmp_path: Path, classes: int = CLASSES) -> str:
    torch.save({"model": FAMILIES["replknet"].state(classes=classes)}, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def config(weights: str, **changes: object) -> ModelConfig:
    family = FAMILIES["replknet"]
    return ModelConfig(**{"model": family.model, "model_kwargs": family.kwargs, "weights": weights, **changes})


class TestClassMap:
    ROWS = (4, 29, 0, 11)

    def file(self, tmp_path: Path, content: str = "4\n29\n0\n11\n") -> str:
        (tmp_path / "map.txt").write_text(content)
        return str(tmp_path / "map.txt")

    @pytest.mark.parametrize("content", ["4\n29\n0\n11\n", json.dumps(ROWS)])
    def test_a_large_head_teaches_few_classes(self, tmp_path, content: str):
        weights = checkpoint(tmp_path, MANY)
        whole = build(config(weights, num_classes=MANY))
        part = build(config(weights, class_map=self.file(tmp_path, content)), num_classes=1000)
        assert part.num_classes == part.module.num_classes == 4
        with torch.no_grad():
            expected = whole.module.eval()(images())[:, self.ROWS]
            assert difference(part.module.eval()(images()), expected) < 1e-6
        assert weights_digest(part.module) != weights_digest(whole.module)

    def test_of_a_safetensors_file_of_another_model_of_timms(self, tmp_path):
        save_file(shuffled(timm.create_model("resnet10t", num_classes=MANY)).state_dict(), tmp_path / "w.safetensors")
        built = build(
            ModelConfig(model="resnet10t", weights=str(tmp_path / "w.safetensors"), class_map=self.file(tmp_path))
        )
        assert built.module.fc.weight.shape == (4, 512)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("4\n30\n0\n", r"names a row that the classifier head.fc.weight hasn't \(class 1\); found 30; .* 0 to 29"),
            ("4\n-1\n", "class 1 has no row of the classifier; found -1"),
            ("[4, 2.5]", "class 1 has no row of the classifier; found 2.5"),
            ("[4, true]", "class 1 has no row of the classifier; found True"),
            ("cat\ndog\n", "class map can't be read: invalid literal"),
            ("[4,", "class map can't be read"),
            ("\n", "class map is empty"),
        ],
    )
    def test_maps_that_are_none(self, tmp_path, content: str, message: str):
        with pytest.raises(TeacherError, match=message) as caught:
            build(config(checkpoint(tmp_path, MANY), class_map=self.file(tmp_path, content)))
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(TeacherError, match=r"class map can't be read: .*No such file"):
            build(config(checkpoint(tmp_path, MANY), class_map=str(tmp_path / "none.txt")))

    def test_another_number_of_classes_asked(self, tmp_path):
        with pytest.raises(TeacherError, match="class map has another number of classes; found 4; allowed: 5"):
            build(config(checkpoint(tmp_path, MANY), class_map=self.file(tmp_path), num_classes=5))

    def test_without_weights(self, tmp_path):
        with pytest.raises(TeacherError, match="class_map is about trained weights"):
            build(ModelConfig(model="slak_nano", class_map=self.file(tmp_path)))

    def test_published_weights(self, tmp_path):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet")
        torch.save(model.state_dict(), tmp_path / "published.pth")
        overlay = {"file": str(tmp_path / "published.pth")}
        built = build(
            ModelConfig(
                model="test_resnet",
                pretrained=True,
                model_kwargs={"pretrained_cfg_overlay": overlay},
                class_map=self.file(tmp_path, "[7, 999, 0]"),
            ),
            num_classes=10,
        )
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            found, expected = built.module.eval()(x), model.eval()(x)
        assert built.num_classes == built.module.num_classes == 3
        torch.testing.assert_close(found, expected[:, [7, 999, 0]])

    def test_weights_without_a_classifier(self, tmp_path):
        state = {k: v for k, v in FAMILIES["replknet"].state().items() if not k.startswith("head.")}
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(TeacherError, match="a class map needs weights with a classifier"):
            build(config(str(tmp_path / "w.pth"), class_map=self.file(tmp_path)))


class TestMisfit:
    def message(self, weights: str, model: str, **kwargs: object) -> str:
        with pytest.raises(TeacherError) as caught:
            build(ModelConfig(model=model, weights=weights, **kwargs))
        text = str(caught.value)
        assert "\n" not in text
        assert "weights don't fit the model" in text
        return text

    def test_other_classes(self, tmp_path):
        family = FAMILIES["replknet"]
        text = self.message(checkpoint(tmp_path, MANY), family.model, model_kwargs=family.kwargs, num_classes=7)
        assert "2 of another shape (first: head.fc.bias (30,) instead of (7,))" in text
        assert "They are of 30 classes: pass that number, or a class map" in text

    def test_those_of_another_size_are_known(self, tmp_path):
        kernels = ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)
        torch.save({"model": layouts.unireplknet((48, 96, 192, 384), kernels, 11)}, tmp_path / "w.pth")
        text = self.message(str(tmp_path / "w.pth"), "unireplknet_a")
        assert "of another shape (first: " in text
        assert "(next: " in text
        assert "They are those of unireplknet_f with 11 classes" in text

    def test_those_of_another_family_are_known(self, tmp_path):
        model = timm.create_model("slak_nano", num_classes=5)
        torch.save(model.state_dict(), tmp_path / "w.pth")
        text = self.message(str(tmp_path / "w.pth"), "resnet10t")
        assert "missing (first: " in text
        assert "unexpected (first: " in text
        assert "They are those of slak_nano with 5 classes" in text

    def test_the_nearest_is_named(self, tmp_path):
        state = timm.create_model("slak_nano", num_classes=5).state_dict()
        del state["stages.0.blocks.0.gamma"]
        torch.save(state, tmp_path / "w.pth")
        text = self.message(str(tmp_path / "w.pth"), "slak_nano", num_classes=5)
        assert "1 missing (first: stages.0.blocks.0.gamma). They are most like slak_nano: 99% of" in text

    def test_nothing_known(self, tmp_path):
        torch.save({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / "w.pth")
        text = self.message(str(tmp_path / "w.pth"), "resnet10t")
        assert "2 unexpected (first: a) (next: b). Check the model's name" in text

    def test_the_model_stays_as_it_was(self, tmp_path):
        model = FAMILIES["replknet"].make(num_classes=MANY)
        before = weights_digest(model)
        with pytest.raises(TeacherError, match="weights don't fit"):
            load_weights(model, checkpoint(tmp_path))
        assert weights_digest(model) == before

    def test_a_users_own_model_with_published_names_loads_as_it_is(self, tmp_path):
        model = torch.nn.ModuleDict(
            {"stem": torch.nn.ModuleDict({"0": torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 4, 1)})})}
        )
        state = {"stem.0.conv.weight": torch.ones(4, 3, 1, 1), "stem.0.conv.bias": torch.ones(4)}
        torch.save(state, tmp_path / "w.pth")
        load_weights(model, tmp_path / "w.pth")
        assert torch.equal(model["stem"]["0"]["conv"].bias, torch.ones(4))
