"""Whether the parts of a teacher that lie in a cache are this teacher's."""

from typing import Any

import numpy as np
import torch

from kdpipe.cache import Cache, read_canaries
from kdpipe.cache.modules import read_part
from kdpipe.cache.select import HEAD, TAIL
from kdpipe.errors import KdpipeError
from kdpipe.teacher import Teacher, head_parts, load_head, load_tail, tail_parts
from kdpipe.verification.integrity import required

# Probes are those of the canaries; a few are enough to see which layers make a part.
_FEW = 2


def check_parts(cache: Cache, teacher: Teacher) -> dict[str, dict[str, Any]]:
    """Take the parts out of the live teacher again and compare every weight; try the stored ones on their probes.

    Returns:
        By name of the part, of those that are there or have to be: `ok`, and `what` is wrong with it.
    """
    lost = {name: why for name, why in required(cache.segments).items() if name == HEAD and name not in cache.parts}
    found: dict[str, dict[str, Any]] = {name: {"ok": False, "what": f"missing: {why}"} for name, why in lost.items()}
    names = [name for name in (HEAD, TAIL) if name in cache.parts]
    if not names:
        return found
    plain = teacher.original()
    pixels = np.stack([canary.pixels for canary in read_canaries(cache)[:_FEW]])
    x = teacher.normalized(pixels).contiguous()
    for name in names:
        where = f"{cache.store} part {name}"
        try:
            stored, about = read_part(cache, name)
            if name == HEAD:
                live = head_parts(plain, teacher.built, x)
                load_head(stored, where)
            else:
                live, _ = tail_parts(plain, teacher.built, x, teacher.weights)
                load_tail(stored, about, where, teacher.weights, teacher.config.trusted())
        except KdpipeError as e:
            found[name] = {"ok": False, "what": str(e)}
            continue
        other = [key for key in {**live, **stored} if not key.startswith("probe_") and not _same(live, stored, key)]
        found[name] = {"ok": False, "what": f"its {other[0]} is not the teacher's"} if other else {"ok": True}
    return found


def _same(live: dict[str, torch.Tensor], stored: dict[str, torch.Tensor], key: str) -> bool:
    return key in live and key in stored and torch.equal(live[key], stored[key])
