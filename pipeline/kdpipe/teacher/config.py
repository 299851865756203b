"""Which models teach, and how they are run."""

from typing import Any, Literal, Self

from pydantic import Field

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig, require_trusted
from kdpipe.models.header import parsed
from kdpipe.teacher.reparameterisation import Form
from kdpipe.teacher.tune.plan import KernelPlan

AmpDtype = Literal["float32", "bfloat16", "float16"]

# What a teacher of several members says for all of them, where they don't say it themselves.
_FOR_ALL = ("num_classes", "input_size", "trust")


class TeacherConfig(ModelConfig):
    """A teacher and how it is run. The second part is numerics: it may move results within rounding."""

    members: list[ModelConfig] = Field(default_factory=list, description="several models that teach as one")
    combine: Literal["log-probs", "logits"] = Field("log-probs", description="of which the members' mean is taken")

    batch_size: int = Field(64, ge=1, le=2**16, description="samples a forward; a short batch is padded to it")
    amp_dtype: AmpDtype = Field("float32", description="autocast dtype of the forward")
    form: Form = Field("fastest", description="as trained; merged and cropped; or besides in the fastest ways")
    layers: KernelPlan | None = Field(
        None, description="way of each layer that isn't plain; fastest: searched if left out"
    )
    channels_last: bool = True
    device: str = Field("auto", description="cuda if there is one, else cpu; or a torch device")
    threads: int | None = Field(
        None, ge=1, le=2**12, description="CPU threads of the forward; torch's own number by default"
    )

    def absolute(self) -> Self:
        """The same with whole paths, those of the members too."""
        return super().absolute().model_copy(update={"members": [member.absolute() for member in self.members]})

    def recorded(self) -> dict[str, Any]:
        """JSON for a cache's provenance: without what the user trusts, which is no property of the teacher."""
        unsaid: Any = {"trust": True, "members": {"__all__": {"trust"}}}
        return self.absolute().model_dump(mode="json", exclude=unsaid)

    @classmethod
    def from_file(cls, content: Any, where: object, trust: tuple[str, ...]) -> Self:
        """A teacher as a file describes it, whose models may be built: see `require_trusted`.

        Args:
            content: what the file says, with what the user says instead.
            where: the file.
            trust: which names it may give; whatever the file says of that.

        Raises:
            TeacherError: it describes no teacher, or names what isn't trusted.
        """
        said = parsed(cls, content, where, "no teacher is described there")
        models: list[ModelConfig] = [said, *said.members]
        for model in models:
            if model.model is not None:
                require_trusted(model.model, model.model_kwargs, trust, where)
        members = [member.model_copy(update={"trust": trust}) for member in said.members]
        return said.model_copy(update={"trust": trust, "members": members})

    def models(self) -> list[ModelConfig]:
        """The members, each with what is said for all; of a single teacher its own model.

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
