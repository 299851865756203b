"""Training a student: the step, the run, its checkpoints."""

from pipeline.trainer.config import TrainConfig
from pipeline.trainer.learner import Learner
from pipeline.trainer.loop import Progress
from pipeline.trainer.prepare import Job
from pipeline.trainer.ranks import Ranks, joined
from pipeline.trainer.start import train
from pipeline.trainer.step import Step, TargetsOf, build_student
from pipeline.trainer.teachers import Say

__all__ = [
    "Job",
    "Learner",
    "Progress",
    "Ranks",
    "Say",
    "Step",
    "TargetsOf",
    "TrainConfig",
    "build_student",
    "joined",
    "train",
]
