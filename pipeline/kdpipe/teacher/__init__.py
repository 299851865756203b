"""The teacher: frozen models with their own preprocessing, and the exact form in which they are run."""

from kdpipe.teacher.config import AmpDtype, KernelPlan, TeacherConfig
from kdpipe.teacher.device import devices_here, resolve_device
from kdpipe.teacher.extract import head_parts, tail_parts
from kdpipe.teacher.modules import Tail, load_head, load_tail
from kdpipe.teacher.outputs import FEATURES, TeacherOutput
from kdpipe.teacher.teacher import Teacher, shapes_of
from kdpipe.teacher.tune.plan import CAUSES, NOT_A_FUNCTION

__all__ = [
    "CAUSES",
    "FEATURES",
    "NOT_A_FUNCTION",
    "AmpDtype",
    "KernelPlan",
    "Tail",
    "Teacher",
    "TeacherConfig",
    "TeacherOutput",
    "devices_here",
    "head_parts",
    "load_head",
    "load_tail",
    "resolve_device",
    "shapes_of",
    "tail_parts",
]
