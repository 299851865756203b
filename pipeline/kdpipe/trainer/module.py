"""The student with its loss as one module: what is optimised, and what data-parallel training wraps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdpipe.errors import KdpipeError, TrainingError
from kdpipe.losses import Context, FeatureShapes, Loss, LossConfig, StudentOutput, TeacherInfo, build_loss
from kdpipe.models import ModelSpec, first_line
from kdpipe.models.hooks import StudentHooks, usual_maps
from kdpipe.targets import Labels


class DistillationModule(nn.Module):
    """Images and targets in, losses out.

    Args:
        built: the student as it is built; its module is wrapped here where the loss needs that.
        config: of the loss.
        teachers: of each cache whose targets the loss gets.

    Attributes:
        built: with the wrapped module.
        model: that module.
        loss: the loss, with its adapters.

    Raises:
        TrainingError: student, teacher and loss don't go together.
    """

    def __init__(self, built: ModelSpec, config: LossConfig, teachers: Sequence[TeacherInfo] = ()) -> None:
        super().__init__()
        first = teachers[0] if teachers else None
        self._losses = [(loss.load(), config.hyperparameters(loss.name)) for loss in config.losses]
        module, layers = built.module, config.student_layers
        for loss, its in self._losses:
            module = loss.wrap(its, module, first)
            layers = loss.layers(its) or layers
        scales = [getattr(its, "logit_scale", None) for _, its in self._losses]
        # A wrapped student uses features of the module, not the logits that its own weights were trained for.
        own = built.logit_scale if module is built.module else None
        scale = next((scale for scale in scales if scale is not None), own)
        self.built = replace(built, module=module, logit_scale=scale)
        self.model = module
        requirements = config.requirements
        names = layers or (usual_maps(built.module, requirements.maps) if requirements.maps else ())
        self._hooks = StudentHooks(module, names if requirements.maps else (), pooled=requirements.student_pooled)
        sizes = self._sizes() if requirements.maps or requirements.student_pooled else FeatureShapes(built.num_classes)
        self.loss: Loss = build_loss(config, sizes, teachers)

    def forward(
        self, x: torch.Tensor, rows: int, labels: Labels, targets: Any, context: Context
    ) -> dict[str, torch.Tensor]:
        """The loss and its parts, see `Loss.compute`.

        Args:
            x: float (m, 3, S, S), normalised; the first `rows` of them count, the others only fill up a batch.
            rows: n.
            labels, targets: of n rows.
            context: see Context.
        """
        output = self._output(x, rows)
        if rows < 2 and self.training:
            # Adapters' batch statistics need two rows, as the student's do, which got them.
            self.loss.eval()
            try:
                return self.loss(output, labels, targets, context)
            finally:
                self.loss.train()
        parts: dict[str, torch.Tensor] = self.loss(output, labels, targets, context)
        return parts

    def unwrapped(self, module: nn.Module) -> ModelSpec:
        """The student to keep, from the trained module or its average: a copy where anything is to be changed."""
        built = replace(self.built, module=module)
        for loss, _ in reversed(self._losses):
            built = loss.unwrap(built)
        return built

    def no_weight_decay(self) -> set[str]:
        """Names for timm's optimizers."""
        own = getattr(self.model, "no_weight_decay", None)
        return {f"model.{name}" for name in own()} if callable(own) else set()

    @property
    def adapts(self) -> bool:
        """Whether the loss has parameters to train."""
        return any(parameter.requires_grad for parameter in self.loss.parameters())

    def _output(self, x: torch.Tensor, rows: int) -> StudentOutput:
        logits = self.model(x)
        pooled, maps = self._hooks.take(x.device)
        return StudentOutput(logits[:rows], None if pooled is None else pooled[:rows], tuple(m[:rows] for m in maps))

    @torch.no_grad()
    def _sizes(self) -> FeatureShapes:
        size, training = self.built.input_size, self.model.training
        device = next(self.model.parameters()).device
        self.model.eval()
        try:
            output = self._output(torch.zeros(1, 3, size, size, device=device), 1)
        except KdpipeError:
            raise
        except Exception as e:  # each layer raises exceptions of its own; the settings caused them
            raise TrainingError(
                f"the student can't run: {type(e).__name__}: {first_line(e)}",
                where=self.built.name,
                found=f"an image of {size} pixels",
                do="Check --input-size and --model-kwargs",
            ) from e
        self.model.train(training)
        return FeatureShapes(
            self.built.num_classes,
            0 if output.pooled is None else output.pooled.shape[-1],
            tuple((m.shape[1], m.shape[2], m.shape[3]) for m in output.maps),
        )
