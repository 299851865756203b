"""The teacher: frozen models with their own preprocessing, and the exact form in which they are run."""

from pipeline.teacher.answering import FEATURES, TeacherOutput
from pipeline.teacher.config import AmpDtype, TeacherConfig
from pipeline.teacher.device import devices_here, resolve_device
from pipeline.teacher.extract import head_parts, tail_parts
from pipeline.teacher.parts import Tail, load_head, load_tail
from pipeline.teacher.plan import CAUSES, NOT_A_FUNCTION, Plan
from pipeline.teacher.teacher import Teacher, shapes_of

__all__ = [
    "CAUSES",
    "FEATURES",
    "NOT_A_FUNCTION",
    "AmpDtype",
    "Plan",
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
