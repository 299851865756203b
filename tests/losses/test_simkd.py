"""SimKD against its equation in float64; a student whose feature is the teacher's gives the teacher's logits."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses.config import SimkdConfig
from kdpipe.losses.fitnets import squared_error
from kdpipe.losses.inputs import TeacherInfo
from kdpipe.losses.simkd import Simkd
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.models.hooks import StudentHooks
from kdpipe.models.wrappers.simkd import SimkdStudent
from kdpipe.targets import Targets
from tests.losses.features import WIDE, C, N, average_by, call, drawn, float64, in_two_parts, output

RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)}


def make(**config: object) -> Simkd:
    return Simkd(SimkdConfig(**config))


def head() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDE, C)


def features(side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return drawn(N, WIDE, 4, 4, seed=1), drawn(N, WIDE, side, side, seed=2, scale=2)


def test_equation_of_the_pooled_feature():
    student, teacher = (x.mean(dim=(2, 3)) for x in features())
    found = call(make(), output(pooled=student), Targets(pooled=teacher))
    s, t = float64(student, teacher)
    assert found["loss"].item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-6)
    assert found["simkd"] is found["loss"]
    for cut in (0, 2):
        parts = in_two_parts(make(), output(pooled=student), Targets(pooled=teacher), cut)
        torch.testing.assert_close(parts["loss"], found["loss"])


@pytest.mark.parametrize("side", [4, 8, 2])
def test_equation_of_the_map(side):
    student, teacher = features(side)
    told = Targets(pooled=teacher.mean(dim=(2, 3)), map=teacher)
    found = call(make(feature="map"), output(student), told)
    s, t = float64(student, teacher)
    least = min(4, side)
    s, t = average_by(s, 4 // least), average_by(t, side // least)
    assert found["loss"].item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-6)


def test_gradient():
    student, teacher = drawn(3, 4).double().requires_grad_(), drawn(3, 4, seed=1).double()
    assert gradcheck(lambda s: squared_error(s, teacher), (student,))


def test_bfloat16_is_near():
    student, teacher = drawn(64, 32, seed=1).bfloat16(), drawn(64, 32, seed=2)
    expected = call(make(), output(pooled=student.float(), rows=64), Targets(pooled=teacher))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(make(), output(pooled=student, rows=64), Targets(pooled=teacher))["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_map_whose_mean_the_classifier_does_not_see_is_refused():
    student, teacher = features()
    normed = nn.functional.layer_norm(teacher.mean(dim=(2, 3)), (WIDE,))
    with pytest.raises(TargetsError, match=r"doesn't see the mean.*loss\.simkd\.feature=pooled"):
        call(make(feature="map"), output(student), Targets(pooled=normed, map=teacher))


def test_a_relu_before_features_with_both_signs_is_refused():
    student, teacher = (x.mean(dim=(2, 3)) for x in features())
    with pytest.raises(TargetsError, match=r"negative.*loss\.simkd\.relu=false"):
        call(make(relu=True), output(pooled=student), Targets(pooled=teacher))
    call(make(relu=True), output(pooled=student), Targets(pooled=teacher.abs()))


def test_it_needs_neither_labels_nor_logits():
    assert SimkdConfig.trains_classifier
    needs = SimkdConfig().requirements
    assert (needs.labels, needs.logits, needs.map, needs.maps) == (False, False, False, 0)
    assert (needs.pooled, needs.head, needs.student_pooled) == (True, True, True)
    assert SimkdConfig(feature="map").requirements.maps == 1
    with pytest.raises(TargetsError, match="--pooled"):
        Simkd.wrap(SimkdConfig(), timm.create_model("resnet18", num_classes=C, **RESNET), TeacherInfo(C))


@pytest.mark.parametrize("feature", ["pooled", "map"])
def test_a_wrapped_student_learns_the_teachers_feature(feature):
    torch.manual_seed(0)
    built = build(ModelConfig(model="resnet18", model_kwargs=RESNET, num_classes=C))
    config = SimkdConfig(feature=feature)
    student = Simkd.wrap(config, built.module, TeacherInfo(C, pooled=WIDE, head=head()))
    assert isinstance(student, SimkdStudent)
    weights = [p.clone() for p in student.head.parameters()]
    hooks = StudentHooks(student, Simkd.layers(config), pooled=config.requirements.student_pooled)
    loss = Simkd(config)
    images, teacher = drawn(N, 3, 64, 64, seed=3), drawn(N, WIDE, 2, 2, seed=4)
    targets = Targets(pooled=teacher.mean(dim=(2, 3)), map=teacher)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        student(images)
        pooled, maps = hooks.take(images.device)
        value = call(loss, output(*maps, pooled=pooled), targets)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / (2 if feature == "map" else 4)
    told, said = (x.detach() - x.detach().mean() for x in (head()(targets.pooled), student(images)))
    assert (told - said).square().mean() < told.square().mean() / 2
    assert all(torch.equal(a, b) for a, b in zip(weights, student.head.parameters(), strict=True))
    kept = Simkd.unwrap(replace(built, module=student))
    assert kept.module is student
    assert kept.kwargs["model"] == "resnet18"
