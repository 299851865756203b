"""What `kdpipe fidelity` measures, and what the documentation claims besides: renormalising, buckets, parity."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fidelity import parity
from kdpipe.fidelity.loss_cases import LossCase, bucket_config
from kdpipe.fidelity.run import Encoded, Log, Size, encode, measure_fidelity
from kdpipe.fidelity.setup import Setup
from kdpipe.fidelity.student import Student
from kdpipe.targets import Targets

# The losses that are compared with top-k targets of other formats.
TAILS = ("kd", "nkd", "dkd")
# Far below every log-probability of a class that is stored, and still a number.
_NOTHING = -1e4


def fidelity(
    setup: Setup, losses: Sequence[LossCase], folder: Path, size: Size, steps: int, log: Log = lambda _: None
) -> dict[str, Any]:
    """The report of `measure_fidelity`, and more.

    Args:
        setup: samples, views and teacher.
        losses: to measure.
        folder: for the exact cache that parity is measured with.
        size: how much to measure.
        steps: of parity.
        log: receives what is being measured.

    Returns:
        Besides: in `errors` of TAILS and top k `reference`, the error if the k are made to sum to 1, and `ratio`,
            the reference's error over ours;
        `bucket`: of KD, by encoding: the error of one bucket for all other classes;
        `early`: of KD, by encoding: the error in the gradient of a student after a tenth of the steps;
        `parity`: by loss, and the largest as `max_parity`.
    """
    began = time.monotonic()
    encoded = encode(setup, size, log)
    report = measure_fidelity(setup, encoded, losses, size, log)
    cases = {loss.name: loss for loss in losses if loss.name in report["errors"]}
    log("other formats")
    tops = [c for c in encoded.cases if c.top and c.encoding.dtype == "float16"]
    for name in [n for n in TAILS if n in cases]:
        gradients = encoded.gradients(cases[name])
        for case in tops:
            found = report["errors"][name][case.name]
            reference = gradients.errors(case, [renormalised(t) for t in encoded.targets[case.name]])["student"]
            ours = found["student"]["median"]
            found |= {"reference": reference, "ratio": reference["median"] / ours if ours else None}
    report["bucket"], report["early"] = _kd(setup, encoded, cases["kd"], size) if "kd" in cases else ({}, {})
    log("parity")
    differences = parity.differences(setup, encoded.student, list(cases.values()), folder, steps)
    took = {"parity_steps": steps, "seconds": round(time.monotonic() - began)}
    return {**report, "parity": differences, "max_parity": max(differences.values()), **took}


def renormalised(targets: Targets) -> Targets:
    """Of top-k targets the k made to sum to 1 and nothing for the others, as other formats do."""
    assert targets.log_probs is not None
    assert targets.index is not None
    kept = torch.log_softmax(targets.log_probs.gather(1, targets.index), dim=1)
    log_probs = torch.full_like(targets.log_probs, _NOTHING).scatter(1, targets.index, kept)
    return Targets(log_probs, None, True, None, targets.pooled, targets.map)


def _kd(setup: Setup, encoded: Encoded, kd: LossCase, size: Size) -> tuple[dict[str, Any], dict[str, Any]]:
    tops = [case for case in encoded.cases if case.top]
    gradients, steps = encoded.gradients(kd), max(1, size.steps // 10)
    bucket = {c.name: gradients.errors_as(bucket_config(c.encoding.k), encoded.targets[c.name]) for c in tops}
    early = encoded.gradients(kd, Student(setup, steps, size.rows))
    half = [c for c in tops if c.encoding.dtype == "float16"]
    return bucket, {
        "steps": steps,
        "kd": {c.name: early.errors(c, encoded.targets[c.name])["student"] for c in half},
    }
