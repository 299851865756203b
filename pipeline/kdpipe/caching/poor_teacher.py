"""Signs that a teacher is poor, or isn't that of the data: one line each, for people to assess."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig, is_factory, read_header, read_metadata
from kdpipe.shards import Index
from kdpipe.teacher import TeacherConfig

# Labelled views from which on an accuracy means something.
_ENOUGH = 50
# An accuracy on augmented views is below that of whole images; not below this share of it.
_SHARE = 2 / 3
_MASS = 0.5


def before_run(config: TeacherConfig, num_classes: int, index: Index, *, strict: bool) -> list[str]:
    """What is known without an output: classes unlike the index's, mean or std unlike the model's own.

    Raises:
        TeacherError: a file of weights can't be read; or `strict`, and there is anything to remark.
    """
    found = []
    if index.num_classes not in (None, num_classes):
        found.append(
            f"the teacher has {num_classes} classes, the index {index.num_classes}: are its classes the labels'? "
            "--class-map FILE takes those that are"
        )
    for model in config.models():
        for name, own in _preprocessing(model).items():
            given = getattr(model, name)
            if given is not None and any(abs(a - b) > 1e-3 for a, b in zip(given, own, strict=True)):
                found.append(f"teacher.{name} is {_numbers(given)}, the model's own {_numbers(own)}: leave it out")
    if strict:
        refuse(found, ", ".join(model.model or str(model.weights) for model in config.models()))
    return found


def after_run(means: Mapping[str, Any], labelled: int, config: TeacherConfig, num_classes: int) -> list[str]:
    """What only outputs show.

    Args:
        means: as `Quality.means` has them.
        labelled: views with a label.
        config: the teacher, whose weights may hold the accuracy that was measured in training.
        num_classes: of the teacher.
    """
    found = []
    top1, mass = means["teacher_top1"], means["retained_mass"]
    if top1 is not None and labelled >= _ENOUGH:
        chance = 1 / num_classes
        if top1 <= 1.2 * chance + 2 * math.sqrt(chance * (1 - chance) / labelled):
            found.append(
                f"the teacher's top-1 is {100 * top1:.2f} %, near chance ({100 * chance:.2f} %): "
                "check its weights, the order of classes, mean and std"
            )
        recorded = _recorded(config)
        if recorded is not None and top1 < _SHARE * recorded:
            found.append(
                f"the teacher's top-1 is {100 * top1:.2f} %, its file records {100 * recorded:.2f} %: "
                "check the order of classes, the size of the input and the augmentation"
            )
    if mass is not None and mass < _MASS:
        found.append(
            f"the kept classes have {mass:.2f} of the probability: raise --k, use --targets dense, or check the teacher"
        )
    return found


def refuse(remarks: Sequence[str], where: object) -> None:
    """Raise TeacherError with the first remark, for --strict; nothing if there is none."""
    if remarks:
        more = f" (and {len(remarks) - 1} more)" if remarks[1:] else ""
        raise TeacherError(f"{remarks[0]}{more}", where=where, do="Without --strict it is a remark")


def _preprocessing(model: ModelConfig) -> dict[str, Sequence[float]]:
    """The mean and std that the weights' header has, else timm's for the model; empty where neither has them."""
    header = read_header(model.weights) if model.weights else None
    name = model.model or (header and header.model) or ""
    known = not is_factory(name) and timm.is_model(name.partition(".")[0])
    cfg = timm.get_pretrained_cfg(name) if known else None
    found = {key: getattr(header, key, None) or getattr(cfg, key, None) for key in ("mean", "std")}
    return {key: value for key, value in found.items() if value}


def _recorded(config: TeacherConfig) -> float | None:
    """The accuracy, 0 to 1, that the weights of a single model were evaluated with when they were trained."""
    if config.members or not config.weights:
        return None
    evaluation = read_metadata(config.weights).get("evaluation")
    top1 = evaluation.get("top1") if isinstance(evaluation, dict) else None
    return float(top1) if isinstance(top1, float) and 0 <= top1 <= 1 else None


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
