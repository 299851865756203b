"""The teacher: frozen models with their own preprocessing, and the exact form in which they are run."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.teacher.config import AmpDtype, KernelPlan, TeacherConfig
    from kdpipe.teacher.device import devices_here, resolve_device
    from kdpipe.teacher.extract import head_parts, tail_parts
    from kdpipe.teacher.modules import Tail, load_head, load_tail
    from kdpipe.teacher.outputs import FEATURES, TeacherOutput
    from kdpipe.teacher.teacher import Teacher, shapes_of
    from kdpipe.teacher.tune.plan import CAUSES, NOT_A_FUNCTION
else:
    __getattr__ = exports(
        __name__,
        {
            "config": "AmpDtype KernelPlan TeacherConfig",
            "device": "devices_here resolve_device",
            "extract": "head_parts tail_parts",
            "modules": "Tail load_head load_tail",
            "outputs": "FEATURES TeacherOutput",
            "teacher": "Teacher shapes_of",
            "tune.plan": "CAUSES NOT_A_FUNCTION",
        },
    )
