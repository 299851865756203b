"""Losses against timm's own task, hand computation, and their promises about parts of a batch."""

import itertools
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.task import LogitDistillationTask
from torch import nn
from torch.nn import functional as F

from kdpipe.errors import TargetsError
from kdpipe.losses import Context, LossConfig, StudentOutput, build_loss
from kdpipe.targets import Encoding, Labels, Targets
from kdpipe.teacher import TeacherOutput
from tests.trainer.tiny import configured

N, C = 12, 7


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of student and teacher (N, C), labels (N,)."""
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(N, C, generator=generator) * 3
    teacher = torch.randn(N, C, generator=generator) * 4
    return student, teacher, torch.randint(0, C, (N,), generator=generator)


def dense(teacher: torch.Tensor) -> Targets:
    return Targets(torch.log_softmax(teacher, dim=1), dense=True)


def run(config: dict, student, labels, targets, rows=N, labelled=None, world=1):
    loss = build_loss(configured(**config))
    count = int((labels >= 0).sum()) if labelled is None else labelled
    return loss(StudentOutput(student), Labels(labels), targets, Context(rows, count, world))


class Says(nn.Module):
    """A model whose logits are given."""

    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.num_classes, self.in_chans = logits.shape[1], 3
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize(
    ("alpha", "weights", "scale"),
    [
        (0.3, {"task_loss_weight": 0.7}, 1),  # complementary
        (0.9, {"task_loss_weight": 0.1, "distill_loss_weight": 0.9}, 1),  # independent
        (0.5, {}, 2),  # timm's default: both 1
    ],
)
def test_kd_is_timms_loss_and_gradient(logits, temperature, alpha, weights, scale):
    student, teacher, labels = logits
    model = Says(student)
    task = LogitDistillationTask(
        model, Says(teacher), criterion=nn.CrossEntropyLoss(), temperature=temperature, verbose=False, **weights
    )
    expected = task(torch.zeros(N, 3, 4, 4), labels)
    expected["loss"].backward()
    ours = student.clone().requires_grad_()
    found = run({"name": "kd", "temperature": temperature, "alpha": alpha}, ours, labels, dense(teacher))
    (found["loss"] * scale).backward()
    torch.testing.assert_close(found["loss"] * scale, expected["loss"].detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["kd"], expected["kd_loss"].detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["ce"], expected["task_loss"].detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, model.logits.grad, rtol=1e-5, atol=1e-7)


def test_soft_ce_is_cross_entropy_against_the_teacher(logits):
    student, teacher, labels = logits
    found = run({"name": "soft-ce"}, student, torch.full_like(labels, -1), dense(teacher))
    torch.testing.assert_close(found["loss"], F.cross_entropy(student, teacher.softmax(dim=1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_none_is_cross_entropy_over_labelled_rows(logits, smoothing):
    student, _, labels = logits
    labels[::3] = -1
    found = run({"name": "none", "label_smoothing": smoothing}, student, labels, None)
    known = labels >= 0
    expected = F.cross_entropy(student[known], labels[known], label_smoothing=smoothing)
    torch.testing.assert_close(found["loss"], expected)
    assert torch.equal(found["loss"], found["ce"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_timms_mixup_target(logits, smoothing):
    student, _, labels = logits
    lam = torch.rand(N // 2, generator=torch.Generator().manual_seed(1))
    lam = torch.cat([lam, lam.flip(0)])
    target = mixup_target(labels, C, lam[:, None], smoothing)
    pairs = torch.stack([labels, labels.flip(0)], dim=1)
    loss = build_loss(configured("none", label_smoothing=smoothing))
    ours = student.clone().requires_grad_()
    found = loss(StudentOutput(ours), Labels(target.argmax(dim=1), pairs, lam), None, Context(N, N))
    theirs = student.clone().requires_grad_()
    expected = SoftTargetCrossEntropy()(theirs, target)
    torch.testing.assert_close(found["loss"], expected)
    found["loss"].backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_mixed_view_with_an_unknown_label_adds_nothing(logits):
    student, _, labels = logits
    pairs = torch.stack([labels, labels.flip(0)], dim=1)
    lam = torch.full((N,), 0.7)
    loss = build_loss(LossConfig(name="none"))
    pairs[3, 1] = -1
    hard = pairs[:, 0].clone()
    hard[3] = -1
    rest = torch.arange(N) != 3
    found = loss(StudentOutput(student), Labels(hard, pairs, lam), None, Context(N, N - 1))
    expected = loss(
        StudentOutput(student[rest]), Labels(hard[rest], pairs[rest], lam[rest]), None, Context(N - 1, N - 1)
    )
    torch.testing.assert_close(found["loss"], expected["loss"])


def test_batch_without_labels_has_no_cross_entropy_but_a_graph(logits):
    student, teacher, labels = logits
    student.requires_grad_()
    for config, targets in [({"name": "none"}, None), ({"name": "kd", "alpha": 0.4}, dense(teacher))]:
        found = run(config, student, torch.full_like(labels, -1), targets)
        assert found["ce"].item() == 0
        found["loss"].backward()
        assert torch.isfinite(student.grad).all()
    torch.testing.assert_close(found["loss"], 0.4 * found["kd"])


@pytest.mark.parametrize("config", [{"name": "none"}, {"name": "kd", "temperature": 2.0}, {"name": "soft-ce"}])
@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 1, 5, 12], [0, 0, 12]])
def test_loss_does_not_depend_on_how_rows_are_dealt_to_ranks(logits, config, cuts):
    student, teacher, labels = logits
    labels[2:5] = -1
    whole = run(config, student, labels, dense(teacher))
    world = len(cuts) - 1
    parts = [
        run(config, student[a:b], labels[a:b], dense(teacher[a:b]), N, int((labels >= 0).sum()), world)
        for a, b in itertools.pairwise(cuts)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(p[name] for p in parts) / world, value, rtol=1e-6, atol=1e-7)


def test_float32_inside_autocast(logits):
    student, teacher, labels = logits
    expected = run({"name": "kd"}, student.bfloat16().float(), labels, dense(teacher))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run({"name": "kd"}, student.bfloat16(), labels, dense(teacher))
    assert all(v.dtype == torch.float32 for v in found.values())
    assert torch.equal(found["loss"], expected["loss"])


def test_topk_targets_serve_temperature_one_only(logits):
    student, teacher, labels = logits
    encoding = Encoding("topk", 3, "float32", C)
    arrays = encoding.encode(TeacherOutput(teacher), labels)
    targets = encoding.decode({n: torch.from_numpy(a) for n, a in arrays.items()})
    near = run({"name": "kd"}, student, labels, targets)["kd"]
    assert near == pytest.approx(run({"name": "kd"}, student, labels, dense(teacher))["kd"].item(), rel=0.05)
    with pytest.raises(TargetsError, match=r"kd: this loss needs every class.*--targets dense"):
        run({"name": "kd", "temperature": 2.0}, student, labels, targets)


def test_needs():
    needs = {name: LossConfig(name=name).requirements for name in ("none", "kd", "soft-ce")}
    assert {n: (x.labels, x.targets, x.dense) for n, x in needs.items()} == {
        "none": (True, False, False),
        "kd": (True, True, False),
        "soft-ce": (False, True, False),
    }
    assert configured("kd", temperature=4.0).requirements.dense
    assert not configured("kd", alpha=1.0).requirements.labels


@pytest.mark.parametrize("name", ["kd", "soft-ce"])
def test_missing_targets_are_an_error(logits, name):
    student, _, labels = logits
    with pytest.raises(TargetsError, match=rf"{name}: .*Pass --cache"):
        run({"name": name}, student, labels, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "kdd"}, "unknown loss kdd; allowed: none, kd, soft-ce"),
        ({"name": "kd+kd"}, "a loss is there twice"),
        ({"name": "soft-ce", "soft_ce": {"temperature": 4.0}}, "Extra inputs are not permitted"),
        ({"kd": {"temperature": 0}}, "greater than 0"),
        ({"kd": {"alpha": 1.5}}, "less than or equal to 1"),
        ({"temprature": 2}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        LossConfig(**config)
