"""Training a student: the step, the run, its checkpoints."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.trainer.config import TrainConfig
    from kdpipe.trainer.distributed import Distributed, joined
    from kdpipe.trainer.loop import TrainingProgress
    from kdpipe.trainer.module import DistillationModule
    from kdpipe.trainer.prepare import TrainingJob
    from kdpipe.trainer.start import train
    from kdpipe.trainer.step import Step, TargetsOf, build_student
    from kdpipe.trainer.teachers import Log
else:
    __getattr__ = exports(
        __name__,
        {
            "config": "TrainConfig",
            "distributed": "Distributed joined",
            "loop": "TrainingProgress",
            "module": "DistillationModule",
            "prepare": "TrainingJob",
            "start": "train",
            "step": "Step TargetsOf build_student",
            "teachers": "Log",
        },
    )
