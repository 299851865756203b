"""The student whose gradient is looked at: small, and trained for a while by what the teacher says exactly."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.fidelity.scene import Scene, Shown
from benchmarks.fidelity.uses import Use
from kdpipe.losses import Context, LossConfig
from kdpipe.models import ModelConfig, ModelSpec
from kdpipe.targets import Targets
from kdpipe.trainer import DistillationModule, Step, TrainConfig, build_student
from kdpipe.views import Normalize

# A ResNet, because NORM asks for a plain mean before the classifier; its final map is 2 x 2 of 32 pixels.
MODEL = {"channels": [16, 32, 48, 64], "stem_width": 16, "output_stride": 16}
NAME = "resnet10t"
# Deviation of the classifier's first weights, steps for what adapts, learning rate.
_SPREAD, _SETTLING, _RATE = 0.1, 20, 3e-3


class Trained:
    """A student's weights after some steps of KD.

    Args:
        scene: who teaches.
        steps: of KD at temperature 1 against the exact logits.
        batch: rows of a step.
    """

    def __init__(self, scene: Scene, steps: int, batch: int) -> None:
        self._scene, self._state = scene, {}
        self._settling: deque[Shown] = deque(maxlen=_SETTLING)
        built = self.fresh()
        if scene.info.head is not None:
            _begin_with(built.module, scene.info.head)
        distillation = DistillationModule(built, LossConfig.model_validate({"name": "kd", "kd": {"alpha": 1.0}}))
        for shown in _trained(distillation, scene.batches(steps, batch, epoch=0), steps, lr=_RATE):
            self._settling.append(shown)
        self._state = {name: x.clone() for name, x in built.module.state_dict().items()}

    def fresh(self) -> ModelSpec:
        """The student with those weights, its own copy."""
        fed = self._scene.teacher.built
        config = ModelConfig(
            model=NAME,
            model_kwargs=MODEL,
            num_classes=self._scene.info.num_classes,
            input_size=fed.input_size,
            mean=fed.mean or None,
            std=fed.std or None,
        )
        built = build_student(config, _training(1e-3))
        if self._state:
            built.module.load_state_dict(self._state)
        return built

    def distillation(self, config: LossConfig) -> DistillationModule:
        """It with a loss; what adapts between student and teacher has had a few steps to settle."""
        torch.manual_seed(0)
        distillation = DistillationModule(self.fresh(), config, [self._scene.info])
        if distillation.adapts or any(loss.Config.wraps_student for loss in config.losses):
            for _ in _trained(distillation, self._settling, len(self._settling), lr=1e-3):
                pass
        return distillation

    @torch.no_grad()
    def agreement(self, batches: Sequence[Shown]) -> dict[str, float]:
        """How often its first class is the teacher's, and the label."""
        built = self.fresh()
        model, normalize = built.module.eval(), Normalize(built.mean, built.std)
        same = right = teacher = rows = 0
        for shown in batches:
            first = model(normalize(shown.batch.images, shown.batch.erased)).argmax(dim=1)
            said, labels = shown.output.logits.argmax(dim=1), shown.batch.labels
            same, right = same + int((first == said).sum()), right + int((first == labels).sum())
            teacher, rows = teacher + int((said == labels).sum()), rows + len(first)
        return {"agreement": same / rows, "top1": right / rows, "teacher_top1": teacher / rows}


class Probe:
    """The gradient of what a loss learns from the teacher.

    Args:
        distillation: student and loss; its weights stay as they are.
        use: which.
    """

    def __init__(self, distillation: DistillationModule, use: Use) -> None:
        self._learner, self._needs = distillation.train(), use.requirements
        self._normalize = Normalize(distillation.built.mean, distillation.built.std, channels_last=True)

    def gradient(self, shown: Shown, targets: Targets) -> dict[str, torch.Tensor]:
        """Over the student's parameters, float64 (n,), and over those of what adapts it, by `student`, `adapters`."""
        batch, distillation = shown.batch, self._learner
        distillation.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # of masks
        context = Context(len(batch), batch.global_labelled)
        parts = distillation(
            self._normalize(batch.images, batch.erased), len(batch), batch.ground_truth, targets, context
        )
        # The same term with the other sign: its gradient is 0 exactly, not nearly.
        loss = parts["loss"] - (parts["ce"] if self._needs.labels and "ce" in parts else 0)
        loss.backward()
        found: dict[str, list[torch.Tensor]] = {"student": [], "adapters": []}
        for name, parameter in distillation.named_parameters():
            if parameter.requires_grad:
                whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found["student" if name.startswith("model.") else "adapters"].append(whole.double().flatten())
        return {name: torch.cat(each) for name, each in found.items() if each}


def _trained(distillation: DistillationModule, shown: Iterable[Shown], steps: int, lr: float) -> Iterator[Shown]:
    """Train on each, and pass it on."""
    now: list[Shown] = []
    step = Step(distillation, _training(lr), updates=steps, targets_of=lambda _: now[0].exact)
    for number, one in enumerate(shown):
        now[:] = [one]
        step(one.batch, number)
        yield one


def _training(lr: float) -> TrainConfig:
    return TrainConfig(epochs=1, lr=lr, warmup_epochs=0.1, device="cpu")


def _begin_with(module: Any, head: nn.Linear) -> None:
    """Let classes that are alike to the teacher be so to the student from the beginning.

    Else it takes thousands of steps, with many classes, until it says anything.
    """
    own = module.get_classifier()
    rows = head.weight.float() - head.weight.float().mean(dim=0)
    generator = torch.Generator().manual_seed(0)
    rows = rows @ torch.randn(rows.shape[1], own.weight.shape[1], generator=generator)
    with torch.no_grad():
        own.weight.copy_(rows / rows.std() * _SPREAD)
