"""Answers that can't be kept: NaN, infinity, and values too large for a cache's dtype."""

import numpy as np
import torch

from pipeline.errors import TeacherError
from pipeline.shards import Index
from pipeline.targets import Encoding
from pipeline.teacher import TeacherOutput
from pipeline.views import View

_NAMES = {"logits": "logit", "pooled": "pooled feature", "map": "value of the final map"}
_OPTIONS = {"logits": "--dtype float32", "pooled": "--pooled float32", "map": "--map float32"}


def require_finite(output: TeacherOutput, index: Index, rows: range, view: View) -> None:
    """Raise TeacherError, which names the sample, if an answer on these rows has NaN or infinity."""
    for said in output.parts().values():
        if bool(torch.isfinite(said).all()):
            continue
        bad = int((~torch.isfinite(said).flatten(1).all(dim=1)).nonzero()[0])
        raise TeacherError(
            "the teacher answered with NaN or infinity",
            where=f"{index.shard_of(rows[bad]).name} key {index.key(rows[bad])} view {view}",
            do="Use --amp-dtype bfloat16 or float32",
        )


def require_fit(
    encoding: Encoding, fields: dict[str, np.ndarray], output: TeacherOutput, index: Index, rows: range, view: View
) -> None:
    """Raise TeacherError if finite answers are not finite as encoded.

    Log-probabilities always fit but for the label's, which is NaN where there is no label.
    """
    for group, said in output.parts().items():
        for field in encoding.fields((group,)):
            if field.name.startswith(("log_prob", "label_log_prob", "index")) or not field.dtype.startswith("float"):
                continue
            finite = np.isfinite(fields[field.name])
            if finite.all():
                continue
            bad = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
            raise TeacherError(
                f"a {_NAMES[group]} is too large for the cache's dtype",
                where=f"{index.shard_of(rows[bad]).name} key {index.key(rows[bad])} view {view}",
                found=f"{float(said[bad].abs().max()):.6g}",
                allowed="65504 in float16",
                do=f"Use {_OPTIONS[group]}",
            )
