"""Whether a teacher is a function of its input: the same views are run again in another order and another batch.

A cache holds one output a view. Where the teacher's output also depends on chance (dropout left on, added noise) or
on the other rows of its batch (batch norm in train mode), no single output is the right one. So two live runs may
differ by rounding only, and the bound on that is a constant of the compute dtype, never a measurement.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kdpipe.errors import TeacherError
from kdpipe.teacher import CAUSES, NOT_A_FUNCTION, Teacher, TeacherOutput
from kdpipe.views import Erased

# A difference of zero (one machine, one plan) still leaves float32 its last bits.
FLOOR = 1e-5

# Largest difference of two runs relative to the group's largest value, by the dtype of products, as machine epsilon
# times a factor. Measured with random weights and 128 to 224 pixels on slak_nano, resnet18, resnet10t, convnext_atto,
# convnext_tiny, swin_tiny, efficientnet_b0 and vit_tiny:
# float32: another batch size, and so other kernels, makes up to 6 epsilon of the logits and 14 of the map; 512 leaves
# room for networks of some hundred layers and for other devices. The others accumulate in float32 and round the inputs
# or outputs of each layer: bfloat16 is off float32 by up to 1.3 epsilon of the logits and 1.9 of the map, two
# independent roundings by sqrt(2) times that; 8 is three times as much.
_EPSILON = {"float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_FACTOR = {"float32": 512, "tf32": 8, "float16": 8, "bfloat16": 8}
_CALLED = {"logits": "nats", "pooled": "of the largest pooled feature", "map": "of the map's largest value"}


def compute_dtype(numerics: Mapping[str, Any]) -> str:
    """The coarsest dtype in which a teacher of these numerics multiplies: autocast's, or tf32, or float32."""
    dtypes = [str(numerics["amp_dtype"]), *(["tf32"] if numerics["tf32"] else [])]
    return max(dtypes, key=_EPSILON.__getitem__)


def rounding(dtype: str) -> float:
    """How much two runs in this compute dtype may differ, relative to the largest value."""
    return _EPSILON[dtype] * _FACTOR[dtype]


def bound_of(group: str, values: torch.Tensor, relative: float) -> float:
    """What `relative` amounts to for a batch's values of a group: nats of logits, else relative to the largest.

    A log-probability moves by its own logit's difference and, through the normalisation, by at most the largest.
    """
    return FLOOR + (2 * relative * float(values.abs().max()) if group == "logits" else relative)


def run_again(teacher: Teacher, images: np.ndarray, erased: Erased | None) -> TeacherOutput:
    """The outputs of the same views, each at another place of a batch of other rows, in the order of `images`.

    Each half of a batch is run reversed, behind negatives of itself. The batches have the teacher's size, so that
    the kernels are those of every other run. A batch of one view can only be run alone, as it always is.

    Args:
        teacher: run as it is.
        images, erased: as for `Teacher.__call__`.
    """
    size = teacher.config.batch_size
    step = max(1, size // 2)
    outputs = []
    for start in range(0, len(images), step):
        rows = np.arange(start, min(start + step, len(images)))[::-1]
        others = rows[np.arange(size - len(rows)) % len(rows)]
        batch = np.concatenate([255 - images[others], images[rows]])
        boxes = None if erased is None else erased[np.concatenate([others, rows])]
        output = teacher(batch, boxes)
        outputs.append(TeacherOutput(**{n: x[len(others) :].flip(0) for n, x in output.parts().items()}))
    return TeacherOutput.joined(outputs)


def require_deterministic(teacher: Teacher, images: np.ndarray, erased: Erased | None, where: str) -> None:
    """Run views twice and refuse a teacher whose outputs differ by more than rounding.

    Args:
        teacher: with the features that will be kept.
        images, erased: as for `Teacher.__call__`.
        where: what they are, for the error.

    Raises:
        TeacherError: they differ; by how much, the bound, likely causes.
    """
    dtype = compute_dtype(teacher.numerics())
    again = run_again(teacher, images, erased).parts()
    for group, values in teacher(images, erased).parts().items():
        bound = bound_of(group, values, rounding(dtype))
        found = live_difference(group, values, again[group])
        if not found <= bound:
            raise TeacherError(
                f"{NOT_A_FUNCTION}: run again in another order and beside other rows, its {group} differ",
                where=where,
                found=f"a difference of {found:.3g} {_CALLED[group]}",
                allowed=f"{bound:.3g}, rounding in {dtype}",
                do=f"Likely causes: {CAUSES}. Fix the model's eval mode; --allow-nondeterministic caches one output "
                "of a teacher that is stochastic on purpose",
            )


def live_difference(group: str, first: torch.Tensor, again: torch.Tensor) -> float:
    """Largest difference of two runs, in the units of `bound_of`."""
    if group == "logits":
        return float((torch.log_softmax(first.float(), 1) - torch.log_softmax(again.float(), 1)).abs().max())
    most = float(first.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    return float((first - again).abs().max()) / most
