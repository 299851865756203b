"""Training a student: the step, the run, its checkpoints."""

from kdpipe.trainer.config import TrainConfig
from kdpipe.trainer.distributed import Distributed, joined
from kdpipe.trainer.loop import TrainingProgress
from kdpipe.trainer.module import DistillationModule
from kdpipe.trainer.prepare import TrainingJob
from kdpipe.trainer.start import train
from kdpipe.trainer.step import Step, TargetsOf, build_student
from kdpipe.trainer.teachers import Log

__all__ = [
    "DistillationModule",
    "Distributed",
    "Log",
    "Step",
    "TargetsOf",
    "TrainConfig",
    "TrainingJob",
    "TrainingProgress",
    "build_student",
    "joined",
    "train",
]
