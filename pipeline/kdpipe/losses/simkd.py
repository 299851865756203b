"""SimKD: the student learns the feature that the teacher's classifier sees, and keeps that classifier."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from kdpipe.errors import TargetsError
from kdpipe.losses.align import require_nonnegative, same_grid, teacher_head
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.fitnets import squared_error
from kdpipe.losses.inputs import Context, Requirements, StudentOutput, TeacherInfo
from kdpipe.models import ModelSpec
from kdpipe.models.wrappers.simkd import PROJECTED, SimkdStudent, kept
from kdpipe.targets import Labels, Targets

# Relative difference of the mean of a cached map from the cached pooled feature, roundings of both included.
_ROUNDING = 0.05


class SimkdConfig(TermConfig):
    """Numbers of `simkd`."""

    bottleneck: int = Field(2, ge=1, description="the projector's inner width is the teacher's divided by it")
    relu: bool = Field(False, description="the projector ends in a ReLU: the paper's, for ResNets as teachers")
    feature: Literal["pooled", "map"] = Field(
        "pooled", description="what is compared: the mean over positions, or each position, which only fits "
        "teachers whose classifier sees the plain mean of the final map"
    )  # fmt: skip


class Simkd(Loss):
    """(P(f_s) - f_t)^2, the mean over the elements of each row, and nothing else: no labels, no logits.

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022), section 3.2. The student is a
    `SimkdStudent`: its own features, the projector P, and the teacher's classifier, frozen, which it keeps. The
    paper's f_t is the last map; here it is by default the pooled feature, one vector where a map of 7 x 7 has 49, and
    what the classifier sees even of teachers with a norm between map and classifier. Of maps the larger one is
    averaged down to the other's grid. Without a last ReLU unless it is asked for: features of ConvNeXt's, SLaK's and
    Swin's kind are negative too. Parts: `simkd`.
    """

    name, paper = "simkd", "Chen et al. 2022, Knowledge Distillation with the Reused Teacher Classifier"
    Config = SimkdConfig
    wraps_student = True
    config: SimkdConfig

    def __init__(self, config: SimkdConfig) -> None:
        super().__init__(config)
        self._tried = False

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        if config.feature == "map":
            return Requirements(pooled=True, head=True, map=True, maps=1)
        return Requirements(pooled=True, head=True, student_pooled=True)

    @classmethod
    def wrap(cls, config: Any, model: nn.Module, info: TeacherInfo | None) -> nn.Module:
        """See Loss."""
        return SimkdStudent(model, teacher_head(cls.name, info), factor=config.bottleneck, relu=config.relu)

    @classmethod
    def unwrap(cls, built: ModelSpec) -> ModelSpec:
        """See Loss: it is kept as it is, and its header says how to build it."""
        return kept(built)

    @classmethod
    def taps(cls, config: Any) -> tuple[str, ...]:
        """See Loss."""
        return (PROJECTED,) if config.feature == "map" else ()

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        told = require_targets(self.name, self.requirements, targets)
        assert told.pooled is not None
        self._try(told)
        with torch.autocast(output.logits.device.type, enabled=False):
            if self.config.feature == "map":
                assert told.map is not None
                losses = squared_error(*same_grid(float32(output.maps[-1]), told.map))
            else:
                assert output.pooled is not None
                losses = squared_error(output.pooled, told.pooled)
            loss = context.over_rows(losses.sum())
        return {"loss": loss, "simkd": loss}

    def _try(self, told: Targets) -> None:
        """On the first rows, whether the projector can reach the feature and the classifier can read it."""
        assert told.pooled is not None
        if self._tried or not len(told.pooled):
            return
        if self.config.relu:
            require_nonnegative(self.name, told.pooled if told.map is None else told.map)
        if told.map is not None and self.config.feature == "map":
            far = float((told.map.mean(dim=(2, 3)) - told.pooled).norm() / told.pooled.norm().clamp(min=1e-12))
            if far > _ROUNDING:
                raise TargetsError(
                    "the teacher's classifier doesn't see the mean of its final map: a student of that map would "
                    "give the classifier something else than it knows",
                    where="loss.simkd.feature",
                    found=f"a mean {far:.0%} away from the pooled feature",
                    do="Set loss.simkd.feature=pooled",
                )
        self._tried = True
