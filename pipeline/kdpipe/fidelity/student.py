"""The small student whose gradients are compared, trained for some steps with the teacher's exact outputs."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from kdpipe.fidelity.loss_cases import LossCase
from kdpipe.fidelity.setup import Setup, TeacherBatch
from kdpipe.losses import Context, LossConfig
from kdpipe.models import ModelConfig, ModelSpec
from kdpipe.targets import Targets
from kdpipe.trainer import DistillationModule, Step, TrainConfig, build_student
from kdpipe.views import Normalize

# A ResNet, because NORM requires a plain mean before the classifier; its final map is 2 x 2 of 32 pixels.
MODEL = {"channels": [16, 32, 48, 64], "stem_width": 16, "output_stride": 16}
NAME = "resnet10t"
# Deviation of the classifier's first weights, steps for adapters, learning rate.
_DEVIATION, _ADAPTER_STEPS, _RATE = 0.1, 20, 3e-3


class Student:
    """A student after some steps of KD.

    Args:
        setup: samples and teacher.
        steps: of KD at temperature 1 from the exact logits.
        batch: rows of a step.
    """

    def __init__(self, setup: Setup, steps: int, batch: int) -> None:
        self._setup, self._state = setup, {}
        self._last: deque[TeacherBatch] = deque(maxlen=_ADAPTER_STEPS)
        built = self.fresh()
        if setup.info.head is not None:
            _initialise_classifier(built.module, setup.info.head)
        distillation = DistillationModule(built, LossConfig.model_validate({"name": "kd", "kd": {"alpha": 1.0}}))
        self._last.extend(_trained(distillation, setup.batches(steps, batch, epoch=0), steps, lr=_RATE))
        self._state = {name: x.clone() for name, x in built.module.state_dict().items()}

    def fresh(self) -> ModelSpec:
        """A copy of the student with those weights."""
        teacher = self._setup.teacher.built
        config = ModelConfig(
            model=NAME,
            model_kwargs=MODEL,
            num_classes=self._setup.info.num_classes,
            input_size=teacher.input_size,
            mean=teacher.mean or None,
            std=teacher.std or None,
        )
        built = build_student(config, _training(1e-3))
        if self._state:
            built.module.load_state_dict(self._state)
        return built

    def distillation(self, config: LossConfig) -> DistillationModule:
        """A copy with a loss; the loss's adapters have been trained for a few steps."""
        torch.manual_seed(0)
        distillation = DistillationModule(self.fresh(), config, [self._setup.info])
        if distillation.adapts or any(loss.Config.wraps_student for loss in config.losses):
            for _ in _trained(distillation, self._last, len(self._last), lr=1e-3):
                pass
        return distillation

    @torch.no_grad()
    def accuracy(self, batches: Sequence[TeacherBatch]) -> dict[str, float]:
        """Share of views on which its first class is the teacher's, and the label; and the teacher's is the label."""
        built = self.fresh()
        model, normalize = built.module.eval(), Normalize(built.mean, built.std)
        student = torch.cat([model(normalize(b.batch.images, b.batch.erased)).argmax(dim=1) for b in batches])
        teacher = torch.cat([b.output.logits.argmax(dim=1) for b in batches])
        labels = torch.cat([b.batch.labels for b in batches])
        pairs = {"agreement": (student, teacher), "top1": (student, labels), "teacher_top1": (teacher, labels)}
        return {name: float((a == b).double().mean()) for name, (a, b) in pairs.items()}


class GradientProbe:
    """The gradient of a loss's term of the teacher.

    Args:
        distillation: student and loss; its weights stay as they are.
        case: the loss.
    """

    def __init__(self, distillation: DistillationModule, case: LossCase) -> None:
        self._distillation, self._requirements = distillation.train(), case.requirements
        self._normalize = Normalize(distillation.built.mean, distillation.built.std, channels_last=True)

    def gradient(self, shown: TeacherBatch, targets: Targets) -> dict[str, torch.Tensor]:
        """Over the parameters of the `student`, float64 (n,), and over those of the loss's `adapters`."""
        batch, distillation = shown.batch, self._distillation
        distillation.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # of masks
        context = Context(len(batch), batch.global_labelled)
        parts = distillation(
            self._normalize(batch.images, batch.erased), len(batch), batch.ground_truth, targets, context
        )
        # The same term with the other sign: its gradient is 0 exactly, not nearly.
        loss = parts["loss"] - (parts["ce"] if self._requirements.labels and "ce" in parts else 0)
        loss.backward()
        found: dict[str, list[torch.Tensor]] = {"student": [], "adapters": []}
        for name, parameter in distillation.named_parameters():
            if parameter.requires_grad:
                whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found["student" if name.startswith("model.") else "adapters"].append(whole.double().flatten())
        return {name: torch.cat(each) for name, each in found.items() if each}


def _trained(
    distillation: DistillationModule, batches: Iterable[TeacherBatch], steps: int, lr: float
) -> Iterator[TeacherBatch]:
    """Train on each batch, then yield it."""
    current: list[TeacherBatch] = []
    step = Step(distillation, _training(lr), updates=steps, targets_of=lambda _: current[0].exact)
    for number, batch in enumerate(batches):
        current[:] = [batch]
        step(batch.batch, number)
        yield batch


def _training(lr: float) -> TrainConfig:
    return TrainConfig(epochs=1, lr=lr, warmup_epochs=0.1, device="cpu")


def _initialise_classifier(module: Any, head: nn.Linear) -> None:
    """Make classes that are alike to the teacher alike to the student: a random projection of the teacher's rows.

    From random rows it takes thousands of steps, with many classes, until the student learns anything.
    """
    own = module.get_classifier()
    rows = head.weight.float() - head.weight.float().mean(dim=0)
    generator = torch.Generator().manual_seed(0)
    rows = rows @ torch.randn(rows.shape[1], own.weight.shape[1], generator=generator)
    with torch.no_grad():
        own.weight.copy_(rows / rows.std() * _DEVIATION)
