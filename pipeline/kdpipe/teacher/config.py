"""Which models teach, and how they are run."""

from typing import Any, Literal, Self

from pydantic import Field

from kdpipe.errors import TeacherError
from kdpipe.models.config import ModelConfig
from kdpipe.models.trust import require_trusted

AmpDtype = Literal["float32", "bfloat16", "float16"]
# How the network is run: as trained; layers merged and kernels cropped; besides, each layer by its fastest kernel.
Form = Literal["eager", "merged", "fastest"]
# Layer -> kernel; layers that it doesn't name are plain. The whole network may be compiled.
KernelPlan = dict[str, str]

# Settings of a teacher with several members that hold for all of them, where a member has none of its own.
_FOR_ALL = ("num_classes", "input_size", "trust")


class TeacherConfig(ModelConfig):
    """A teacher and how it is run. The settings from `batch_size` on may change results within rounding."""

    members: list[ModelConfig] = Field(
        default_factory=list, description="Models of an ensemble, each with the settings above; instead of `model`."
    )
    combine: Literal["log-probs", "logits"] = Field(
        "log-probs", description="Outputs of which the ensemble is the mean."
    )

    batch_size: int = Field(
        64, ge=1, le=2**16, description="Views a forward pass; a smaller batch is padded to this size."
    )
    amp_dtype: AmpDtype = Field("float32", description="Autocast dtype of the forward pass.")
    form: Form = Field(
        "fastest",
        description="eager: as trained; merged: layers merged, kernels cropped; fastest: also in the fastest kernels.",
    )
    layers: KernelPlan | None = Field(
        None, description="Kernel of each layer that isn't plain; by default plain, or searched with form fastest."
    )
    channels_last: bool = Field(True, description="Memory layout of the forward pass.")
    device: str = Field("auto", description="A torch device; auto: cuda if there is one, else cpu.")
    threads: int | None = Field(
        None, ge=1, le=2**12, description="CPU threads of the forward pass; by default torch's number."
    )

    def absolute(self) -> Self:
        """The same with absolute paths, those of the members too."""
        return super().absolute().model_copy(update={"members": [member.absolute() for member in self.members]})

    def recorded(self) -> dict[str, Any]:
        """JSON for a cache's provenance: without what the user trusts, which is no property of the teacher."""
        unsaid: Any = {"trust": True, "members": {"__all__": {"trust"}}}
        return self.absolute().model_dump(mode="json", exclude=unsaid)

    @classmethod
    def from_file(cls, content: Any, where: object, trust: tuple[str, ...]) -> Self:
        """A teacher as a file describes it, whose models may be built: see `require_trusted`.

        Args:
            content: of the file, with the user's settings over it.
            where: the file.
            trust: which names it may give; a `trust` in the file has no effect.

        Raises:
            TeacherError: it describes no teacher, or names what isn't trusted.
        """
        # It reads weights' headers too, with torch.
        from kdpipe.models.header import parsed

        described = parsed(cls, content, where, "no teacher is described there")
        models: list[ModelConfig] = [described, *described.members]
        for model in models:
            if model.model is not None:
                require_trusted(model.model, model.model_kwargs, trust, where)
        members = [member.model_copy(update={"trust": trust}) for member in described.members]
        return described.model_copy(update={"trust": trust, "members": members})

    def models(self) -> list[ModelConfig]:
        """The members, each with the settings for all; of a single teacher its own model.

        Raises:
            TeacherError: something of a single model is given beside members.
        """
        if not self.members:
            return [self]
        for name, field in ModelConfig.model_fields.items():
            value = getattr(self, name)
            if name not in _FOR_ALL and value != field.get_default(call_default_factory=True):
                raise TeacherError(
                    "a teacher has one model or members, not both",
                    where=f"teacher.{name}",
                    found=value,
                    do=f"Log {name} of each of teacher.members, or leave the members out",
                )
        common = {name: getattr(self, name) for name in _FOR_ALL}
        return [
            member.model_copy(update={name: value for name, value in common.items() if not getattr(member, name)})
            for member in self.members
        ]
