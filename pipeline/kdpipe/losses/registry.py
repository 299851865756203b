"""Losses by name, those of users among them, and the config that names one. Imports neither torch nor timm.

Validating a LossConfig imports the `package.module:Class` that it names, so it is made of the user's own command line,
settings or calls only: no cache, checkpoint or other file of somebody else is validated as one (docs/security.md).
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, create_model, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from kdpipe._util.suggest import did_you_mean
from kdpipe.config import Config
from kdpipe.errors import ConfigError
from kdpipe.losses import config as configs
from kdpipe.losses.config import Requirements, TermConfig

if TYPE_CHECKING:
    from kdpipe.losses.base import Loss

ALIASES = {"ce": "none"}
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_L = TypeVar("_L", bound="type[Loss]")


@dataclass(frozen=True)
class LossEntry:
    """What is known of a loss before it is built.

    Attributes:
        name: as in `--loss`.
        Config: of its hyperparameters and requirements.
        source: "package.module:Class", imported by `load`.
    """

    name: str
    Config: type[TermConfig]
    source: str

    @property
    def section(self) -> str:
        """Its section of the settings, below `loss`."""
        return self.name.replace("-", "_")

    @property
    def usable(self) -> str:
        """A name with which it trains a student: with cross entropy where the classifier needs it."""
        return self.name if self.Config.trains_classifier else f"ce+{self.name}"

    def load(self) -> "type[Loss]":
        """The class."""
        module, _, name = self.source.partition(":")
        loss: type[Loss] = getattr(importlib.import_module(module), name)
        return loss


# The order of `kdpipe losses`.
LOSSES: dict[str, LossEntry] = {
    name: LossEntry(name, config, f"kdpipe.losses.{place}")
    for name, config, place in (
        ("none", configs.CrossEntropyConfig, "logit:CrossEntropy"),
        ("kd", configs.KdConfig, "logit:KnowledgeDistillation"),
        ("soft-ce", configs.SoftCrossEntropyConfig, "logit:SoftCrossEntropy"),
        ("bucket-kd", configs.BucketConfig, "bucket:BucketKd"),
        ("nkd", configs.NkdConfig, "nkd:Nkd"),
        ("dkd", configs.DkdConfig, "dkd:Dkd"),
        ("dist", configs.DistConfig, "dist:Dist"),
        ("fd", configs.FdConfig, "fd:FeatureDistillation"),
        ("fitnets", configs.FitNetsConfig, "fitnets:FitNets"),
        ("srrl", configs.SrrlConfig, "srrl:Srrl"),
        ("rkd", configs.RkdConfig, "rkd:Rkd"),
        ("mgd", configs.MgdConfig, "mgd:MaskedGenerative"),
        ("simkd", configs.SimkdConfig, "simkd:Simkd"),
        ("norm", configs.NormConfig, "norm:Norm"),
        ("cap-dfm", configs.CapDfmConfig, "scalekd:CapDfm"),
        ("scalekd", configs.ScaleKdConfig, "scalekd:ScaleKd"),
    )
}
# Losses of users by name; those that `register_loss` registered and those that `package.module:Class` named.
_OF_USERS: dict[str, "_OfUser"] = {}


@dataclass(frozen=True)
class _OfUser(LossEntry):
    loss: "type[Loss]"

    def load(self) -> "type[Loss]":
        return self.loss


def register_loss(name: str) -> Callable[[_L], _L]:
    """Class decorator: the loss can then be named in LossConfig and `--loss`, as built-in ones are.

    Args:
        name: lower-case letters and digits, words joined by - or _. Its settings are in the section `loss.<name>`, with
            _ for -.

    Raises:
        ConfigError: the name is taken or no name, or the class is no `Loss` with a `Config`.
    """

    def register(loss: _L) -> _L:
        _entry_of(loss, name, f"register_loss({name!r})")
        loss.name = name
        return loss

    return register


def find_loss(spec: str) -> LossEntry:
    """The loss of this name; imports the module where it is `package.module:Class`, so only for the user's settings.

    Raises:
        ConfigError: there is none, or it can't be imported.
    """
    spec = ALIASES.get(spec, spec)
    if ":" in spec:
        return _imported(spec)
    known = {**LOSSES, **_OF_USERS}
    if spec not in known:
        allowed = [*known, *ALIASES]
        raise ConfigError(
            f"unknown loss {spec}",
            allowed=f"{', '.join(allowed)}, or package.module:Class",
            do=did_you_mean(spec, allowed),
        )
    return known[spec]


def _imported(spec: str) -> LossEntry:
    module, _, name = spec.partition(":")
    try:
        loss = getattr(importlib.import_module(module), name)
    except Exception as e:  # the user's module runs when imported, and may raise anything
        raise ConfigError(
            f"the loss can't be imported: {type(e).__name__}: {' '.join(str(e).split())[:300]}",
            found=spec,
            allowed="package.module:Class",
            do="Is the folder of its package on PYTHONPATH?" if isinstance(e, ImportError) else None,
        ) from e
    return _entry_of(loss, getattr(loss, "name", None), spec)


def _entry_of(loss: Any, name: Any, where: str) -> LossEntry:
    from kdpipe.losses.base import Loss

    if not (isinstance(loss, type) and issubclass(loss, Loss)):
        raise ConfigError("a loss is a subclass of kdpipe.losses.Loss", where=where, found=str(loss)[:100])
    config = getattr(loss, "Config", None)
    if not (isinstance(config, type) and issubclass(config, TermConfig)):
        allowed = "a subclass of kdpipe.losses.TermConfig"
        raise ConfigError("the loss has no Config", where=where, found=str(config)[:100], allowed=allowed)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "such as my-loss: lower-case letters and digits, words joined by - or _"
        raise ConfigError("the loss has no name that can be used", where=where, found=str(name)[:100], allowed=allowed)
    entry = _OfUser(name, config, f"{loss.__module__}:{loss.__qualname__}", loss)
    built_in = next((one for one in LOSSES.values() if one.source == entry.source), None)
    if built_in is not None and built_in.name == name:
        return built_in
    taken = {*LossConfig.model_fields, *dir(LossConfig), *ALIASES}
    other = next((one for one in _OF_USERS.values() if one.section == entry.section), entry)
    # A module that is imported again, in a notebook for instance, may replace its own losses.
    if built_in is not None or entry.section in taken or (other.name, other.source) != (entry.name, entry.source):
        raise ConfigError("another loss or setting has this name", where=where, found=name, do="Choose another name")
    _OF_USERS[name] = entry
    return entry


class LossConfig(Config):
    """Which loss, and the hyperparameters of each; those of losses that are not named have no effect.

    Sections of users' losses are extra fields, allowed for the losses that `name` names.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        "kd",
        description="A loss of kdpipe losses, or package.module:Class; several are joined by +: kd+fd.",
    )
    student_layers: tuple[str, ...] = Field(
        (), description="Names of the student's modules whose feature maps are used; default: its last."
    )
    teachers: Literal["average", "sum"] = Field(
        "average", description="Of several caches: average their log-probs, or average a loss for each."
    )
    teacher_weights: tuple[float, ...] = Field((), description="One for each cache; equal by default.")
    none: configs.CrossEntropyConfig = Field(default_factory=configs.CrossEntropyConfig)
    kd: configs.KdConfig = Field(default_factory=configs.KdConfig)
    soft_ce: configs.SoftCrossEntropyConfig = Field(default_factory=configs.SoftCrossEntropyConfig)
    bucket_kd: configs.BucketConfig = Field(default_factory=configs.BucketConfig)
    nkd: configs.NkdConfig = Field(default_factory=configs.NkdConfig)
    dkd: configs.DkdConfig = Field(default_factory=configs.DkdConfig)
    dist: configs.DistConfig = Field(default_factory=configs.DistConfig)
    fd: configs.FdConfig = Field(default_factory=configs.FdConfig)
    fitnets: configs.FitNetsConfig = Field(default_factory=configs.FitNetsConfig)
    srrl: configs.SrrlConfig = Field(default_factory=configs.SrrlConfig)
    rkd: configs.RkdConfig = Field(default_factory=configs.RkdConfig)
    mgd: configs.MgdConfig = Field(default_factory=configs.MgdConfig)
    simkd: configs.SimkdConfig = Field(default_factory=configs.SimkdConfig)
    norm: configs.NormConfig = Field(default_factory=configs.NormConfig)
    cap_dfm: configs.CapDfmConfig = Field(default_factory=configs.CapDfmConfig)
    scalekd: configs.ScaleKdConfig = Field(default_factory=configs.ScaleKdConfig)

    @model_validator(mode="before")
    @classmethod
    def _sections_of_users(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        try:
            named = _named(str(data.get("name", "")))
        except ConfigError:
            named = []  # the field's own validator refuses it
        own = [one for one in named if one.name not in LOSSES]
        given = {key: value for key, value in data.items() if key not in cls.model_fields}
        # A model of those sections alone: it refuses other keys, and its errors name the section.
        fields: Any = {one.section: (one.Config, Field(default_factory=one.Config)) for one in own}
        try:
            checked = create_model("Sections", __base__=Config, **fields).model_validate(given)
        except ValidationError as e:
            raise _with_allowed_keys(e, {one.section: one.Config for one in own}) from e
        return {k: v for k, v in data.items() if k not in given} | {key: getattr(checked, key) for key in fields}

    @field_validator("student_layers", mode="before")
    @classmethod
    def _layer_names(cls, layers: Any) -> Any:
        # Modules of a Sequential are called 0, 1, and so on, which YAML reads as numbers.
        return [str(layer) for layer in layers] if isinstance(layers, list | tuple) else layers

    @field_validator("name")
    @classmethod
    def _distinct(cls, name: str) -> str:
        named = [one.name for one in _named(name)]
        if len(set(named)) < len(named):
            raise ValueError(f"a loss is there twice in {name}")
        return "+".join(ALIASES.get(part.strip(), part.strip()) for part in name.split("+"))

    @model_validator(mode="after")
    def _trains_a_classifier(self) -> Self:
        if not any(loss.Config.trains_classifier for loss in self.losses):
            raise ValueError(f"nothing in {self.name} trains the classifier; allowed: ce+{self.name}, kd+{self.name}")
        wrapping = [loss.name for loss in self.losses if loss.Config.wraps_student]
        if len(wrapping) > 1:
            raise ValueError(f"{' and '.join(wrapping)} both change the student; one can")
        mapped = [
            one.name
            for one in self.losses
            if not one.Config.wraps_student and self.hyperparameters(one.name).requirements.maps
        ]
        if wrapping and mapped:
            raise ValueError(f"{wrapping[0]} changes the student's maps, which {mapped[0]} takes; use one of them")
        return self

    @property
    def losses(self) -> list[LossEntry]:
        """Those named, in order."""
        return _named(self.name)

    def hyperparameters(self, name: str) -> Any:
        """Those of a loss."""
        return getattr(self, name.replace("-", "_"))

    @property
    def requirements(self) -> Requirements:
        """What they take together."""
        return reduce(or_, (self.hyperparameters(loss.name).requirements for loss in self.losses), Requirements())

    def used(self) -> dict[str, Any]:
        """What has an effect, JSON-able."""
        common = self.model_dump(mode="json", include={"name", "student_layers", "teachers", "teacher_weights"})
        return common | {one.name: self.hyperparameters(one.name).model_dump(mode="json") for one in self.losses}


def _named(names: str) -> list[LossEntry]:
    return [find_loss(part.strip()) for part in names.split("+")]


def _with_allowed_keys(error: ValidationError, sections: dict[str, type[TermConfig]]) -> ValidationError:
    """Of an unknown key in a user's section, an error that lists the known ones: no schema outside of here has them."""
    first = error.errors(include_url=False)[0]
    section, key = str(first["loc"][0]), str(first["loc"][-1])
    if first["type"] != "extra_forbidden" or section not in sections:
        return error
    known = sections[section].model_fields
    parts = [f"unknown key; allowed: {', '.join(sorted(known))}", did_you_mean(key, known)]
    problem = PydanticCustomError("unknown_key", "{what}", {"what": ". ".join(filter(None, parts))})
    line = InitErrorDetails(type=problem, loc=first["loc"], input=first["input"])
    return ValidationError.from_exception_data("loss", [line])
