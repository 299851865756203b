"""Training a student: the step, the run, its checkpoints."""

from kdpipe.trainer.config import TrainConfig
from kdpipe.trainer.distributed import Ranks, joined
from kdpipe.trainer.loop import Progress
from kdpipe.trainer.module import Learner
from kdpipe.trainer.prepare import Job
from kdpipe.trainer.start import train
from kdpipe.trainer.step import Step, TargetsOf, build_student
from kdpipe.trainer.teachers import Say

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
