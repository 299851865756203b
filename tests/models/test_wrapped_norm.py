"""NORM's student: merged it is the plain one, with the same answer."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.errors import TrainingError
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.models.wrappers.logits import standardised
from kdpipe.models.wrappers.norm import EXPANDED, NormStudent
from tests.models.small import difference, images, shuffled

CLASSES, TEACHER = 7, 6
TINY = {"block_args": {}, "layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)}
PLAIN = {
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)},
    "regnetx_002": {},
    "mobilenetv2_035": {},
}


def original(name: str = "resnet18", **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES, **{**PLAIN.get(name, {}), **changes})


@pytest.mark.parametrize("name", list(PLAIN))
def test_merged_is_the_plain_student_with_the_same_answer(name):
    base = original(name)
    parameters, keys = sum(p.numel() for p in base.parameters()), list(base.state_dict())
    student = shuffled(NormStudent(base, TEACHER))
    merged = student.merged()
    x = images()
    with torch.no_grad():
        assert difference(merged(x), student(x)) < 1e-5
        assert (
            difference(
                F.linear(
                    student.forward_head(student.forward_features(x), pre_logits=True),
                    student.get_classifier().weight,
                    student.get_classifier().bias,
                ),
                student(x),
            )
            < 1e-5
        )
        exact = student.double()
        assert difference(exact.merged()(x.double()), exact(x.double())) < 1e-12
    assert sum(p.numel() for p in merged.parameters()) == parameters
    assert list(merged.state_dict()) == keys
    assert merged is not student.base


def test_the_module_has_its_part_in_the_answer_and_merging_leaves_the_student_as_it_is():
    student = shuffled(NormStudent(original(), TEACHER))
    x = images()
    with torch.no_grad():
        before = student(x)
        assert difference(student.base(x), before) > 0.1
        student.merged()
        assert torch.equal(student(x), before)


def test_the_definition_by_hand():
    student = shuffled(NormStudent(original(), TEACHER, expansion=3)).double()
    w1, bn1, w2, bn2 = (*student.ft.expand, *student.ft.contract)

    def normed(bn: nn.Module, x: torch.Tensor) -> torch.Tensor:
        g, b, m, v = (t[:, None, None] for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var))
        return g * (x - m) / (v + 1e-5).sqrt() + b

    caught: list[torch.Tensor] = []
    student.get_submodule(EXPANDED).register_forward_hook(lambda *a: caught.append(a[2]))
    x = images().double()
    with torch.no_grad():
        features = student.base.forward_features(x)
        e = normed(bn1, torch.einsum("ec,nchw->nehw", w1.weight[:, :, 0, 0], features))
        y = features + normed(bn2, torch.einsum("ce,nehw->nchw", w2.weight[:, :, 0, 0], e))
        logits = y.mean(dim=(2, 3)) @ student.base.fc.weight.T + student.base.fc.bias
        assert difference(student(x), logits) < 1e-12
    assert caught[0].shape == (2, 3 * TEACHER, 2, 2)
    assert difference(caught[0], e) < 1e-12
    assert w1.bias is None
    assert w2.bias is None


def test_all_of_it_is_trained_and_a_copy_is_whole():
    student = NormStudent(original(), TEACHER)
    student(images(4)).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert (student.num_classes, student.num_features) == (CLASSES, 16)
    assert student.get_classifier() is student.base.fc


@pytest.mark.parametrize(
    ("name", "kwargs", "found"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}, "more than a mean"),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1)}, "another kind of map"),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}, "another kind of map"),
        ("resnet18", {"global_pool": "max"}, "more than a mean"),
        ("resnetv2_50", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, "no linear classifier"),
        ("mobilenetv3_small_050", {}, "no linear classifier"),
    ],
)
def test_students_it_could_not_be_merged_into_are_refused(name, kwargs, found):
    with pytest.raises(TrainingError, match=f"merged into this student.*{found}.*resnet"):
        NormStudent(original(name, **kwargs), TEACHER)


def test_a_network_that_is_not_timms_is_refused():
    with pytest.raises(TrainingError, match="no linear classifier"):
        NormStudent(nn.Linear(3, 4), TEACHER)


def test_standardised_logits_keep_their_order_and_lose_their_size():
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0)) * 30 + 4
    found = standardised(logits, 2.5)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std(dim=1, correction=0), torch.full((5,), 2.5))
    assert torch.equal(found.argsort(dim=1), logits.argsort(dim=1))
    torch.testing.assert_close(standardised(logits.log_softmax(dim=1)), found)
    assert standardised(logits.bfloat16()).dtype == torch.float32
    assert standardised(logits.double()).dtype == torch.float64


def test_the_merged_weights_load_into_the_plain_model(tmp_path):
    built = build(ModelConfig(model="resnet18", model_kwargs=PLAIN["resnet18"], num_classes=CLASSES))
    student = shuffled(NormStudent(built.module, TEACHER))
    kept = replace(built, module=student.merged())
    path = tmp_path / "weights.pt"
    torch.save(kept.module.state_dict(), path)
    again = build(
        ModelConfig(model=kept.name, model_kwargs=kept.kwargs, num_classes=kept.num_classes, weights=str(path))
    ).module.eval()
    with torch.no_grad():
        assert difference(again(images()), student(images())) < 1e-5
