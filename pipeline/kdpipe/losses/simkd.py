"""SimKD: the student learns the input of the teacher's classifier, and keeps that classifier."""

from typing import Any

import torch
from torch import nn

from kdpipe.errors import TargetsError
from kdpipe.losses.align import require_nonnegative, same_grid
from kdpipe.losses.base import Loss, Parts, float32, given, of_teacher
from kdpipe.losses.config import SimkdConfig
from kdpipe.losses.fitnets import squared_error
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.models import ModelSpec
from kdpipe.models.wrappers.simkd import PROJECTED, SimkdStudent, kept
from kdpipe.targets import Labels, Targets

# Relative difference of the mean of a cached map from the cached pooled feature, roundings of both included.
_ROUNDING = 0.05


class Simkd(Loss):
    """(P(f_s) - f_t)^2, the mean over the elements of each row, and nothing else: no labels, no logits.

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022), section 3.2. The student is a
    `SimkdStudent`: its own features, the projector P, and the teacher's classifier, frozen, which it keeps. The
    paper's f_t is the last map; here it is by default the pooled feature, one vector where a map of 7 x 7 has 49, and
    the classifier's input even of teachers with a norm between map and classifier. Of maps the larger one is
    averaged down to the other's grid. Without a last ReLU by default: features of ConvNeXt's, SLaK's and
    Swin's kind are negative too. Parts: `simkd`.
    """

    name, Config = "simkd", SimkdConfig
    config: SimkdConfig

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        self._tried = False

    @classmethod
    def wrap(cls, config: Any, model: nn.Module, teacher: TeacherInfo | None) -> nn.Module:
        """See Loss."""
        head = of_teacher(cls.name, teacher, "head")
        return SimkdStudent(model, head, factor=config.bottleneck, relu=config.relu)

    @classmethod
    def unwrap(cls, built: ModelSpec) -> ModelSpec:
        """See Loss: kept as it is; its header describes how to build it."""
        return kept(built)

    @classmethod
    def layers(cls, config: Any) -> tuple[str, ...]:
        """See Loss."""
        return (PROJECTED,) if config.feature == "map" else ()

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        self._try(given(targets.pooled), targets.map)
        if self.config.feature == "map":
            losses = squared_error(*same_grid(float32(output.maps[-1]), given(targets.map)))
        else:
            losses = squared_error(given(output.pooled), given(targets.pooled))
        loss = context.over_rows(losses.sum())
        return {"loss": loss, "simkd": loss}

    def _try(self, pooled: torch.Tensor, final: torch.Tensor | None) -> None:
        """On the first rows, whether the projector can reach the feature and whether the classifier takes its mean."""
        if self._tried or not len(pooled):
            return
        if self.config.relu:
            require_nonnegative(self.name, pooled if final is None else final)
        if final is not None and self.config.feature == "map":
            far = float((final.mean(dim=(2, 3)) - pooled).norm() / pooled.norm().clamp(min=1e-12))
            if far > _ROUNDING:
                raise TargetsError(
                    "the teacher's classifier doesn't see the mean of its final map: a student trained on that map "
                    "would give the classifier another input than it was trained for",
                    where="loss.simkd.feature",
                    found=f"a mean {far:.0%} away from the pooled feature",
                    do="Set loss.simkd.feature=pooled",
                )
        self._tried = True
