"""How a student is trained; names and meanings are timm's where timm has them."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from timm.optim import list_optimizers

from kdpipe.config import Config
from kdpipe.teacher import AmpDtype

# timm's schedules that are pure functions of the update; its `plateau` depends on the past.
Schedule = Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"]
# Settings that may differ between the parts of one run: where it runs, how often it is saved.
_FREE = {"device", "threads", "checkpoint_epochs", "checkpoint_steps"}


class TrainConfig(Config):
    """Optimisation of one student. Defaults suit small runs of modern networks; presets hold recipes."""

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1, description="samples a step over all processes")
    opt: str = Field("adamw", description="timm's name of the optimizer")
    opt_kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments, for example betas")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0, description="not on biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="of optimizers that have it")
    sched: Schedule = "cosine"
    warmup_epochs: float | None = Field(
        None, ge=0, description="linear warmup; by default a twentieth of the epochs, 5 at most"
    )
    warmup_lr: float = Field(1e-6, ge=0)
    min_lr: float = Field(1e-6, ge=0)
    decay_epochs: float | None = Field(
        None,
        gt=0,
        description="interval of step (timm: 90), length or share of the decay of wsd and rsqrt (0.2)",
    )
    decay_milestones: tuple[int, ...] = Field((30, 60, 90), description="epochs at which multistep decays")
    decay_rate: float = Field(0.1, gt=0, description="factor of step and multistep, power of poly")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    model_ema: bool = Field(False, description="keep an average of the weights; it is what is evaluated and saved")
    model_ema_decay: float = Field(0.9998, ge=0, lt=1)
    model_ema_warmup: bool = Field(False, description="smaller decay in early steps, for short runs")
    amp_dtype: AmpDtype = Field("float32", description="autocast dtype; losses are always float32")
    channels_last: bool = True
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the student")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order and dropout; the views have their own")
    device: str = Field("auto", description="cuda if there is one, else cpu; or a torch device")
    threads: int | None = Field(None, ge=1, description="CPU threads; torch's own number by default")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations; the last is always evaluated")
    checkpoint_epochs: int = Field(1, ge=1, description="epochs between checkpoints; the last always makes one")
    checkpoint_steps: int | None = Field(None, ge=1, description="also checkpoint inside epochs, every so many steps")

    @field_validator("opt")
    @classmethod
    def _known(cls, opt: str) -> str:
        # adahessian wants second derivatives, which a step does not keep.
        names = [str(name) for name in list_optimizers() if name != "adahessian"]
        if opt.lower().removeprefix("lookahead_") not in names:
            close = [n for n in names if n.startswith(opt[:3].lower())]
            raise ValueError(f"unknown optimizer {opt}; allowed: {', '.join(close or ['adamw', 'sgd', 'lamb'])} ...")
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
