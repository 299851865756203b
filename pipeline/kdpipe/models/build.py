"""From a model's name to a module with its preprocessing: timm's registry, or the user's own factory."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import timm
from timm.data import resolve_data_config
from torch import nn

from kdpipe._util.suggest import did_you_mean
from kdpipe.errors import KdpipeError, TeacherError
from kdpipe.models import replknet, slak, unireplknet  # noqa: F401 - registers them with timm
from kdpipe.models.bounded import outline, require_size
from kdpipe.models.class_map import keep_classes, read_class_map
from kdpipe.models.config import CLASSES, CLASSES_OF_FILE, ModelConfig
from kdpipe.models.converters import implied_kwargs
from kdpipe.models.header import Header, read_header
from kdpipe.models.matching import classes_of, fit, fitted
from kdpipe.models.state import read_state
from kdpipe.models.trust import HUB, WRAPPERS, is_factory, require_trusted, runs_code
from kdpipe.models.wrappers.logits import standardised


@dataclass(frozen=True)
class ModelSpec:
    """A module and how to feed it. `name` and `kwargs` rebuild the architecture.

    With a `logit_scale` the logits that it was trained for are `standardised`, which the module does where it was
    built from such weights.
    """

    module: nn.Module
    name: str
    kwargs: dict[str, Any]
    num_classes: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logit_scale: float | None = None

    def metadata(self) -> dict[str, Any]:
        """What goes into a checkpoint's header: enough to build and feed the model again."""
        scale = {} if self.logit_scale is None else {"logit_scale": self.logit_scale}
        return scale | {
            "model": self.name,
            "model_kwargs": self.kwargs,
            "num_classes": self.num_classes,
            "input_size": self.input_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def build(config: ModelConfig, *, num_classes: int | None = None, extra: dict[str, Any] | None = None) -> ModelSpec:
    """Create the model, load its weights if it has any, resolve its preprocessing.

    Args:
        config: see ModelConfig.
        num_classes: used when neither config nor weights give it.
        extra: keyword arguments that are no part of the architecture (drop rates for training).

    Raises:
        TeacherError: unknown name, impossible arguments, or weights that don't fit.
    """
    for key in ("checkpoint_key", "key_prefix"):
        if getattr(config, key) and not config.weights:
            raise TeacherError(f"{key} is about a file of weights, and none is given", do="Pass --weights FILE")
    if config.class_map and not (config.weights or config.pretrained):
        raise TeacherError(
            "class_map is about trained weights, and there are none", do="Pass --weights or --pretrained"
        )
    header = read_header(config.weights) if config.weights else Header()
    name = config.model or header.model
    if name is None:
        raise TeacherError("no model named", do="Pass its timm name, or weights that kdpipe wrote")
    if header.model is not None:
        if header.model != name:
            what, do = "weights of another model", f"Name {header.model} as the model, or pass other weights"
            raise TeacherError(what, where=config.weights, found=header.model, allowed=name, do=do)
        theirs = {key: value for key, value in header.model_kwargs.items() if key not in config.model_kwargs}
        require_trusted(name, theirs, config.trusted(), config.weights)
    rows = read_class_map(config.class_map) if config.class_map else None
    classes = _requested_classes(config, header, rows) or num_classes
    if classes is not None and config.num_classes is None and classes > CLASSES_OF_FILE:
        do = f"If it is right, set num_classes, to {CLASSES} at most"
        raise TeacherError("impossible number of classes", where=name, found=classes, allowed=CLASSES_OF_FILE, do=do)
    state = read_state(config.weights, config.checkpoint_key, config.key_prefix) if config.weights else {}
    # Spelled out by the user first, then what the weights were trained as.
    kwargs = {**implied_kwargs(name, state), **header.model_kwargs, **config.model_kwargs}
    if config.weights and not runs_code(name, kwargs):
        # Whether the tensors are those of the network that a file may have described, before that takes memory. A
        # factory that the user trusts may do what can't be done on the meta device.
        drawn = outline(lambda: _create(name, kwargs, classes, False), config.weights)
        found = None if config.num_classes or header.num_classes or rows else classes_of(drawn, state, config.weights)
        if found is not None and found != classes:
            classes = found
            drawn = outline(lambda: _create(name, kwargs, classes, False), config.weights)
        fitted(drawn, state, config.weights, rows)
        require_size(drawn, state, config.weights)
    # timm would put a random head of so many classes on published weights.
    of_published = rows is not None and not config.weights
    module = _create(name, {**kwargs, **(extra or {})}, None if of_published else classes, config.pretrained)
    if config.weights:
        fit(module, state, config.weights, rows)
    elif rows is not None:
        keep_classes(module, rows, name)
    scale = header.logit_scale
    if scale is not None:
        module.register_forward_hook(lambda _module, _inputs, logits: standardised(logits, scale))
    # A factory's model may lack a pretrained_cfg; the default is ImageNet's mean, std and 224 pixels.
    feed = resolve_data_config(
        {}, pretrained_cfg=getattr(module, "pretrained_cfg", None) or {"input_size": (3, 224, 224)}
    )
    return ModelSpec(
        module=module,
        name=name,
        kwargs=kwargs,
        num_classes=_classes_of(module, classes, name),
        input_size=config.input_size or header.input_size or feed["input_size"][-1],
        mean=tuple(config.mean or header.mean or feed["mean"]),
        std=tuple(config.std or header.std or feed["std"]),
        logit_scale=scale,
    )


def first_line(error: Exception) -> str:
    """The first line of an exception's message, at most 300 characters."""
    return str(error).strip().split("\n", maxsplit=1)[0][:300]


def _create(name: str, kwargs: dict[str, Any], num_classes: int | None, pretrained: bool) -> nn.Module:
    if name in WRAPPERS:
        return _call(_wrapper(name), name, kwargs, num_classes)
    if is_factory(name):
        return _call(_imported(name), name, kwargs, num_classes)
    if not name.startswith(HUB) and not timm.is_model(name.split(".", maxsplit=1)[0]):
        do = did_you_mean(name.split(".", maxsplit=1)[0], timm.list_models()) or "See timm.list_models() for names"
        raise TeacherError("unknown model", found=name, do=do)
    if num_classes is not None:
        kwargs = {**kwargs, "num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except KdpipeError:
        raise
    except Exception as e:
        # timm lets every layer's own exception through; whatever it was, the user's arguments caused it.
        what = "the model's weights can't be fetched or it" if pretrained else "the model"
        raise TeacherError(f"{what} can't be built: {type(e).__name__}: {first_line(e)}", where=name) from e


def _wrapper(name: str) -> Callable[..., Any]:
    # It builds what it wraps with this module.
    from kdpipe.models.wrappers.simkd import simkd_student

    return {"kdpipe:simkd_student": simkd_student}[name]


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, function = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
        if not callable(factory):
            raise TypeError(f"{function} is not a function but a {type(factory).__name__}")
    except Exception as e:  # the user's module runs when imported, and may raise anything
        raise TeacherError(
            f"factory can't be imported: {type(e).__name__}: {first_line(e)}",
            where=name,
            allowed="package.module:function",
            do=f"Is its folder on PYTHONPATH? (run from {Path.cwd().name})",
        ) from e
    return cast(Callable[..., Any], factory)


def _call(factory: Callable[..., Any], name: str, kwargs: dict[str, Any], num_classes: int | None) -> nn.Module:
    try:
        takes = inspect.signature(factory).parameters
    except ValueError:  # some built-in functions have no signature
        takes = MappingProxyType({})
    if num_classes is not None and ("num_classes" in takes or any(p.kind == p.VAR_KEYWORD for p in takes.values())):
        kwargs = {"num_classes": num_classes, **kwargs}
    try:
        model = factory(**kwargs)
    except TypeError as e:
        raise TeacherError(
            f"factory refused its arguments: {first_line(e)}", where=name, do="See --model-kwargs"
        ) from e
    except KdpipeError:
        raise
    except Exception as e:  # the user's own code
        raise TeacherError(f"factory failed: {type(e).__name__}: {first_line(e)}", where=name) from e
    if not isinstance(model, nn.Module):
        raise TeacherError(
            "factory returned no model", where=name, found=type(model).__name__, allowed="torch.nn.Module"
        )
    return model


def _requested_classes(config: ModelConfig, header: Header, rows: list[int] | None) -> int | None:
    """The number of classes that options and weights agree on; None where neither gives one."""
    given = len(rows) if rows else header.num_classes
    if given is not None and config.num_classes not in (None, given):
        raise TeacherError(
            "the class map has another number of classes" if rows else "weights have another number of classes",
            where=config.class_map if rows else config.weights,
            found=given,
            allowed=config.num_classes,
            do="Use a teacher and students of the same classes",
        )
    return given or config.num_classes


def _classes_of(module: nn.Module, requested: int | None, name: str) -> int:
    classes = getattr(module, "num_classes", None) or requested
    if classes is None:
        raise TeacherError("number of classes unknown", where=name, do="Pass --num-classes")
    return int(classes)
