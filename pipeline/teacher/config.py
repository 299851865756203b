"""Which models teach, and how they are run."""

from typing import Literal, Self

from pydantic import Field

from pipeline.errors import TeacherError
from pipeline.models import ModelConfig
from pipeline.teacher.form import Form
from pipeline.teacher.plan import Plan

AmpDtype = Literal["float32", "bfloat16", "float16"]

# What a teacher of several members says for all of them, where they don't say it themselves.
_FOR_ALL = ("num_classes", "input_size")


class TeacherConfig(ModelConfig):
    """A teacher and how it is run. The second part is numerics: it may move results within rounding."""

    members: list[ModelConfig] = Field(default_factory=list, description="several models that teach as one")
    combine: Literal["log-probs", "logits"] = Field("log-probs", description="of which the members' mean is taken")

    batch_size: int = Field(64, ge=1, description="samples a forward; a short batch is padded to it")
    amp_dtype: AmpDtype = Field("float32", description="autocast dtype of the forward")
    form: Form = Field("fastest", description="as trained; merged and cropped; or besides in the fastest ways")
    layers: Plan | None = Field(None, description="way of each layer that isn't plain; fastest: searched if left out")
    channels_last: bool = True
    device: str = Field("auto", description="cuda if there is one, else cpu; or a torch device")
    threads: int | None = Field(None, ge=1, description="CPU threads of the forward; torch's own number by default")

    def absolute(self) -> Self:
        """The same with whole paths, those of the members too."""
        return super().absolute().model_copy(update={"members": [member.absolute() for member in self.members]})

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
                    do=f"Say {name} of each of teacher.members, or leave the members out",
                )
        common = {name: getattr(self, name) for name in _FOR_ALL}
        return [
            member.model_copy(update={name: value for name, value in common.items() if getattr(member, name) is None})
            for member in self.members
        ]
