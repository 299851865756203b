"""ScaleKD: students learn a large teacher's final map through cross-attention, and through its own last stage."""

from typing import Any, Self

import torch
from pydantic import Field, model_validator

from kdpipe.errors import TrainingError
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.cap import CrossAttentionProjector, Shape
from kdpipe.losses.dfm import frequency, spatial
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
from kdpipe.losses.logit import cross_entropy, soft_cross_entropy
from kdpipe.targets import Labels, Targets
from kdpipe.teacher import Tail

_PAPER = "Fan et al. 2024, ScaleKD: Strong Vision Transformers Could Be Excellent Teachers"


class CapDfmConfig(TermConfig):
    """Numbers of `cap-dfm`."""

    spat: float = Field(0.08, ge=0, description="weight of L_spat")
    freq: float = Field(0.06, ge=0, description="weight of L_freq")
    head_width: int = Field(64, ge=1, description="channels of an attention head; one of 64 where they don't go up")


class CapDfm(Loss):
    """ScaleKD's terms that do without the teacher's tail: .08 L_spat(CAP(S4), T4) + .06 L_freq(CAP'(S4), T4).

    Both projectors have queries of their own; see `kdpipe.losses.dfm` and `cap`. With `kd+cap-dfm` it is
    ScaleKD without what passes the tail. Parts: `spat`, `freq`.
    """

    name, paper, trains_classifier = "cap-dfm", _PAPER, False
    Config = CapDfmConfig
    config: CapDfmConfig

    def __init__(self, config: CapDfmConfig, student: Shape, teacher: Shape) -> None:
        super().__init__(config)
        self.cap_spat, self.cap_freq = (
            CrossAttentionProjector.of_width(student, teacher, config.head_width) for _ in range(2)
        )

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        return Requirements(map=True, maps=1)

    @classmethod
    def make(cls, config: CapDfmConfig, student: FeatureShapes, info: TeacherInfo | None) -> Self:
        """See Loss."""
        return cls(config, student.maps[-1], _map_of(cls.name, info))

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        t4 = require_targets(self.name, self.requirements, targets).map
        s4 = output.maps[-1]
        assert t4 is not None
        spat = context.over_rows(spatial(self.cap_spat(s4), t4).sum())
        freq = context.over_rows(frequency(self.cap_freq(s4), t4).sum())
        return {"loss": self.config.spat * spat + self.config.freq * freq, "spat": spat, "freq": freq}


class ScaleKdConfig(TermConfig):
    """Numbers of `scalekd`."""

    temperature: float = Field(1.0, gt=0, description="T of kd; other than 1 needs dense targets")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross entropy against labels")
    ce: float = Field(0.5, ge=0, description="weight of the cross entropy against labels")
    kd: float = Field(0.5, ge=0, description="weight of the cross entropy against the teacher")
    spat_tail: float = Field(0.08, ge=0, description="weight of L_spat behind the teacher's tail")
    freq_tail: float = Field(0.06, ge=0, description="weight of L_freq behind the teacher's tail")
    spat: float = Field(0.08, ge=0, description="weight of L_spat of the student's final map")
    freq: float = Field(0.06, ge=0, description="weight of L_freq of the student's final map")
    head_widths: tuple[int, int] = Field(
        (48, 64), description="channels of an attention head before the tail and behind it; 64 where they don't go up"
    )

    @model_validator(mode="after")
    def _trains_the_classifier(self) -> Self:
        if self.ce + self.kd == 0:
            raise ValueError("scalekd with ce 0 and kd 0 leaves the classifier untrained; use kd+cap-dfm for features")
        if min(self.head_widths) < 1:
            raise ValueError(f"head_widths are at least 1, found {self.head_widths}")
        return self


class ScaleKd(Loss):
    """ScaleKD with all its terms (NeurIPS 2024, equations of CAP, DFM and TPP).

    .5 CE + .5 T^2 CE(softmax(t / T), s / T) + .08 L_spat(Q, T4) + .06 L_freq(Q', T4) + .08 L_spat(F, T4)
    + .06 L_freq(F', T4), with S3, S4 the student's last two maps, T4 the teacher's final one, Q = tail(CAP(S3)) and
    F = CAP(S4, queries Q), and the same with other projectors for Q' and F'. Gradients pass the queries and the tail,
    whose weights are frozen. The paper doesn't mix images; labels and logits of mixed ones are taken as in `kd`.

    Parts: `ce`, `kd` where their weights aren't 0, `spat_tail`, `freq_tail` of Q and Q', `spat`, `freq` of F and F'.
    """

    name, paper = "scalekd", _PAPER
    Config = ScaleKdConfig
    config: ScaleKdConfig

    def __init__(self, config: ScaleKdConfig, maps: tuple[Shape, Shape], tail: Tail) -> None:
        super().__init__(config)
        cap, (s3, s4), (wide3, wide4) = CrossAttentionProjector.of_width, maps, config.head_widths
        self.tail = tail
        self.cap3_spat, self.cap3_freq = (cap(s3, tail.in_shape, wide3) for _ in range(2))
        self.cap4_spat, self.cap4_freq = (cap(s4, tail.out_shape, wide4, learned=False) for _ in range(2))

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        soft = config.kd > 0
        dense = soft and config.temperature != 1
        return Requirements(labels=config.ce > 0, logits=soft, dense=dense, map=True, tail=True, maps=2)

    @classmethod
    def make(cls, config: ScaleKdConfig, student: FeatureShapes, info: TeacherInfo | None) -> Self:
        """See Loss."""
        final = _map_of(cls.name, info)
        tail = None if info is None else info.tail
        if tail is None:
            raise TrainingError(
                "this loss needs the teacher's last stage",
                where=cls.name,
                do="Keep it: kdpipe cache-teacher --last-stage; or use kd+cap-dfm, which does without",
            )
        if tail.out_shape != final:
            raise TrainingError(
                "the tail makes other maps than were cached", where=cls.name, found=tail.out_shape, allowed=final
            )
        if len(student.maps) < 2:
            raise TrainingError(
                "this loss needs maps of the student's last two stages",
                where=cls.name,
                found=len(student.maps),
                do="Name them, or use kd+cap-dfm, which needs the final one",
            )
        s3, s4 = student.maps[-2:]
        return cls(config, (s3, s4), tail)

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        c, told = self.config, require_targets(self.name, self.requirements, targets)
        t4, (s3, s4) = told.map, output.maps[-2:]
        assert t4 is not None
        parts: dict[str, torch.Tensor] = {}
        if c.ce:
            parts["ce"] = cross_entropy(output.logits, labels, context, c.label_smoothing)
        if c.kd:
            parts["kd"] = self._soft(output.logits, told, context)
        q_spat, q_freq = self.tail(self.cap3_spat(s3)), self.tail(self.cap3_freq(s3))
        rows = {
            "spat_tail": spatial(q_spat, t4),
            "freq_tail": frequency(q_freq, t4),
            "spat": spatial(self.cap4_spat(s4, q_spat), t4),
            "freq": frequency(self.cap4_freq(s4, q_freq), t4),
        }
        parts |= {name: context.over_rows(losses.sum()) for name, losses in rows.items()}
        total = torch.stack([getattr(c, name) * part for name, part in parts.items()]).sum()
        return {"loss": total, **parts}

    def _soft(self, logits: torch.Tensor, told: Targets, context: Context) -> torch.Tensor:
        assert told.log_probs is not None
        heat = self.config.temperature
        with torch.autocast(logits.device.type, enabled=False):
            teacher = torch.log_softmax(told.log_probs / heat, dim=1)
            return context.over_rows(soft_cross_entropy(float32(logits) / heat, teacher).sum()) * heat**2


def _map_of(name: str, info: TeacherInfo | None) -> Shape:
    if info is None or info.map is None:
        raise TrainingError(
            "this loss needs the teacher's final map",
            where=name,
            do="Cache it: kdpipe cache-teacher --feature-map int8, or float16",
        )
    return info.map
