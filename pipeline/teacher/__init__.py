"""The teacher: frozen models with their own preprocessing, and the exact form in which they are run."""

from pipeline.teacher.config import AmpDtype, TeacherConfig
from pipeline.teacher.device import devices_here, resolve_device
from pipeline.teacher.plan import Plan
from pipeline.teacher.teacher import Teacher, TeacherOutput

__all__ = ["AmpDtype", "Plan", "Teacher", "TeacherConfig", "TeacherOutput", "devices_here", "resolve_device"]
