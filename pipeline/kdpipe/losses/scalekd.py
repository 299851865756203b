"""ScaleKD: students learn a large teacher's final map through cross-attention, and through its own last stage."""

from dataclasses import replace
from typing import Any

import torch

from kdpipe.errors import TrainingError
from kdpipe.losses.base import Loss, Parts, float32, given, of_teacher
from kdpipe.losses.cap import CrossAttentionProjector
from kdpipe.losses.config import CapDfmConfig, ScaleKdConfig
from kdpipe.losses.dfm import frequency, spatial
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.losses.logit import cross_entropy, soft_cross_entropy
from kdpipe.targets import Labels, Targets


class CapDfm(Loss):
    """ScaleKD's terms that do without the teacher's tail: .08 L_spat(CAP(S4), T4) + .06 L_freq(CAP'(S4), T4).

    Both projectors have queries of their own; see `kdpipe.losses.dfm` and `cap`. With `kd+cap-dfm` it is
    ScaleKD without what passes the tail. Parts: `spat`, `freq`.
    """

    name, Config = "cap-dfm", CapDfmConfig
    config: CapDfmConfig

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        s4, t4 = given(student).maps[-1], of_teacher(self.name, teacher, "map")
        self.cap_spat, self.cap_freq = (CrossAttentionProjector.of_width(s4, t4, config.head_width) for _ in range(2))

    def adapt(self, output: StudentOutput, targets: Targets) -> StudentOutput:
        """See Loss."""
        s4 = output.maps[-1]
        return replace(output, maps=(self.cap_spat(s4), self.cap_freq(s4)))

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        t4 = given(targets.map)
        spat = context.over_rows(spatial(output.maps[0], t4).sum())
        freq = context.over_rows(frequency(output.maps[1], t4).sum())
        return {"loss": self.config.spat * spat + self.config.freq * freq, "spat": spat, "freq": freq}


class ScaleKd(Loss):
    """ScaleKD with all its terms (NeurIPS 2024, equations of CAP, DFM and TPP).

    .5 CE + .5 T^2 CE(softmax(t / T), s / T) + .08 L_spat(Q, T4) + .06 L_freq(Q', T4) + .08 L_spat(F, T4)
    + .06 L_freq(F', T4), with S3, S4 the student's last two maps, T4 the teacher's final one, Q = tail(CAP(S3)) and
    F = CAP(S4, queries Q), and the same with other projectors for Q' and F'. Gradients pass the queries and the tail,
    whose weights are frozen. The paper doesn't mix images; labels and logits of mixed ones are taken as in `kd`.

    Parts: `ce`, `kd` where their weights aren't 0, `spat_tail`, `freq_tail` of Q and Q', `spat`, `freq` of F and F'.
    """

    name, Config = "scalekd", ScaleKdConfig
    config: ScaleKdConfig

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        final, tail = (of_teacher(self.name, teacher, part) for part in ("map", "tail"))
        if tail.out_shape != final:
            what = "the tail makes other maps than were cached"
            raise TrainingError(what, where=self.name, found=tail.out_shape, allowed=final)
        maps = given(student).maps
        if len(maps) < 2:
            raise TrainingError(
                "this loss needs maps of the student's last two stages",
                where=self.name,
                found=len(maps),
                do="Name them in loss.student_layers, or use kd+cap-dfm, which needs the final one",
            )
        cap, (s3, s4), (wide3, wide4) = CrossAttentionProjector.of_width, maps[-2:], config.head_widths
        self.tail = tail
        self.cap3_spat, self.cap3_freq = (cap(s3, tail.in_shape, wide3) for _ in range(2))
        self.cap4_spat, self.cap4_freq = (cap(s4, tail.out_shape, wide4, learned=False) for _ in range(2))

    def adapt(self, output: StudentOutput, targets: Targets) -> StudentOutput:
        """See Loss: Q, Q', F, F'."""
        s3, s4 = output.maps[-2:]
        q_spat, q_freq = self.tail(self.cap3_spat(s3)), self.tail(self.cap3_freq(s3))
        return replace(output, maps=(q_spat, q_freq, self.cap4_spat(s4, q_spat), self.cap4_freq(s4, q_freq)))

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c, t4 = self.config, given(targets.map)
        parts: Parts = {}
        if c.ce:
            parts["ce"] = cross_entropy(output.logits, labels, context, c.label_smoothing)
        if c.kd:
            teacher = torch.log_softmax(given(targets.log_probs) / c.temperature, dim=1)
            soft = soft_cross_entropy(float32(output.logits) / c.temperature, teacher)
            parts["kd"] = context.over_rows(soft.sum()) * c.temperature**2
        named = zip(("spat_tail", "freq_tail", "spat", "freq"), (spatial, frequency) * 2, output.maps, strict=True)
        parts |= {name: context.over_rows(distance(x, t4).sum()) for name, distance, x in named}
        total = torch.stack([getattr(c, name) * part for name, part in parts.items()]).sum()
        return {"loss": total, **parts}
