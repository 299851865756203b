"""What files may name, and how large a network they may describe."""

import json
import pickle
import time
import tracemalloc
from types import SimpleNamespace
from typing import ClassVar

import pytest
import timm
import torch

from kdpipe.caching.worker import TeacherPlugin
from kdpipe.errors import KdpipeError, TeacherError
from kdpipe.models import ModelConfig
from kdpipe.models.bounded import outline
from kdpipe.models.build import build
from kdpipe.models.class_map import read_class_map
from kdpipe.teacher import TeacherConfig, load_tail, resolve_device
from tests.marking import Code, code, weights
from tests.teacher.networks import network as staged
from tests.teacher.networks import parts_of
from tests.tiny import SETTINGS, network

SMALL = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


@pytest.fixture
def marking(tmp_path, monkeypatch) -> Code:
    return code(tmp_path, monkeypatch)


def said(error: pytest.ExceptionInfo[KdpipeError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


class TestNames:
    def test_a_factory_is_not_imported(self, tmp_path, marking):
        file = weights(tmp_path / "w.safetensors", {"model": marking.name})
        with pytest.raises(TeacherError) as error:
            build(ModelConfig(weights=str(file)))
        assert f"{file}: the file names a model" in said(error)
        assert f"; found {marking.name}. " in said(error)
        assert f"pass --trust {marking.name}" in said(error)
        assert not marking.ran

    @pytest.mark.parametrize("word", ["marking", "marking.inner", "marking.inner:made"])
    def test_a_trusted_one_is(self, tmp_path, marking, word):
        file = weights(tmp_path / "w.safetensors", {"model": marking.name, "num_classes": 7}, network().state_dict())
        built = build(ModelConfig(weights=str(file), trust=(word,)))
        assert (built.name, marking.mark.read_text()) == (marking.name, "imported called ")

    @pytest.mark.parametrize("word", ["mark", "marking.inner:other", "marking.inner.made", "inner", "made", "", "."])
    def test_others_are_not_meant(self, tmp_path, marking, word):
        file = weights(tmp_path / "w.safetensors", {"model": marking.name})
        with pytest.raises(TeacherError, match="--trust"):
            build(ModelConfig(weights=str(file), trust=(word,)))
        assert not marking.ran

    def test_the_users_own_name_is_trusted(self, tmp_path, marking):
        header = {"model": marking.name, "num_classes": 7}
        file = weights(tmp_path / "w.safetensors", header, network().state_dict())
        build(ModelConfig(model=marking.name, weights=str(file)))
        assert marking.ran

    @pytest.mark.parametrize("name", ["hf-hub:some/body", "hf_hub:some/body", "local-dir:{}", "HF-HUB:some/body"])
    def test_hubs_and_folders_are_not_looked_into(self, tmp_path, name, monkeypatch):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))
        monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it was built"))
        name = name.format(tmp_path)
        file = weights(tmp_path / "w.safetensors", {"model": name})
        with pytest.raises(TeacherError) as error:
            build(ModelConfig(weights=str(file)))
        assert f"pass --trust {name}" in said(error)

    def test_a_trusted_folder_is_built(self, tmp_path):
        said = {"architecture": "resnet10t", "num_classes": 3, "model_args": {"channels": [8, 8, 8, 8]}}
        (tmp_path / "config.json").write_text(json.dumps(said | {"pretrained_cfg": {}}))
        name = f"local-dir:{tmp_path}"
        state = timm.create_model("resnet10t", num_classes=3, channels=(8, 8, 8, 8)).state_dict()
        file = weights(tmp_path / "w.safetensors", {"model": name}, state)
        assert build(ModelConfig(weights=str(file), trust=(name,))).num_classes == 3

    def test_a_simkd_students_base_is_named_by_the_file_too(self, tmp_path, marking):
        name = "kdpipe:simkd_student"
        inner = {"model": name, "model_kwargs": {"model": marking.name}, "teacher_width": 8}
        for kwargs in ({"model": marking.name, "teacher_width": 8}, inner):
            file = weights(tmp_path / "w.safetensors", {"model": name, "model_kwargs": kwargs, "num_classes": 3})
            with pytest.raises(TeacherError, match="--trust"):
                build(ModelConfig(weights=str(file)))
        assert not marking.ran

    def test_nothing_of_ours_is_found_by_a_path(self, tmp_path):
        for name in (
            "kdpipe:other",
            "kdpipe.models.wrappers.simkd:simkd_student",
            "kdpipe:simkd_student:x",
            "os:system",
        ):
            file = weights(tmp_path / "w.safetensors", {"model": name, "model_kwargs": {"name": "resnet18"}})
            with pytest.raises(TeacherError, match="--trust"):
                build(ModelConfig(weights=str(file)))


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("pretrained", True),
            ("checkpoint_path", "/etc/passwd"),
            ("pretrained_cfg", {"url": "http://localhost:1/x"}),
            ("pretrained_cfg_overlay", {"file": "/etc/passwd"}),
            ("cache_dir", "/tmp"),
            ("scriptable", True),
            ("features_only", True),
            ("device", "meta"),
        ],
    )
    def test_those_that_are_no_architecture(self, tmp_path, monkeypatch, name, value):
        made = timm.create_model("convnext_atto", num_classes=3, **SMALL)
        monkeypatch.setattr(timm, "create_model", lambda *_, **kwargs: pytest.fail(f"built with {kwargs}"))
        header = {"model": "convnext_atto", "model_kwargs": {**SMALL, name: value}, "num_classes": 3}
        file = weights(tmp_path / "w.safetensors", header, made.state_dict())
        with pytest.raises(TeacherError) as error:
            build(ModelConfig(weights=str(file)))
        assert f"{file}: the file gives the model convnext_atto an argument" in said(error)
        assert f"pass --trust {name}" in said(error)

    @pytest.mark.parametrize("accepted", [{"trust": ("scriptable",)}, {"model_kwargs": {"scriptable": True}}])
    def test_the_user_may_accept_one_or_write_it(self, tmp_path, accepted):
        made = timm.create_model("convnext_atto", num_classes=3, **SMALL)
        header = {"model": "convnext_atto", "model_kwargs": SMALL | {"scriptable": True}, "num_classes": 3}
        file = weights(tmp_path / "w.safetensors", header, made.state_dict())
        assert build(ModelConfig(weights=str(file), **accepted)).kwargs["scriptable"] is True

    def test_of_a_simkd_students_base(self, tmp_path):
        base = {"model": "resnet10t", "model_kwargs": {"checkpoint_path": "/etc/passwd"}, "teacher_width": 8}
        file = weights(tmp_path / "w.safetensors", {"model": "kdpipe:simkd_student", "model_kwargs": base})
        with pytest.raises(TeacherError, match="--trust checkpoint_path"):
            build(ModelConfig(weights=str(file)))


class TestSizes:
    @pytest.mark.parametrize(
        "header",
        [
            ["model"],
            "model",
            {"model": 3},
            {"model": "resnet18", "model_kwargs": [1]},
            {"model": "resnet18\u001b[2J"},
            {"model": "r" * 5000},
            {"model": "resnet18", "num_classes": 2**31},
            {"model": "resnet18", "num_classes": "3"},
            {"model": "resnet18", "num_classes": True},
            {"model": "resnet18", "num_classes": 3.0},
            {"model": "resnet18", "input_size": 10**6},
            {"model": "resnet18", "mean": [0.5]},
            {"model": "resnet18", "std": "abc"},
            {"model": "resnet18", "logit_scale": [1]},
            {"model": "resnet18", "views": []},
            {"model": "resnet18", "model_kwargs": {"layers": list(range(2000))}},
        ],
    )
    def test_headers_that_are_none(self, tmp_path, header):
        file = weights(tmp_path / "w.safetensors", header)
        with pytest.raises(TeacherError) as error:
            build(ModelConfig(weights=str(file)))
        assert said(error).startswith(f"{file}: ")

    @pytest.mark.parametrize(
        ("model", "kwargs", "message"),
        [
            ("vit_base_patch16_224", {"embed_dim": 12288}, "weights don't fit"),
            ("vit_base_patch16_224", {"embed_dim": 2**20}, "impossible size; found arguments that add up to 1.05e+06"),
            ("vit_base_patch16_224", {"depth": 2**14, "embed_dim": 12}, "impossible size is described"),
            ("convnext_atto", {"depths": [2**14] * 900}, "impossible size; found arguments"),
            ("convnext_atto", {"depths": [2**13] * 7}, "impossible size is described"),
            ("convnext_atto", {"dims": [10**4000] * 4}, "impossible size; found arguments that add up to 4e+18"),
            ("resnet18", {}, "weights don't fit"),
        ],
    )
    def test_a_small_file_takes_little_memory(self, tmp_path, monkeypatch, model, kwargs, message):
        """Of a network of gigabytes, or one that takes for ever, only the outline is drawn."""
        file = weights(tmp_path / "w.safetensors", {"model": model, "model_kwargs": kwargs, "num_classes": 2**20})
        made, create = [], timm.create_model

        def creating(*words, **settings):
            made.append(create(*words, **settings))
            return made[-1]

        monkeypatch.setattr(timm, "create_model", creating)
        tracemalloc.start()
        began = time.monotonic()
        try:
            with pytest.raises(TeacherError) as error:
                build(ModelConfig(weights=str(file)))
            assert time.monotonic() - began < 30
            assert tracemalloc.get_traced_memory()[1] < 2**29
        finally:
            tracemalloc.stop()
        assert message in said(error)
        assert all(parameter.is_meta for one in made for parameter in one.parameters())

    def test_a_class_count_that_nobody_wrote_is_bounded(self):
        with pytest.raises(TeacherError, match="impossible number of classes; found 2147483648"):
            build(ModelConfig(model="resnet10t"), num_classes=2**31)

    def test_weights_are_loaded_as_before(self, tmp_path):
        made = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, depths=(1, 1, 1, 1), embed_dim=24)
        header = {"model": "swin_tiny_patch4_window7_224", "num_classes": 3}
        header["model_kwargs"] = {"depths": [1, 1, 1, 1], "embed_dim": 24}
        file = weights(tmp_path / "w.safetensors", header, made.state_dict())
        built = build(ModelConfig(weights=str(file)))
        assert all(torch.equal(t, built.module.state_dict()[name]) for name, t in made.state_dict().items())
        assert not any(t.is_meta for t in built.module.buffers())

    def test_an_outline_draws_nothing(self):
        torch.manual_seed(1)
        first = torch.rand(1)
        torch.manual_seed(1)
        assert next(outline(lambda: timm.create_model("vit_tiny_patch16_224"), "here").parameters()).is_meta
        assert torch.equal(torch.rand(1), first)


class TestTails:
    def test_a_name(self, marking):
        tensors, about = parts_of(staged("slak"))
        with pytest.raises(TeacherError) as error:
            load_tail(tensors, about | {"model": marking.name, "model_kwargs": {}}, "c part tail")
        assert f"pass --trust {marking.name}" in said(error)
        assert not marking.ran

    @pytest.mark.parametrize(
        "changes",
        [
            {"model_kwargs": {"checkpoint_path": "/etc/passwd"}},
            {"num_classes": 2**31},
            {"input_size": "32"},
            {"stage": None},
            {"stage": 3},
            {"norm": ["norm"]},
            {"channels_last": 1},
            {"model": None},
            {"model_kwargs": {"depths": [2**14, 1, 1, 1]}},
            {"model_kwargs": {"dims": [12288] * 4}},
        ],
    )
    def test_a_record_of_another_shape(self, changes):
        tensors, about = parts_of(staged("slak"))
        with pytest.raises(KdpipeError) as error:
            load_tail(tensors, about | changes, "c part tail")
        assert said(error).startswith("c part tail: ")

    def test_probes_of_another_shape(self):
        tensors, about = parts_of(staged("slak"))
        unlike, unfit = "probe_inputs has another shape than a part's", "the tail can't be run on its probes"
        for probes, what in ((torch.zeros(3), unlike), (torch.zeros(2, 3, 4, 5), unfit)):
            with pytest.raises(KdpipeError, match=f"c part tail: {what}"):
                load_tail(tensors | {"probe_inputs": probes}, about, "c part tail")


class TestTeachers:
    CONTENT: ClassVar = {**SETTINGS, "mean": [0.5] * 3, "std": [0.5] * 3}

    def test_as_files_describe_them(self, marking):
        members = {name: SETTINGS[name] for name in ("num_classes", "input_size")}
        members["members"] = [{"model": "resnet18"}, {"model": marking.name}]
        for content in (self.CONTENT | {"model": marking.name}, members):
            with pytest.raises(TeacherError, match=f"c/provenance.json: .* pass --trust {marking.name}"):
                TeacherConfig.from_file(content, "c/provenance.json", ())
            trusting = TeacherConfig.from_file(content, "c/provenance.json", ("marking",))
            assert {model.trust for model in trusting.models()} == {("marking",)}
        assert not marking.ran

    def test_a_file_trusts_nobody(self, marking):
        for content in (
            {"model": marking.name, "trust": ["marking"]},
            {"members": [{"model": marking.name, "trust": ["marking"]}]},
        ):
            with pytest.raises(TeacherError, match="--trust"):
                TeacherConfig.from_file(content, "c/provenance.json", ())

    def test_what_is_trusted_is_not_recorded(self):
        config = TeacherConfig(trust=("a",), members=[ModelConfig(model="resnet18", trust=("b",))])
        assert "trust" not in json.dumps(config.recorded())

    @pytest.mark.parametrize("content", [None, [], {"batch_size": 2**31}, {"members": 3}, {"form": "x"}, {"a": 1}])
    def test_other_documents(self, content):
        with pytest.raises(TeacherError) as error:
            TeacherConfig.from_file(content, "c/provenance.json", ())
        assert said(error).startswith("c/provenance.json: no teacher is described there")

    @pytest.mark.parametrize(("trust", "accepted"), [((), False), (("marking",), True), (("other",), False)])
    def test_a_worker_has_the_clients_word_and_no_other(self, tmp_path, marking, trust, accepted):
        header = {"model": marking.name, "num_classes": 7, "input_size": 16}
        file = weights(tmp_path / "w.safetensors", header, network().state_dict())
        config = TeacherConfig(weights=str(file), trust=trust, batch_size=2, device="cpu", threads=1)
        plugin = pickle.loads(pickle.dumps(TeacherPlugin(config, None, [])))
        plugin.setup(SimpleNamespace(name="w"))
        if accepted:
            assert plugin.described().identity["model"] == marking.name
            assert "trust" not in plugin.described().config
        else:
            with pytest.raises(TeacherError, match="--trust"):
                plugin.described()
        assert marking.ran == accepted

    def test_a_device_without_values(self):
        with pytest.raises(TeacherError, match="device can't be used; found meta"):
            resolve_device("meta")


class TestClassMaps:
    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            "9" * 5000,
            f"[{'9' * 5000}]",
            "1\n" * 2**20 + "1\n",
            "1" * 2**24,
            '[{"a": 1}]',
            "[true]",
            "[NaN]",
            "[1e400]",
        ],
        ids=range(9),
    )
    def test_texts_that_are_none(self, tmp_path, text):
        (tmp_path / "m").write_text(text)
        began = time.monotonic()
        with pytest.raises(TeacherError) as error:
            read_class_map(tmp_path / "m")
        assert time.monotonic() - began < 5
        assert said(error).startswith(f"{tmp_path / 'm'}: class map")
