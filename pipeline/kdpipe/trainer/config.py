"""How a student is trained; names and meanings are timm's where timm has them."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kdpipe._util.suggest import did_you_mean
from kdpipe.config import Config
from kdpipe.teacher.config import AmpDtype

# timm's schedules that are pure functions of the update; its `plateau` depends on the past.
Schedule = Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"]
# Settings that may differ between the parts of one run: where it runs, how often it is saved.
_FREE = {"device", "threads", "checkpoint_epochs", "checkpoint_steps"}


class TrainConfig(Config):
    """Optimisation of one student. Defaults suit small runs of modern networks; presets hold recipes."""

    epochs: int = Field(
        100, ge=1, le=10**6, description="Epochs; the schedule depends on them, so a run can't change them."
    )
    batch_size: int = Field(256, ge=1, description="Samples a step, over all processes.")
    opt: str = Field("adamw", description="Optimizer, by timm's name.")
    opt_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the optimizer, such as betas."
    )
    lr: float = Field(1e-3, gt=0, description="Learning rate.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay; biases and norm layers have none.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum, of optimizers that have it.")
    sched: Schedule = Field("cosine", description="Learning rate schedule, by timm's name.")
    warmup_epochs: float | None = Field(
        None, ge=0, description="Epochs of linear warmup; by default a twentieth of the epochs, 5 at most."
    )
    warmup_lr: float = Field(1e-6, ge=0, description="Learning rate at which the warmup begins.")
    min_lr: float = Field(1e-6, ge=0, description="Learning rate at which the schedule ends.")
    decay_epochs: float | None = Field(
        None,
        gt=0,
        description="Epochs between decays (step, by default 90), or the decay's length or share (wsd, rsqrt, 0.2).",
    )
    decay_milestones: tuple[int, ...] = Field((30, 60, 90), description="Epochs at which multistep decays.")
    decay_rate: float = Field(0.1, gt=0, description="Factor of step and multistep, power of poly.")
    clip_grad: float | None = Field(
        None, gt=0, description="Largest norm of the gradient; by default gradients aren't clipped."
    )
    model_ema: bool = Field(
        False, description="Keep a moving average of the weights, which is evaluated and saved as best.safetensors."
    )
    model_ema_decay: float = Field(0.9998, ge=0, lt=1, description="Decay of the moving average a step.")
    model_ema_warmup: bool = Field(False, description="Use a smaller decay in early steps, for short runs.")
    amp_dtype: AmpDtype = Field("float32", description="Autocast dtype; losses are always float32.")
    channels_last: bool = Field(True, description="Memory layout of model and batches.")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth rate of the student.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of weights, order and dropout; views have their own.")
    device: str = Field("auto", description="A torch device; auto: cuda if there is one, else cpu.")
    threads: int | None = Field(None, ge=1, description="CPU threads; by default torch's number.")
    eval_every: int = Field(1, ge=1, description="Epochs between evaluations; the last is always evaluated.")
    checkpoint_epochs: int = Field(1, ge=1, description="Epochs between checkpoints; the last epoch writes one.")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Steps between further checkpoints inside an epoch; by default none."
    )

    @field_validator("opt")
    @classmethod
    def _known(cls, opt: str) -> str:
        if opt == cls.model_fields["opt"].default:
            return opt
        # timm takes seconds to import, and most settings are read without it.
        from timm.optim import list_optimizers

        # adahessian needs second derivatives, which a step does not keep.
        names = [str(name) for name in list_optimizers() if name != "adahessian"]
        if opt.lower().removeprefix("lookahead_") not in names:
            close = did_you_mean(opt, names) or "Known are adamw, sgd, lamb and timm's others"
            raise ValueError(f"unknown optimizer {opt}. {close}")
        return opt

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs, found {self.warmup} of {self.epochs}")
        return self

    @property
    def warmup(self) -> float:
        """Epochs of warmup in effect."""
        return min(5.0, self.epochs / 20) if self.warmup_epochs is None else self.warmup_epochs

    def identity(self) -> dict[str, Any]:
        """The settings that decide the trained weights, by name."""
        return self.model_dump(mode="json", exclude=_FREE)
