"""SimKD's student: features, projector and the teacher's classifier, kept and built again."""

import copy
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kdpipe.errors import TrainingError
from kdpipe.models import ModelConfig, ModelSpec, build
from kdpipe.models.weights import METADATA_KEY
from kdpipe.models.wrappers.simkd import PROJECTED, SimkdStudent, kept, simkd_student
from tests.models.small import difference, images, shuffled

CLASSES, TEACHER = 7, 10
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)}
BASES = {
    "resnet18": (RESNET, 64),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}, 64),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 12, "depths": (1, 1, 1, 1), "img_size": 64, "window_size": 2, "num_heads": (1, 1, 2, 2)},
        64,
    ),
    "vit_tiny_patch16_224": ({"depth": 1, "embed_dim": 12, "img_size": 32}, 32),
    "mobilenetv3_small_050": ({}, 64),
    "slak_tiny": ({"dims": (4, 4, 8, 8), "depths": (1, 1, 1, 1)}, 64),
}


def base(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES, **BASES[name][0])


def head() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(TEACHER, CLASSES)


@pytest.mark.parametrize("name", list(BASES))
def test_any_network_with_a_map_can_be_dressed_and_nothing_idle_is_left(name):
    student = SimkdStudent(base(name), head())
    caught: list[torch.Tensor] = []
    student.get_submodule(PROJECTED).register_forward_hook(lambda *a: caught.append(a[2]))
    logits = student(images(3, BASES[name][1]))
    assert logits.shape == (3, CLASSES)
    assert caught[0].shape[:2] == (3, TEACHER)
    pooled = caught[0].mean(dim=(2, 3))
    torch.testing.assert_close(student.head(pooled), logits)
    logits.sum().backward()
    idle = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert not any(p.requires_grad for p in student.head.parameters())


def test_the_base_itself_stays_as_it_was():
    plain, x = base().eval(), images()
    features = plain.forward_features(x)
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    student = SimkdStudent(plain, head())
    assert not student.base.training  # as it came
    assert torch.equal(student.base.forward_features(x), features)
    for key, value in student.base.state_dict().items():
        assert torch.equal(value, state[key])
    assert "fc.weight" not in student.base.state_dict()


@pytest.mark.parametrize("relu", [False, True])
def test_the_projector_by_hand(relu):
    student = shuffled(SimkdStudent(base(), head(), factor=2, relu=relu)).double()
    x = images().double()
    with torch.no_grad():
        y = student.base.forward_features(x)
        for i, layer in enumerate((0, 3, 6)):
            conv, bn = student.transfer[layer], student.transfer[layer + 1]
            assert conv.bias is None
            assert conv.kernel_size == ((3, 3) if i == 1 else (1, 1))
            y = nn.functional.conv2d(y, conv.weight, padding=i % 2)
            y = (y - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + 1e-5).sqrt()
            y = y * bn.weight[:, None, None] + bn.bias[:, None, None]
            y = y.clamp(min=0) if i < 2 or relu else y
        logits = y.mean(dim=(2, 3)) @ student.head.weight.T + student.head.bias
        assert difference(student(x), logits) < 1e-12
    assert student.transfer[0].out_channels == TEACHER // 2


def test_kept_weights_say_how_to_build_them(tmp_path):
    built = build(ModelConfig(model="resnet18", model_kwargs=RESNET, num_classes=CLASSES, input_size=64))
    student = shuffled(SimkdStudent(built.module, head(), factor=3, relu=True))
    whole = kept(ModelSpec(student, built.name, built.kwargs, CLASSES, 64, built.mean, built.std))
    path = str(tmp_path / "last.safetensors")
    save_file(student.state_dict(), path, {METADATA_KEY: json.dumps(whole.metadata())})
    again = build(ModelConfig(weights=path))
    assert (again.name, again.num_classes, again.input_size) == ("kdpipe:simkd_student", CLASSES, 64)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(images()), student(images()))
    assert again.module.get_classifier() is again.module.head
    assert again.module.settings == {"factor": 3, "relu": True}


def test_built_from_scratch_it_has_the_names_of_a_dressed_one():
    made = simkd_student("convnext_atto", TEACHER, CLASSES, BASES["convnext_atto"][0])
    assert list(made.state_dict()) == list(SimkdStudent(base("convnext_atto"), head()).state_dict())
    with torch.no_grad():
        assert copy.deepcopy(made.eval())(images()).shape == (2, CLASSES)


def test_another_number_of_classes_is_refused():
    with pytest.raises(TrainingError, match=r"different numbers of classes.*found 7; allowed: 3"):
        SimkdStudent(base(), nn.Linear(TEACHER, 3))


def test_a_network_without_features_is_refused():
    with pytest.raises(TrainingError, match="forward_features"):
        SimkdStudent(nn.Linear(3, 4), nn.Linear(TEACHER, 4))
