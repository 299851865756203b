"""The teacher: a frozen model with its own preprocessing, and the exact form in which it is run."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from pipeline.errors import TeacherError
from pipeline.models import Built, ModelConfig, build, is_factory, weights_digest
from pipeline.views import Erased, Normalize

AmpDtype = Literal["float32", "bfloat16", "float16"]


class TeacherConfig(ModelConfig):
    """A teacher and how it is run. The second part is numerics: it may move results within rounding."""

    batch_size: int = Field(64, ge=1, description="samples a forward; a short batch is padded to it")
    amp_dtype: AmpDtype = Field("float32", description="autocast dtype of the forward")
    channels_last: bool = True
    device: str = Field("auto", description="cuda if there is one, else cpu; or a torch device")
    threads: int | None = Field(None, ge=1, description="CPU threads of the forward; torch's own number by default")


class TeacherOutput(NamedTuple):
    """What a teacher says of N views: `logits`, float32 (N, num_classes)."""

    logits: torch.Tensor


def resolve_device(device: str) -> torch.device:
    """'auto' or a torch device name -> a device that exists here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError) as e:
        raise TeacherError(
            "device can't be used", found=device, allowed="auto, cpu, or a device that torch has here"
        ) from e
    return resolved


def devices_here() -> list[str]:
    """Devices of this machine, one a worker: all of CUDA's, else the CPU."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


class Teacher:
    """A frozen model on a device: views in, TeacherOutput out.

    Args:
        config: which model, and how it is run.
        num_classes: used when neither the config nor the weights say.

    Raises:
        TeacherError: no weights, or a model that can't be built or run here.
    """

    def __init__(self, config: TeacherConfig, num_classes: int | None = None) -> None:
        named = config.model is not None and is_factory(config.model)
        if not (config.weights or config.pretrained or named):
            raise TeacherError(
                "teacher has no weights: it would teach noise",
                where=config.model,
                do="Pass --weights FILE, or --pretrained for timm's published ones",
            )
        self.config = config
        self.built: Built = build(config, num_classes=num_classes)
        published = (getattr(self.built.module, "pretrained_cfg", None) or {}).get("num_classes")
        if config.pretrained and not config.weights and published not in (None, self.built.num_classes):
            raise TeacherError(
                "the published weights have another number of classes: timm would put a random head on them",
                where=config.model,
                found=published,
                allowed=self.built.num_classes,
                do="Fine-tune it first (kdpipe train-student --pretrained --objective none), or mend the class count",
            )
        self.device = resolve_device(config.device)
        self.weights = weights_digest(self.built.module)
        self.threads = config.threads or torch.get_num_threads()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._model = self.built.module.to(self.device, memory_format=layout).eval().requires_grad_(False)  # type: ignore[call-overload]
        self._normalize = Normalize(self.built.mean, self.built.std, config.channels_last).to(self.device)

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.built.num_classes

    def identity(self) -> dict[str, Any]:
        """What decides the teacher's answer; a cache and its teacher must agree on all of it."""
        b = self.built
        return {
            "model": b.name,
            "model_kwargs": b.kwargs,
            "weights": self.weights,
            "num_classes": b.num_classes,
            "input_size": b.input_size,
            "mean": list(b.mean),
            "std": list(b.std),
        }

    def numerics(self) -> dict[str, Any]:
        """What may move the answer within rounding; one segment of a cache is made with one numerics."""
        c = self.config
        gpu = self.device.type == "cuda"
        return {
            "form": "eager",
            "batch_size": c.batch_size,
            "amp_dtype": c.amp_dtype,
            "channels_last": c.channels_last,
            "device": self.device.type,
            "threads": None if gpu else self.threads,
            "tf32": gpu and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32),
        }

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, erased: Erased | None = None) -> TeacherOutput:
        """Run on views, uint8 (N, S, S, 3), erased where `erased` says, in padded batches of `batch_size`.

        Padding repeats the first view, so that a sample's answer depends neither on how many are left nor on
        what the buffer held before.
        """
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        size = self.config.batch_size
        logits = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            rows = len(part)
            if rows < size:
                part = np.concatenate([part, np.broadcast_to(part[:1], (size - rows, *part.shape[1:]))])
            boxes = None if erased is None else erased[start : start + size]
            logits.append(self._forward(torch.from_numpy(part), boxes)[:rows])
        return TeacherOutput(torch.cat(logits))

    def _forward(self, images: torch.Tensor, erased: Erased | None) -> torch.Tensor:
        x = self._normalize(images.to(self.device, non_blocking=True), erased)
        dtype = getattr(torch, self.config.amp_dtype)
        try:
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = self._model(x)
        except Exception as e:
            # Whatever a layer raises, it is about what the user asked this model to do.
            room = (
                "Lower --batch-size"
                if isinstance(e, torch.OutOfMemoryError)
                else "Check --input-size and --model-kwargs"
            )
            reason = str(e).split("\n", maxsplit=1)[0][:200]
            raise TeacherError(
                f"the model can't run: {type(e).__name__}: {reason}",
                where=self.built.name,
                found=f"{len(images)} views of {images.shape[1]} pixels",
                do=room,
            ) from e
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise TeacherError(
                "the model's output is no logits",
                where=self.built.name,
                found=tuple(logits.shape),
                allowed=(len(images), self.num_classes),
            )
        return logits.float()
