"""Features of student and teacher brought to one shape: grids by pooling, widths by a 1x1 convolution."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.errors import TargetsError
from kdpipe.losses.inputs import FeatureShapes, TeacherInfo
from kdpipe.targets import FEATURE_FLAGS

Shape = tuple[int, int, int]


def same_grid(
    student: torch.Tensor, teacher: torch.Tensor, pool: Literal["avg", "max"] = "avg"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool the map with the larger grid to the other's; along each axis by itself.

    Args:
        student: (n, c, h, w).
        teacher: (n, d, k, l).
        pool: mean or largest value of each cell.

    Returns:
        (n, c, min(h, k), min(w, l)) and (n, d, min(h, k), min(w, l)); the same tensors where grids are equal.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = F.adaptive_avg_pool2d if pool == "avg" else F.adaptive_max_pool2d
    first, second = (x if x.shape[2:] == size else pooled(x, size) for x in (student, teacher))
    return first, second


def to_width(student: int, teacher: int) -> nn.Conv2d:
    """A 1x1 convolution (n, student, h, w) -> (n, teacher, h, w): the same linear map at each position."""
    return nn.Conv2d(student, teacher, kernel_size=1)


def map_shapes(name: str, student: FeatureShapes, info: TeacherInfo | None) -> tuple[Shape, Shape]:
    """(c, h, w) of the student's last map and (D, h, w) of the teacher's.

    Raises:
        TargetsError: no map of the teacher's is known.
    """
    if info is None or info.map is None:
        raise missing(name, "map")
    assert student.maps, "the student's maps are asked for by Requirements.maps"
    return student.maps[-1], info.map


def teacher_head(name: str, info: TeacherInfo | None) -> nn.Linear:
    """The teacher's classifier.

    Raises:
        TargetsError: it isn't known.
    """
    if info is None or info.head is None:
        raise missing(name, "pooled")
    return info.head


def require_nonnegative(name: str, pooled: torch.Tensor) -> None:
    """Refuse a teacher's feature that an adapter ending in a ReLU could never reach.

    Raises:
        TargetsError: a value of `pooled`, any shape, is negative.
    """
    least = float(pooled.min()) if pooled.numel() else 0.0
    if least < 0:
        raise TargetsError(
            "the teacher's feature has negative values, and the adapter ends in a ReLU",
            where=name,
            found=f"{least:.3g}",
            allowed="0 and above, as of ResNets",
            do=f"Set loss.{name}.relu=false",
        )


def missing(name: str, feature: str) -> TargetsError:
    """What to raise where the cache has no such feature, pooled or map."""
    return TargetsError(
        f"this loss needs the teacher's {feature} feature",
        where=name,
        do=f"Cache it: kdpipe cache-teacher --targets none {FEATURE_FLAGS[feature]} float16",
    )
