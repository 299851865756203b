"""From a model's name to a module with its preprocessing: timm's registry, or the user's own factory."""

import importlib
import importlib.util
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import timm
from pydantic import Field
from timm.data import resolve_data_config
from torch import nn

from pipeline.config import Config
from pipeline.errors import TeacherError
from pipeline.models.class_map import keep_classes, read_class_map
from pipeline.models.dressed.logits import standardised
from pipeline.models.fit import fit
from pipeline.models.published import implied_kwargs
from pipeline.models.state import read_state
from pipeline.models.weights import read_metadata

_HUB = ("hf-hub:", "hf_hub:", "local-dir:")


class ModelConfig(Config):
    """A model, its weights and what it eats. What is None comes from the weights' header, then from timm."""

    model: str | None = Field(None, description="timm name (hub names too) or package.module:factory")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model")
    weights: str | None = Field(None, description="safetensors file or weights-only pickle")
    checkpoint_key: str | None = Field(None, description="entry of the weights' file, such as model or model_ema")
    class_map: str | None = Field(None, description="file: which rows of the weights' classifier are the classes")
    pretrained: bool = Field(False, description="take timm's published weights from its hub")
    num_classes: int | None = Field(None, ge=1)
    input_size: int | None = Field(None, ge=1, description="side of the square input, pixels")
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def absolute(self) -> Self:
        """The same with whole paths, for processes that run elsewhere."""
        files = {name: getattr(self, name) for name in ("weights", "class_map")}
        return self.model_copy(update={name: path and os.path.abspath(path) for name, path in files.items()})


@dataclass(frozen=True)
class Built:
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


def build(config: ModelConfig, *, num_classes: int | None = None, extra: dict[str, Any] | None = None) -> Built:
    """Create the model, load its weights if it has any, resolve its preprocessing.

    Args:
        config: see ModelConfig.
        num_classes: used when neither config nor weights say.
        extra: keyword arguments that are no part of the architecture (drop rates for training).

    Raises:
        TeacherError: unknown name, impossible arguments, or weights that don't fit.
    """
    if config.checkpoint_key and not config.weights:
        raise TeacherError("checkpoint_key is about a file of weights, and none is given", do="Pass --weights FILE")
    if config.class_map and not (config.weights or config.pretrained):
        raise TeacherError(
            "class_map is about trained weights, and there are none", do="Pass --weights or --pretrained"
        )
    said = read_metadata(config.weights) if config.weights else {}
    name = config.model or said.get("model")
    if name is None:
        raise TeacherError("no model named", do="Pass its timm name, or weights that kdpipe wrote")
    if said and said["model"] != name:
        raise TeacherError("weights of another model", where=config.weights, found=said["model"], allowed=name)
    rows = read_class_map(config.class_map) if config.class_map else None
    classes = _classes_asked(config, said, rows) or num_classes
    state = read_state(config.weights, config.checkpoint_key) if config.weights else {}
    # Spelled out by the user first, then what the weights were trained as.
    kwargs = {**implied_kwargs(name, state), **(said.get("model_kwargs") or {}), **config.model_kwargs}
    # timm would put a random head of so many classes on published weights.
    of_published = rows is not None and not config.weights
    module = _create(name, {**kwargs, **(extra or {})}, None if of_published else classes, config.pretrained)
    if config.weights:
        fit(module, state, config.weights, rows)
    elif rows is not None:
        keep_classes(module, rows, name)
    scale = said.get("logit_scale")
    if scale is not None:
        module.register_forward_hook(lambda _module, _inputs, logits: standardised(logits, scale))
    # A factory's model may not say what it eats; then it is ImageNet's mean, std and 224 pixels.
    feed = resolve_data_config(
        {}, pretrained_cfg=getattr(module, "pretrained_cfg", None) or {"input_size": (3, 224, 224)}
    )
    return Built(
        module=module,
        name=name,
        kwargs=kwargs,
        num_classes=_classes_of(module, classes, name),
        input_size=config.input_size or said.get("input_size") or feed["input_size"][-1],
        mean=tuple(config.mean or said.get("mean") or feed["mean"]),
        std=tuple(config.std or said.get("std") or feed["std"]),
        logit_scale=scale,
    )


def is_factory(name: str) -> bool:
    """Whether a model name means `package.module:factory` rather than a name of timm's."""
    return ":" in name and not name.startswith(_HUB)


def first_line(error: Exception) -> str:
    """What an exception says, short enough for a message of one line."""
    return str(error).strip().split("\n", maxsplit=1)[0][:300]


def _create(name: str, kwargs: dict[str, Any], num_classes: int | None, pretrained: bool) -> nn.Module:
    if is_factory(name):
        return _call_factory(name, kwargs, num_classes)
    if not name.startswith(_HUB) and not timm.is_model(name.split(".", maxsplit=1)[0]):
        close = timm.list_models(f"*{name.split('.', maxsplit=1)[0]}*")[:3]
        raise TeacherError(
            "unknown model",
            found=name,
            allowed=", ".join(close) or None,
            do="See timm.list_models() for names",
        )
    if num_classes is not None:
        kwargs = {**kwargs, "num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as e:
        # timm lets every layer's own exception through; whatever it was, the user's words caused it.
        what = "the model's weights can't be fetched or it" if pretrained else "the model"
        raise TeacherError(f"{what} can't be built: {type(e).__name__}: {first_line(e)}", where=name) from e


def _call_factory(name: str, kwargs: dict[str, Any], num_classes: int | None) -> nn.Module:
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
    try:
        takes = inspect.signature(factory).parameters
    except ValueError:  # some built-in functions don't say
        takes = MappingProxyType({})
    if num_classes is not None and ("num_classes" in takes or any(p.kind == p.VAR_KEYWORD for p in takes.values())):
        kwargs = {"num_classes": num_classes, **kwargs}
    try:
        model = factory(**kwargs)
    except TypeError as e:
        raise TeacherError(
            f"factory refused its arguments: {first_line(e)}", where=name, do="See --model-kwargs"
        ) from e
    except Exception as e:  # the user's own code
        raise TeacherError(f"factory failed: {type(e).__name__}: {first_line(e)}", where=name) from e
    if not isinstance(model, nn.Module):
        raise TeacherError(
            "factory returned no model", where=name, found=type(model).__name__, allowed="torch.nn.Module"
        )
    return model


def _classes_asked(config: ModelConfig, said: dict[str, Any], rows: list[int] | None) -> int | None:
    """The number of classes that options and weights agree on; None where neither says."""
    given = len(rows) if rows else said.get("num_classes")
    if given is not None and config.num_classes not in (None, given):
        raise TeacherError(
            "the class map has another number of classes" if rows else "weights have another number of classes",
            where=config.class_map if rows else config.weights,
            found=given,
            allowed=config.num_classes,
            do="Use a teacher and students of the same classes",
        )
    return given or config.num_classes


def _classes_of(module: nn.Module, asked: int | None, name: str) -> int:
    classes = getattr(module, "num_classes", None) or asked
    if classes is None:
        raise TeacherError("number of classes unknown", where=name, do="Pass --num-classes")
    return int(classes)
