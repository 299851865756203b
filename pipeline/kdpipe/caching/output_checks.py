"""Outputs that can't be kept: NaN, infinity, and values too large for a cache's dtype."""

import numpy as np
import torch

from kdpipe.errors import TeacherError
from kdpipe.shards import Index
from kdpipe.targets import Encoding
from kdpipe.teacher import TeacherOutput
from kdpipe.views import View

_NAMES = {"logits": "logit", "pooled": "pooled feature", "map": "value of the final map"}
_OPTIONS = {"logits": "--dtype float32", "pooled": "--pooled float32", "map": "--feature-map float32"}
_CHECK = "check the weights, teacher.mean and teacher.std"
# By autocast's dtype. bfloat16 has float32's range: it rarely overflows where float32 does not.
_REMEDY = {
    "float16": f"Use --amp-dtype bfloat16 or float32; if that fails too, {_CHECK}",
    "bfloat16": f"Use --amp-dtype float32; if that fails too, {_CHECK}",
    "float32": "The weights are broken, or teacher.mean and teacher.std wrong: it is computed in float32 already",
}


def remedy(amp_dtype: str) -> str:
    """What to do about NaN or infinity in outputs computed with this autocast dtype."""
    return _REMEDY[amp_dtype]


def require_finite(output: TeacherOutput, index: Index, rows: range, view: View, amp_dtype: str) -> None:
    """Raise TeacherError, which names the sample, if an output on these rows has NaN or infinity."""
    for values in output.parts().values():
        if bool(torch.isfinite(values).all()):
            continue
        bad = int((~torch.isfinite(values).flatten(1).all(dim=1)).nonzero()[0])
        raise TeacherError(
            "the teacher's output has NaN or infinity",
            where=f"{index.shard_of(rows[bad]).name} key {index.key(rows[bad])} view {view}",
            do=remedy(amp_dtype),
        )


def require_fit(
    encoding: Encoding, fields: dict[str, np.ndarray], output: TeacherOutput, index: Index, rows: range, view: View
) -> None:
    """Raise TeacherError if finite outputs are not finite as encoded.

    The label's log-probability is NaN where there is no label.
    """
    for group, values in output.parts().items():
        for field in encoding.fields((group,)):
            if not field.dtype.startswith("float"):
                continue
            stored = fields[field.name]
            wrong = np.isinf(stored) if field.name == "label_log_prob" else ~np.isfinite(stored)
            if not wrong.any():
                continue
            bad = int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))[0])
            name, extreme = _NAMES[group], float(values[bad].abs().max())
            if field.name.endswith("log_prob"):
                name, extreme = "log-probability", float(torch.log_softmax(values[bad].double(), 0).min())
            half = field.dtype == "float16"
            raise TeacherError(
                f"a {name} is too large for the cache's dtype",
                where=f"{index.shard_of(rows[bad]).name} key {index.key(rows[bad])} view {view}",
                found=f"{extreme:.6g}",
                allowed=f"{np.finfo(field.dtype).max:.6g} in {field.dtype}",
                do=f"Use {_OPTIONS[group]}" if half else _CHECK.capitalize(),
            )
